from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from brainmri_core.config import STAGES
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import latest_pointer
from brainmri_core.verify import verify
from tests.counts import rest, trials
from tests.faults.fault_case import tally
from tests.faults.launches import make_home
from tests.faults.signals_case import PIPELINE, children_of, manifest
from tests.faults.tiny import PHANTOM, POINTERS, launch_file
from tests.faults.warm import Warm

pytestmark = pytest.mark.training

TRIALS = trials(2, 16)


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *rest(signal.SIGTERM)],
    ids=["SIGINT", "SIGTERM"],
)
def test_interrupted_at_any_time_it_says_cancelled_and_can_go_on(
    warm: Warm, tmp_path: Path, number: signal.Signals
) -> None:
    make_home(tmp_path)
    config = str(launch_file(tmp_path, "new"))
    # The validation also tells what moved since the split before: without one, the first would say something else.
    for run_id, stages in (("split", ["fetch", "split"]), ("whole", None)):
        began = time.monotonic()
        undisturbed = warm.start(PIPELINE, str(tmp_path), config, run_id, stages)
        assert warm.wait(undisturbed) == 0, warm.log(undisturbed)
        whole_s = time.monotonic() - began
    layout = Layout(root=tmp_path / "project")
    wanted = {stage: latest_pointer(layout, POINTERS[stage], PHANTOM) for stage in STAGES}

    seed = random.SystemRandom().randrange(2**32)
    print("seed of the moments:", seed)
    moments = random.Random(seed)
    results = []
    for trial in range(TRIALS // 2):
        run_id = f"stop{trial}"
        started = warm.start(PIPELINE, str(tmp_path), config, run_id)
        time.sleep(moments.uniform(0.0, whole_s))
        os.kill(started[0], number)
        code = warm.wait(started)
        found = manifest(layout.root, run_id)
        # It had not begun, or was done and about to end: the signal's default action.
        idle = not found or all(entry["status"] == "success" for entry in found["stages"].values())
        expected = (130, 0, -number) if idle else (130, 0)
        problems = [] if code in expected else [f"it ended with {code}: {warm.log(started)}"]
        if not idle and warm.log(started).rstrip().endswith("KeyboardInterrupt"):
            problems.append(f"nothing caught the signal: {warm.log(started)}")
        problems += [f"left running: {line}" for line in children_of(started[0])]
        if code and not idle and found["status"] != "cancelled":
            problems.append(f"the manifest says {found}")
        problems += [problem.message for problem in verify(layout).problems]
        results.append({"problems": problems})
    again = warm.start(PIPELINE, str(tmp_path), config, "again")
    assert warm.wait(again) == 0, warm.log(again)
    for stage in STAGES:
        found_pointer = latest_pointer(layout, POINTERS[stage], PHANTOM)
        assert found_pointer is not None and wanted[stage] is not None
        assert found_pointer.run_id == "again"
        assert found_pointer.content_hash == wanted[stage].content_hash, stage
    tally(f"{number.name} at a random time", "all", results)
    assert [text for item in results for text in item["problems"]] == []


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("stage", ["split", "validate"])
def test_interrupted_between_pointer_and_end_of_stage_it_says_cancelled(
    warm: Warm, tmp_path: Path, number: signal.Signals, stage: str
) -> None:
    make_home(tmp_path)
    config = str(launch_file(tmp_path, "new"))
    started = warm.start(
        "tests.faults.launches:pipeline_stopped_after_pointer",
        str(tmp_path),
        config,
        "stop",
        stage,
        int(number),
    )
    assert warm.wait(started) == 130, warm.log(started)
    layout = Layout(root=tmp_path / "project")
    found = manifest(layout.root, "stop")
    stages = {name: entry["status"] for name, entry in found["stages"].items()}
    assert found["status"] == "cancelled"
    following = STAGES[
        STAGES.index(stage) + 1
    ]  # an asset that returned is done; one that yielded has not ended
    assert "cancelled" in (stages[stage], stages[following])
    assert list(stages.values()).count("cancelled") == 1 and stages["evaluate"] == "skipped"
    assert "interrupted; what was finished is kept" in warm.log(started)
    kept = latest_pointer(layout, POINTERS[stage], PHANTOM)
    assert kept is not None and kept.run_id == "stop"
    assert verify(layout).problems == []
