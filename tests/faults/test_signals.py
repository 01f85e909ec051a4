from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from brainmri_core.config import STAGES
from brainmri_core.layout import Layout
from brainmri_core.pointers import latest_pointer
from brainmri_core.verify import verify
from tests.faults.conftest import LONG
from tests.faults.launches import make_home
from tests.faults.test_crash import tally
from tests.faults.tiny import PHANTOM, POINTERS, launch_file
from tests.faults.warm import Warm

TRIALS = 40 if LONG else 4
PIPELINE = "tests.faults.launches:pipeline"


def children_of(session: int) -> list[str]:
    """Return the command lines of the live processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdigit() else []
            if fields and int(fields[3]) == session and fields[0] != "Z":
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except (OSError, ValueError):
            continue
    return found


def manifest(root: Path, run_id: str) -> dict[str, Any]:
    path = root / "outputs/orchestrator" / run_id / "run_manifest.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_interrupted_at_any_time_it_says_cancelled_and_can_go_on(
    warm: Warm, tmp_path: Path, number: signal.Signals
) -> None:
    make_home(tmp_path)
    config = str(launch_file(tmp_path, "new"))
    for run_id in ("first", "second"):  # only the first has no earlier split to compare its own with
        began = time.monotonic()
        undisturbed = warm.start(PIPELINE, str(tmp_path), config, run_id)
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
        idle = (
            not found or found["status"] == "success"
        )  # it had not begun, or was done: the signal's default action
        expected = (130, 0, -number) if idle else (130, 0)
        problems = [] if code in expected else [f"it ended with {code}: {warm.log(started)}"]
        problems += [f"left running: {line}" for line in children_of(started[0])]
        # "success": the signal found the pipeline done and its process about to end
        if code and found and found["status"] not in ("cancelled", "success"):
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
