"""Training inside the graph: what the event log shows, resuming by re-execution, and several processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from brainmri_core.project.logs import throttled
from brainmri_core.project.pointers import CheckpointPointer
from brainmri_dagster.code_location import defs
from brainmri_dagster.graph.run_config import run_config_for
from tests.counts import PATIENCE_S
from tests.dagster.conftest import PHANTOM, TINY, Workbench, failure_of

pytestmark = pytest.mark.training

TRAIN = ["model_checkpoint"]
TWO = ("train.distributed.nproc=2", "train.loop.precision=fp32")
WORKER = b"brainmri_dagster.training.worker"


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def training_job() -> dg.JobDefinition:
    """Return the job of the graph's training, as a run's process finds it."""
    return defs.resolve_job_def("retrain")


def workers(folder: Path) -> dict[int, int]:
    """Return the training processes of a project by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = dict(
                item.partition(b"=")[::2] for item in (path / "environ").read_bytes().split(b"\0")
            )
            if WORKER in (path / "cmdline").read_bytes() and environment.get(b"BRAINMRI_TEST") == os.fsencode(
                folder
            ):
                found[int(environment[b"RANK"])] = int(path.name)
    return found


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if (value := condition()) is not None:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen")


@contextlib.contextmanager
def signalled_in_training(bench: Workbench, rank: int, number: int) -> Iterator[None]:
    """Send a signal to one training process, after its first epoch."""

    def send() -> None:
        wait_for(lambda: epochs(bench) or None, "an epoch")
        os.kill(workers(bench.layout.root)[rank], number)

    thread = threading.Thread(target=send)
    thread.start()
    yield
    thread.join()


def epochs(bench: Workbench) -> int:
    """Count the epochs the newest run has logged."""
    logs = sorted((bench.layout.root / "outputs/orchestrator").glob("*/logs/train.log"))
    return logs[-1].read_text().count('"event": "epoch"') if logs else 0


def event_log(bench: Workbench, run_id: str) -> list[str]:
    return [entry.user_message for entry in bench.instance.all_logs(run_id)]


@pytest.fixture
def bench(packed: Workbench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workbench]:
    """The packed project, without the runs and half-finished trainings of other tests."""
    monkeypatch.setenv("BRAINMRI_TEST", str(packed.layout.root))
    for path in (packed.layout.root / "outputs/orchestrator").glob("*/logs/train.log"):
        path.unlink()
    yield packed
    assert workers(packed.layout.root) == {}, "a training process was left behind"


@pytest.mark.full
@pytest.mark.slow
def test_several_processes_report_through_the_event_log(bench: Workbench) -> None:
    result = bench.done(TRAIN, *TWO, "train.loop.epochs=2")
    lines = event_log(bench, result.dagster_run.run_id)
    assert any("processes=2" in line and "training model=" in line for line in lines)
    assert any("epoch epoch=1" in line and "val_macro_f1=" in line for line in lines)
    pointer = bench.pointer("model_checkpoint")
    assert isinstance(pointer, CheckpointPointer) and pointer.epochs_run == 2
    shown = bench.newest("model_checkpoint").metadata
    assert {"curves", "history", "checkpoint", "val_macro_f1"} <= set(shown)
    assert epochs(bench) == 2, "the run's own log has every epoch once"


@pytest.mark.full
def test_a_killed_process_fails_the_step_and_the_next_run_goes_on(bench: Workbench) -> None:
    slow = (*TWO, "train.loop.epochs=300", "train.data.seed=7")
    with signalled_in_training(bench, 1, signal.SIGKILL):
        failed = bench.run(TRAIN, *slow)
    assert not failed.success
    assert "Training process 1 of 2 (numbered from 0) died: Signal 9 (SIGKILL)" in failure_of(failed)
    assert workers(bench.layout.root) == {}
    (state,) = (bench.layout.root / "models").rglob("resume/*/last.pth")
    assert state.stat().st_size > 0
    for path in state.parent.iterdir():
        path.unlink()


@pytest.mark.full
def test_a_crash_in_one_process_shows_its_traceback(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The workers' interpreter is made to divide by zero when it gets a signal: a real exception, at any line.
    (tmp_path / "sitecustomize.py").write_text(
        "import signal\nsignal.signal(signal.SIGUSR1, lambda *_: 1 / 0)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with signalled_in_training(bench, 1, signal.SIGUSR1):
        failed = bench.run(TRAIN, *TWO, "train.loop.epochs=300", "train.data.seed=8")
    assert "Training process 1 of 2 (numbered from 0) died: ZeroDivisionError" in failure_of(failed)
    text = "\n".join(event_log(bench, failed.dagster_run.run_id))
    assert "Traceback (most recent call last)" in text
    assert "in run_epochs" in text, "the traceback leads to where it happened"


@pytest.mark.full
def test_a_mistake_found_by_the_processes_is_the_same_sentence(bench: Workbench) -> None:
    failed = bench.run(TRAIN, *TWO, "train.data.batch_size=1")
    assert failure_of(failed).startswith("train.data.batch_size 1 is less than train.distributed.nproc 2")


@pytest.mark.full
def test_processes_do_not_outlive_the_run_that_is_killed(bench: Workbench, tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    overrides = [*TINY, *TWO, f"paths.root={bench.layout.root}", "train.loop.epochs=300", "train.data.seed=9"]
    command = [sys.executable, "-m", "brainmri_dagster.cli", "train"]
    run = subprocess.Popen(
        [*command, *(word for item in overrides for word in ("-o", item))],
        env={**os.environ, "DAGSTER_HOME": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: epochs(bench) or None, "an epoch")
    assert sorted(workers(bench.layout.root)) == [0, 1]
    run.kill()
    run.wait()
    wait_for(lambda: True if workers(bench.layout.root) == {} else None, "the end of the processes")


@pytest.mark.full
def test_a_reexecution_from_failure_continues_the_training(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from brainmri_core.learning import loop

    validate, calls = loop.validate_weights, 0

    def fail(*arguments: Any) -> tuple[float, float, float]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("the machine has a bad day")
        return validate(*arguments)

    monkeypatch.setattr(loop, "validate_weights", fail)
    config = run_config_for(bench.config("train.loop.epochs=4", "train.data.seed=11"), TRAIN)
    settings: dict[str, Any] = {
        "job": dg.reconstructable(training_job),
        "instance": bench.instance,
        "tags": {"dagster/partition": PHANTOM},
        "run_config": {
            **config,
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        },
    }
    with dg.execute_job(**settings, asset_selection=[dg.AssetKey("model_checkpoint")]) as first:
        assert not first.success
        failed = first.run_id
    with dg.execute_job(
        **settings, reexecution_options=dg.ReexecutionOptions.from_failure(failed, bench.instance)
    ) as second:
        assert second.success
        again = second.run_id
    assert any("resumed epoch=3 batch=0" in line for line in event_log(bench, again))
    pointer = bench.pointer("model_checkpoint")
    assert isinstance(pointer, CheckpointPointer) and pointer.epochs_run == 4


def test_an_often_repeated_event_is_thinned_out_and_its_last_record_is_kept() -> None:
    seen: list[Any] = []
    now = 0.0
    sink = throttled(lambda record: seen.append((record["event"], record["n"])), "epoch", 5.0, lambda: now)
    for n in range(12):
        now = float(n)
        sink({"event": "epoch", "n": n})
    sink({"event": "trained", "n": 0})
    sink({"event": "trained", "n": 1})
    assert seen == [("epoch", n) for n in (0, 5, 10, 11)] + [("trained", 0), ("trained", 1)]
