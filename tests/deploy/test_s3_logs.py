from __future__ import annotations

import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.storage.compute_log_manager import ComputeIOType

from brainmri_core.system.object_store import Bucket
from tests import ROOT
from tests.object_store import BUCKET, OWNER

pytestmark = pytest.mark.full


def instance_with_s3(home: Path) -> dg.DagsterInstance:
    """The instance of `deploy/celery`, its S3 logs switched on as the comment there says; the database is a file."""
    home.mkdir()
    value = yaml.safe_load((ROOT / "deploy/celery/dagster.yaml").read_text())
    commented = [
        line.removeprefix("#")
        for line in (ROOT / "deploy/celery/dagster.yaml").read_text().splitlines()
        if line.startswith(("#compute_logs:", "#  "))
    ]
    value |= yaml.safe_load("\n".join(commented))
    value["compute_logs"]["config"] |= {"bucket": BUCKET, "local_dir": str(home / "logs")}
    del value["storage"]
    (home / "dagster.yaml").write_text(yaml.safe_dump(value))
    return dg.DagsterInstance.from_config(str(home))


def test_what_a_step_prints_on_one_machine_is_shown_on_another(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAINMRI_BROKER_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    key = ["run", "compute_logs", "step"]
    with instance_with_s3(tmp_path / "here") as here, instance_with_s3(tmp_path / "there") as there:
        with here.compute_log_manager.capture_logs(key):
            print("a line of the step")
            print("a line of its errors", file=sys.stderr)
        assert type(here.run_launcher).__name__ == "CeleryLauncher"
        found = there.compute_log_manager.get_log_data(key)
        assert found.stdout is not None and b"a line of the step" in found.stdout
        assert found.stderr is not None and b"a line of its errors" in found.stderr
        assert there.compute_log_manager.cloud_storage_has_logs(key, ComputeIOType.STDOUT)  # type: ignore[attr-defined]
    objects = Bucket(f"s3://{BUCKET}/runs").list("")
    assert objects == [f"storage/run/compute_logs/step.{end}" for end in ("err", "out")]
    written = "".join(path.read_text() for path in tmp_path.glob("*/dagster.yaml"))
    assert OWNER["AWS_SECRET_ACCESS_KEY"] not in written
