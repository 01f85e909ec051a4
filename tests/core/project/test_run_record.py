from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from brainmri_core.errors import ConfigError, DataError
from brainmri_core.project import run_record as runs
from brainmri_core.project.layout import Layout

STAGES = ["fetch", "split", "resize"]


def planned(layout: Layout, run_id: str = "r1") -> runs.Plan:
    plan = runs.make_plan(
        run_id=run_id,
        dagster_run_id="d1",
        dataset="o/s",
        command="brainmri pipeline",
        env={"seed": 3},
        stages=[runs.PlannedStage(stage=name, asset=name, config={"a": 1}) for name in STAGES],
    )
    assert runs.write_plan(layout, plan)
    return plan


def manifest(layout: Layout, run_id: str = "r1") -> dict[str, Any]:
    value: dict[str, Any] = json.loads((layout.run_dir(run_id) / "run_manifest.json").read_text())
    return value


def test_plan_and_manifest_stand_before_work_starts(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    plan = planned(layout)
    assert json.loads((layout.run_dir("r1") / "plan.json").read_text())["config_hash"] == plan.config_hash
    assert (layout.run_dir("r1") / "split.yaml").read_text() == "a: 1\n"
    state = manifest(layout)
    assert state["status"] == "planned"
    assert state["seed"] == 3
    assert state["environment"]["packages"]["pydantic"]
    assert state["environment"]["hardware"]["memory_bytes"] > 0
    assert state["config_hash"] == plan.config_hash
    assert {"git_commit", "git_dirty"} <= state["code"].keys()
    assert not runs.write_plan(layout, plan)


def test_manifest_follows_the_stages_to_success(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    planned(layout)
    for name in STAGES:
        with runs.stage_record(layout, "r1", name, name):
            assert manifest(layout)["stages"][name]["status"] == "running"
            assert manifest(layout)["status"] == "running"
    state = manifest(layout)
    assert state["status"] == "success"
    assert {entry["exit_code"] for entry in state["stages"].values()} == {0}
    assert all(entry["duration_s"] >= 0 for entry in state["stages"].values())


def test_the_data_hash_is_of_what_the_first_stage_fetched_or_was_given(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    (tmp_path / "pack.json").write_text('{"content_hash": "abc"}')
    planned(layout)
    with runs.stage_record(layout, "r1", "train", "train", {"resized_images": "pack.json", "other": None}):
        assert manifest(layout)["data_hash"] is None
    with runs.stage_record(layout, "r1", "evaluate", "evaluate", {"model_checkpoint": "gone.json"}):
        pass
    assert manifest(layout)["data_hash"] == "abc"
    planned(layout, "r2")
    with runs.stage_record(layout, "r2", "fetch", "fetch") as record:
        record.entry["content_hash"] = "def"
    assert manifest(layout, "r2")["data_hash"] == "def"


def test_failure_is_recorded_with_its_sentence_and_the_rest_is_skipped(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    planned(layout)
    with pytest.raises(DataError), runs.stage_record(layout, "r1", "fetch", "fetch"):
        raise DataError("No images.")
    state = manifest(layout)
    assert state["status"] == "failed"
    assert state["stages"]["fetch"]["error"] == "No images."
    assert state["stages"]["fetch"]["exit_code"] == DataError.exit_code
    assert state["stages"]["split"]["status"] == "skipped"


def test_interruption_is_recorded_as_cancelled(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    planned(layout)
    with pytest.raises(KeyboardInterrupt), runs.stage_record(layout, "r1", "fetch", "fetch"):
        raise KeyboardInterrupt
    assert manifest(layout)["status"] == "cancelled"


def test_a_dead_run_can_be_closed(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    planned(layout)
    with runs._manifest(layout, "r1") as state:
        state["stages"]["fetch"]["status"] = "running"
    runs.close_run(layout, "r1", "failed", "The process died.")
    state = manifest(layout)
    assert state["status"] == "failed"
    assert state["stages"]["resize"]["status"] == "skipped"


def test_concurrent_stages_lose_no_entry(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    planned(layout)

    def work(name: str) -> None:
        with runs.stage_record(layout, "r1", name, name):
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [f"s{n}" for n in range(20)]))
    stages = manifest(layout)["stages"]
    assert {name for name, entry in stages.items() if entry["status"] == "success"} == {
        f"s{n}" for n in range(20)
    }


def test_run_ids_sort_by_time_and_taken_ones_are_refused(tmp_path: Path) -> None:
    first = runs.new_run_id(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "ffffffff-1")
    second = runs.new_run_id(datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC), "00000000-1")
    assert first < second
    layout = Layout(root=tmp_path)
    runs.refuse_existing(layout, "r1")
    planned(layout)
    with pytest.raises(ConfigError, match="'r1' is taken"):
        runs.refuse_existing(layout, "r1")


def test_a_stage_without_its_pointer_is_unfinished_when_its_run_is_closed(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    planned(layout)
    for name in STAGES:
        with runs.stage_record(layout, "r1", name, name):
            pass
    with runs._manifest(layout, "r1") as state:
        state["stages"]["fetch"]["pointer"] = {"pointer_path": "outputs/pointers/x.json"}
        state["stages"]["split"]["pointer"] = {"pointer_path": None}
    runs.close_run(layout, "r1", "cancelled", "The run was interrupted.")
    statuses = {name: entry["status"] for name, entry in manifest(layout)["stages"].items()}
    assert statuses == {"fetch": "success", "split": "cancelled", "resize": "cancelled"}
    assert manifest(layout)["status"] == "cancelled"


def test_a_signal_while_the_manifest_is_written_comes_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(root=tmp_path)
    planned(layout)
    write, calls = runs.write_json, 0

    def interrupted(path: Path, value: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGINT)
        write(path, value)

    monkeypatch.setattr(runs, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt), runs.stage_record(layout, "r1", "fetch", "fetch"):
        pass
    assert manifest(layout)["stages"]["fetch"]["status"] == "success"
