from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from brainmri_core.config import STAGES
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import history
from brainmri_core.system.object_store import Bucket
from tests.faults.tiny import PHANTOM, POINTERS, launch_file
from tests.object_store import OWNER

pytestmark = [pytest.mark.full, pytest.mark.e2e]


class Machines:
    """Machines that share a bucket and nothing else."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder, self.said = url, folder, ""
        (folder / "configs").mkdir()
        self.config = launch_file(folder / "configs", "old")

    def brainmri(self, machine: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        settings = f"paths:\n  root: {self.url}\n  cache: {self.folder / machine}\n"
        config = self.folder / f"{machine}.yaml"
        blocks = self.config.read_text().splitlines(keepends=True)
        start = blocks.index("paths:\n")
        end = next(at for at in range(start + 1, len(blocks)) if not blocks[at].startswith(" "))
        config.write_text("".join([*blocks[:start], settings, *blocks[end:]]))
        done = subprocess.run(
            [sys.executable, "-m", "brainmri_dagster.cli", *arguments, "--config", str(config)],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        self.said += done.stdout + done.stderr
        return done

    def layout(self, machine: str) -> Layout:
        return Layout.at(self.url, str(self.folder / machine))


def test_machines_that_share_a_bucket_go_on_from_one_another(store_url: str, tmp_path: Path) -> None:
    machines = Machines(store_url, tmp_path)
    first = machines.brainmri("a", "pipeline", "--dataset", PHANTOM, "--run-id", "one")
    assert first.returncode == 0, first.stderr
    second = machines.brainmri(
        "b", "pipeline", "--dataset", PHANTOM, "--run-id", "two", "--resume-from", "split"
    )
    assert second.returncode == 0, second.stderr
    assert first.stdout.splitlines()[1:-1] == second.stdout.splitlines()[1:-1], "the scores"
    third = machines.layout("c")
    for stage in STAGES[1:]:
        found = {pointer.run_id: pointer.content_hash for pointer in history(third, POINTERS[stage], PHANTOM)}
        assert set(found) == {"one", "two"}
        # the report also counts what moved since the split before
        assert stage == "validate" or found["one"] == found["two"], stage

    compared = machines.brainmri("c", "compare", "one", "two")
    assert compared.returncode == 0, compared.stderr
    image = next((machines.layout("a").root / "data/raw").rglob("*.jpg"))
    predicted = machines.brainmri("d", "predict", str(image), "--format", "json")
    assert predicted.returncode == 0, predicted.stderr
    assert json.loads(predicted.stdout)["predictions"]

    refused = {
        ("pipeline", "--dataset", PHANTOM, "--run-id", "one"): "The run id 'one' is taken",
        ("pipeline", "--dataset", PHANTOM, "--dry-run"): "--dry-run needs a project in a folder",
    }
    for arguments, sentence in refused.items():
        ended = machines.brainmri("d", *arguments)
        assert (ended.returncode, ended.stdout) == (2, ""), (arguments, ended.stderr)
        assert sentence in ended.stderr

    cleared = machines.brainmri("d", "gc", "--delete")
    assert cleared.returncode == 0, cleared.stderr
    assert cleared.stdout.startswith("Moved 0 results and 0 contents (0.0 MB) to trash/"), "all is young"
    verified = machines.brainmri("d", "verify")
    assert verified.returncode == 0, verified.stdout
    assert verified.stdout.startswith("All is well: ")

    secret = OWNER["AWS_SECRET_ACCESS_KEY"].encode()
    assert secret.decode() not in machines.said
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert kept == []
    bucket = Bucket(store_url)
    assert not [name for name in bucket.list("") if secret in (bucket.get(name) or b"")]
