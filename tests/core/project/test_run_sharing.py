from __future__ import annotations

from pathlib import Path

import pytest

from brainmri_core.errors import ConfigError, StorageError
from brainmri_core.project.layout import Layout
from brainmri_core.project.run_record import close_run, make_plan, refuse_existing, stage_record, write_plan
from brainmri_core.project.run_schema import PlannedStage, manifest_files, read_manifest, read_plan
from brainmri_core.project.run_sharing import take_in_run, take_in_runs
from brainmri_core.system.object_store import PATIENCE_VARIABLE
from tests.object_store import StoreServer, running_proxy


def begin(layout: Layout, run_id: str, dagster_run_id: str = "d1") -> None:
    stages = [PlannedStage(stage=name, asset=name, config={}) for name in ("fetch", "split")]
    plan = make_plan(
        run_id=run_id,
        dagster_run_id=dagster_run_id,
        dataset="a/b",
        command="",
        env={"seed": 1},
        stages=stages,
    )
    assert write_plan(layout, plan)


def machines(url: str, tmp_path: Path) -> tuple[Layout, Layout]:
    return Layout.at(url, str(tmp_path / "a")), Layout.at(url, str(tmp_path / "b"))


def statuses(layout: Layout, run_id: str) -> dict[str, str]:
    take_in_run(layout, run_id)
    manifest = read_manifest(layout.run_dir(run_id) / "run_manifest.json")
    return {"run": manifest.status, **{name: entry.status for name, entry in manifest.stages.items()}}


def test_a_run_is_read_and_closed_on_another_machine(store_url: str, tmp_path: Path) -> None:
    here, there = machines(store_url, tmp_path)
    begin(here, "one")
    with stage_record(here, "one", "fetch", "fetch"):
        assert statuses(there, "one") == {"run": "running", "fetch": "running", "split": "planned"}
    assert statuses(there, "one") == {"run": "running", "fetch": "success", "split": "planned"}
    assert read_plan(there.run_dir("one") / "plan.json").dataset == "a/b"
    close_run(there, "one", "failed", "its machine went down")
    assert statuses(here, "one") == {"run": "failed", "fetch": "failed", "split": "skipped"}

    begin(here, "two")
    third = Layout.at(store_url, str(tmp_path / "c"))
    take_in_runs(third)
    assert [path.parent.name for path in manifest_files(third)] == ["one", "two"]


def test_a_run_id_that_another_machine_has_used_is_refused(store_url: str, tmp_path: Path) -> None:
    here, there = machines(store_url, tmp_path)
    begin(here, "one")
    with pytest.raises(ConfigError, match="The run id 'one' is taken"):
        refuse_existing(there, "one")
    with pytest.raises(ConfigError, match="The run id 'one' is taken"):
        begin(there, "one", "d2")
    take_in_run(there, "one")
    assert read_plan(there.run_dir("one") / "plan.json").dagster_run_id == "d1"
    refuse_existing(there, "two")


def test_a_stage_that_failed_while_the_store_was_away_says_why_and_is_passed_on_later(
    store_url: str, object_store: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Layout.at(store_url, str(tmp_path / "b"))
    begin(there, "other")  # connects without the proxy
    with running_proxy(object_store.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv(PATIENCE_VARIABLE, "0.5")
        here = Layout.at(store_url, str(tmp_path / "a"))
        begin(here, "one")
        with pytest.raises(RuntimeError, match="its own reason"), stage_record(here, "one", "fetch", "fetch"):
            proxy.fault = lambda method, path: "reset"
            raise RuntimeError("its own reason")
        proxy.fault = lambda method, path: None
        assert statuses(there, "one")["fetch"] == "running"
        assert statuses(here, "one")["fetch"] == "failed", "what is here is newer"
        close_run(here, "one", "failed", "")
    assert statuses(there, "one") == {"run": "failed", "fetch": "failed", "split": "skipped"}


def test_a_stage_does_not_begin_where_the_store_is_away(
    store_url: str, object_store: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_proxy(object_store.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv(PATIENCE_VARIABLE, "0.5")
        layout = Layout.at(store_url, str(tmp_path / "a"))
        begin(layout, "one")
        proxy.fault = lambda method, path: "reset"
        with (
            pytest.raises(StorageError, match="the store does not answer"),
            stage_record(layout, "one", "fetch", "fetch"),
        ):
            pytest.fail("it began")
