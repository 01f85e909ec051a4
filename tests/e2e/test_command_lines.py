from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.counts import PATIENCE_S
from tests.e2e.conftest import PHANTOM, ROOT, SCREENSHOTS, Project, chromium

pytestmark = pytest.mark.e2e

STAGES = ["fetch", "split", "resize", "validate", "train", "evaluate"]


def test_definitions_validate_from_the_workspace(project: Project) -> None:
    done = project.dagster("definitions", "validate", "-w", "workspace.yaml")
    assert done.returncode == 0, done.stderr
    assert "All code locations passed validation" in done.stdout + done.stderr
    ours = [line for line in done.stderr.splitlines() if "Warning" in line and "superseded" not in line]
    assert not ours, ours


def test_a_partition_that_is_not_in_the_catalogue_is_refused_by_name(project: Project) -> None:
    module = ("-m", "brainmri_dagster.definitions")
    refused = project.dagster(
        "asset", "materialize", *module, "--select", "raw_dataset", "--partition", "bad/key"
    )
    assert refused.returncode == 1
    assert "`bad/key`" in refused.stderr.strip().splitlines()[-1]
    assert not project.root.exists()


@pytest.mark.full
@pytest.mark.slow
def test_one_dagster_command_goes_from_the_source_to_the_evaluation(project: Project) -> None:
    config = {"ops": {"model_checkpoint": {"config": {"loop": {"epochs": 1}, "optim": {"lr": 0.002}}}}}
    done = project.dagster(
        "asset",
        "materialize",
        "-m",
        "brainmri_dagster.definitions",
        "--select",
        "*",
        "--partition",
        PHANTOM,
        "--config-json",
        json.dumps(config),
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    (manifest,) = project.manifests()
    assert manifest["status"] == "success"
    assert list(manifest["stages"])[: len(STAGES)] == STAGES
    assert all(item["pointer"]["pointer_path"] for item in manifest["stages"].values())
    assert manifest["seed"] == 42
    folder = project.root / "outputs/orchestrator" / manifest["run_id"]
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["stages"][4]["config"]["optim"]["lr"] == 0.002
    assert plan["command"].startswith("dagster asset materialize")
    assert {path.stem for path in (folder / "logs").iterdir()} >= set(STAGES)
    assert {path.stem for path in folder.glob("*.yaml")} >= set(STAGES)
    for kind in ("fetch", "mapping", "pack", "validation", "checkpoint", "evaluation"):
        pointers = project.root / "outputs/pointers" / kind / PHANTOM
        assert (pointers / "latest.json").read_bytes() in [
            p.read_bytes() for p in (pointers / "history").iterdir()
        ]


@pytest.mark.full
def test_our_command_line_runs_the_graph_then_finds_nothing_to_do(project: Project) -> None:
    done = project.brainmri("pipeline", "--run-id", "first")
    assert done.returncode == 0, done.stderr
    assert "macro_f1" in done.stdout
    report = next(line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith("report: "))
    assert Path(report).stat().st_size < 10e6
    with chromium() as browser:
        browser.get(f"file://{report}")
        for width in (1600, 500):  # Chromium's windows are not narrower
            browser.set_window_size(width, 1000)
            assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
            SCREENSHOTS.mkdir(exist_ok=True)
            assert browser.save_screenshot(str(SCREENSHOTS / f"report-{width}.png"))
    assert "DEBUG" not in done.stderr, "Dagster's own lines stay off the console"
    refused = project.brainmri("pipeline", "--run-id", "first")
    assert refused.returncode == 2
    assert "The run id 'first' is taken" in refused.stderr
    again = project.brainmri("pipeline", "--stale-only")
    assert again.returncode == 0, again.stderr
    assert again.stdout == f"Everything of {PHANTOM} is up to date.\n"
    reseeded = project.brainmri("pipeline", "--stale-only", "--dry-run", "-o", "split.seed=9")
    assert "dataset_split: its configuration or code changed" in reseeded.stderr
    assert "raw_dataset" not in reseeded.stderr.replace("raw_dataset is made", "")
    assert len(project.manifests()) == 2, "the first run and the dry run"


def started_until(text: str, project: Project, *arguments: str) -> subprocess.Popen[str]:
    """Start our command line in a session of its own, and wait until its log says something."""
    program = [sys.executable, "-m", "brainmri_dagster.cli", *arguments]
    started = subprocess.Popen(
        program, cwd=ROOT, env=project.env, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert started.stderr is not None
    next(line for line in started.stderr if text in line)
    return started


def test_a_killed_run_is_closed_and_does_not_hold_up_the_next(project: Project) -> None:
    started = started_until("started", project, "fetch", "--run-id", "killed")
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    manifest = project.manifests()[0]
    assert manifest["status"] == "running"
    done = project.brainmri("fetch")
    assert done.returncode == 0, done.stderr
    manifest = next(item for item in project.manifests() if item["run_id"] == "killed")
    assert manifest["status"] == "failed"
    assert "process of the run died" in manifest["stages"]["fetch"]["error"]


@pytest.mark.full
def test_an_interrupted_training_ends_soon_and_says_so(project: Project) -> None:
    prepared = project.brainmri("pipeline", "--skip", "train", "--skip", "evaluate")
    assert prepared.returncode == 0, prepared.stderr
    started = started_until("epoch=3", project, "train", "--run-id", "stop", "-o", "train.loop.epochs=1000")
    os.kill(started.pid, signal.SIGINT)
    started.wait(PATIENCE_S)
    assert started.returncode == 130
    stage = next(item for item in project.manifests() if item["run_id"] == "stop")["stages"]["train"]
    assert stage["status"] == "cancelled"
    assert stage["exit_code"] == 130
    resume = list((project.root / "models").rglob("resume/*/last.pth"))
    assert resume, "what was learnt is kept"
