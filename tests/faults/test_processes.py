from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from brainmri_core.project.layout import Layout
from brainmri_core.verify import verify
from tests.counts import PATIENCE_S, trials
from tests.e2e.conftest import Server, make_project, serve
from tests.faults.fault_case import tally
from tests.faults.launches import make_home
from tests.faults.signals_case import PIPELINE, children_of, manifest
from tests.faults.tiny import launch_file
from tests.faults.warm import Warm

pytestmark = pytest.mark.training

STAGES = ["fetch", "split", "resize", "validate", "train", "evaluate"]
LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } } }
}
"""


def until(condition: Any, what: str, timeout: float = PATIENCE_S) -> Any:
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} took longer than {timeout} s"
        time.sleep(0.05)
    return found


def newest_change(root: Path) -> float:
    return max(path.lstat().st_mtime for path in root.rglob("*"))


@pytest.mark.full
@pytest.mark.parametrize("stage", trials(["split", "train"], list(STAGES)))
def test_a_killed_run_leaves_no_process_and_its_pool_slot_does_not_block_the_next(
    warm: Warm, tmp_path: Path, stage: str
) -> None:
    make_home(tmp_path)
    config = str(launch_file(tmp_path, "old"))
    root = tmp_path / "project"
    started = warm.start(PIPELINE, str(tmp_path), config, "killed")
    running = f"{stage} to begin"
    until(
        lambda: manifest(root, "killed").get("stages", {}).get(stage, {}).get("status") == "running", running
    )
    os.kill(started[0], signal.SIGKILL)
    assert warm.wait(started) == -signal.SIGKILL
    until(lambda: not children_of(started[0]), "the end of the killed run's processes")
    with dg.DagsterInstance.from_config(str(tmp_path / "home")) as instance:
        pool = "accelerator" if stage in ("train", "evaluate") else "dataset"
        slots = instance.event_log_storage.get_concurrency_info(pool)
        assert slots.active_slot_count == 1, "no slot leaked: the test shows nothing"
    changed = newest_change(root)
    again = warm.start(PIPELINE, str(tmp_path), config, "next")
    assert warm.wait(again) == 0, warm.log(again)
    found = manifest(root, "killed")
    problems = [problem.message for problem in verify(Layout(root=root)).problems]
    if found["status"] != "failed" or "process of the run died" not in found["stages"][stage]["error"]:
        problems.append(f"the manifest says {found}")
    tally("kill -9 of the run process", stage, [{"problems": problems}])
    assert problems == []
    assert manifest(root, "next")["status"] == "success"
    assert changed > 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A webserver and daemon on a project of their own."""
    yield from serve(make_project(tmp_path))


@pytest.mark.slow
@pytest.mark.e2e
def test_under_the_daemon_run_and_step_are_one_process_and_its_death_is_recorded(server: Server) -> None:
    first = launch(server, {"model_checkpoint": {"config": {"loop": {"epochs": 1000}}}})
    root = server.project.root
    until(lambda: stage_of(server, "train") == "running", "training to begin")
    until(lambda: list((root / "models").rglob("last.pth")), "the first epoch to be saved")
    (run,) = server.runs()
    process = next(tag["value"] for tag in run["tags"] if tag["key"] == "brainmri/process")
    worker = int(process.rsplit(":", 2)[1])
    stage_pid = server.project.manifests()[0]["stages"]["train"]["pid"]
    assert stage_pid == worker, "the step runs in the process of its run"
    os.kill(worker, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{worker}").exists() or "Z" in state(worker), "the end of the worker")
    before = newest_change(root / "models")
    time.sleep(5)
    assert newest_change(root / "models") == before, "something goes on writing"
    until(lambda: status(server, first) == "FAILURE", "the dead run to be closed", 300)
    second = launch(server, {})
    until(lambda: status(server, second) in ("SUCCESS", "FAILURE"), "the next run", 900)
    assert status(server, second) == "SUCCESS"
    assert server.project.manifests()[0]["status"] == "failed"
    assert verify(Layout(root=root)).problems == []
    tally("kill -9 of a run under the daemon", "train", [{"problems": []}])


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def stage_of(server: Server, stage: str) -> str:
    found = server.project.manifests()
    return str(found[0]["stages"].get(stage, {}).get("status")) if found else ""


def status(server: Server, run_id: str) -> str:
    return str(next(run["status"] for run in server.runs() if run["runId"] == run_id))


def launch(server: Server, ops: dict[str, Any]) -> str:
    selector = {
        "repositoryLocationName": "brainmri",
        "repositoryName": "__repository__",
        "jobName": "pipeline",
    }
    tags = [{"key": "dagster/partition", "value": "brainmri/phantom"}]
    params = {
        "selector": selector,
        "runConfigData": {"ops": ops} if ops else {},
        "mode": "default",
        "executionMetadata": {"tags": tags},
    }
    answer = server.query(LAUNCH, {"params": params})["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return str(answer["run"]["runId"])
