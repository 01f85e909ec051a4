from __future__ import annotations

import json
from pathlib import Path

import pytest

from brainmri_core.config import STAGES
from brainmri_core.gc import collect_garbage
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import latest_pointer, read_pointer
from brainmri_core.project.pointers import POINTER_TYPES
from brainmri_core.verify import verify
from tests.counts import trials
from tests.faults.fault_case import tally
from tests.faults.launches import OTHER, PHANTOM, make_home
from tests.faults.signals_case import PIPELINE, manifest
from tests.faults.tiny import POINTERS, launch_file
from tests.faults.warm import Warm

pytestmark = pytest.mark.training

TOGETHER = trials(2, 15)
WHOLE = trials(1, 3)
SHARED = 10
LINKS = {
    "split": "fetch_pointer",
    "resize": "mapping_pointer",
    "validate": "pack_pointer",
    "train": "pack_pointer",
}


def history(layout: Layout, dataset: str) -> dict[str, dict[str, str]]:
    """Return, by stage and run id, the content hash of every history copy."""
    found: dict[str, dict[str, str]] = {}
    for stage, kind in POINTERS.items():
        folder = layout.pointer_dir(kind.kind, dataset) / "history"
        pointers = [read_pointer(layout, kind, path) for path in sorted(folder.glob("*.json"))]
        found[stage] = {pointer.run_id: pointer.content_hash for pointer in pointers}
        assert len(found[stage]) == len(pointers), f"{stage}: two history copies of one run"
    return found


def check(layout: Layout, dataset: str, runs: dict[str, str], stages: list[str]) -> list[str]:
    """Return what is torn, mixed or missing after runs of a data set; `runs` maps run ids to variants."""
    problems = [problem.message for problem in verify(layout).problems]
    copies = history(layout, dataset)
    for stage in stages:
        missing = sorted(set(runs) - set(copies[stage]))
        problems += [f"{stage}: the run {run_id} left no history copy" for run_id in missing]
        newest = latest_pointer(layout, POINTERS[stage], dataset)
        if newest is None or newest.run_id not in runs:
            problems.append(f"{stage}: latest.json is {newest}")
        by_variant: dict[str, set[str]] = {}
        for run_id in set(runs) - set(missing):
            by_variant.setdefault(runs[run_id], set()).add(copies[stage][run_id])
        if (
            stage == "validate"
        ):  # its report also counts what moved since the split before, whichever run made that
            continue
        problems += [
            f"{stage}: {name} gave {hashes}" for name, hashes in by_variant.items() if len(hashes) > 1
        ]
    for run_id in runs:
        found = manifest(layout.root, run_id)
        if found.get("status") != "success" or sorted(found["stages"]) != sorted(stages):
            problems.append(f"the manifest of {run_id} says {found.get('status')}")
            continue
        for stage, link in LINKS.items():
            if stage in stages and stage != "fetch":
                value = json.loads((layout.root / found["stages"][stage]["pointer"][link]).read_text())
                if value["run_id"] != run_id:
                    problems.append(f"{stage} of {run_id} read what {value['run_id']} made")
    return problems


def project_of(folder: Path, trial: int, runs: dict[str, str]) -> tuple[Path, dict[str, str]]:
    """Return a trial's folder and the runs before it there: ten trials share one, or the checks take longer each time."""
    place = folder / f"from-{trial - trial % SHARED}"
    if place.exists():
        return place, runs
    make_home(place)
    return place, {}


def together(
    warm: Warm, folder: Path, runs: dict[str, str], stages: list[str] | None, **changes: object
) -> list[str]:
    """Start runs at the same moment, wait for all, and return those that failed."""
    started = {}
    for run_id, variant in runs.items():
        config = launch_file(folder, variant, **changes)
        started[run_id] = warm.start(PIPELINE, str(folder), str(config), run_id, stages)
    return [f"{run_id} failed: {warm.log(item)}" for run_id, item in started.items() if warm.wait(item)]


@pytest.mark.full
def test_two_runs_of_one_partition_started_together_mix_nothing(warm: Warm, tmp_path: Path) -> None:
    stages = ["fetch", "split", "resize"]
    runs: dict[str, str] = {}
    results = []
    for trial in range(TOGETHER):
        folder, runs = project_of(tmp_path, trial, runs)
        layout = Layout(root=folder / "project")
        pair = {f"a{trial}": "old", f"b{trial}": "new" if trial % 2 else "old"}
        problems = together(warm, folder, pair, stages)
        runs |= pair
        results.append({"problems": problems + check(layout, PHANTOM, runs, stages)})
    tally("two runs of one partition", "fetch to resize", results)
    assert not any(item["problems"] for item in results), "\n".join(
        text for item in results for text in item["problems"]
    )
    assert collect_garbage(layout).results == []


@pytest.mark.full
def test_runs_of_two_partitions_started_together_mix_nothing(warm: Warm, tmp_path: Path) -> None:
    stages = ["fetch", "split", "resize"]
    runs: dict[str, str] = {}
    results = []
    for trial in range(TOGETHER):
        folder, runs = project_of(tmp_path, trial, runs)
        layout = Layout(root=folder / "project")
        pair = {f"a{trial}": "old", f"o{trial}": "new"}
        problems = together(warm, folder, pair, stages)
        runs |= pair
        for dataset, variant in ((PHANTOM, "old"), (OTHER, "new")):
            theirs = {run_id: found for run_id, found in runs.items() if found == variant}
            problems += check(layout, dataset, theirs, stages)
        results.append({"problems": problems})
    tally("runs of two partitions", "fetch to resize", results)
    assert not any(item["problems"] for item in results), "\n".join(
        text for item in results for text in item["problems"]
    )


@pytest.mark.full
def test_two_whole_pipelines_of_one_partition_started_together(warm: Warm, tmp_path: Path) -> None:
    make_home(tmp_path)
    layout = Layout(root=tmp_path / "project")
    runs: dict[str, str] = {}
    results = []
    for trial in range(WHOLE):
        pair = {f"a{trial}": "old", f"b{trial}": "new"}
        problems = together(warm, tmp_path, pair, None)
        runs |= pair
        results.append({"problems": problems + check(layout, PHANTOM, runs, list(STAGES))})
    tally("two whole pipelines of one partition", "all", results)
    assert not any(item["problems"] for item in results), "\n".join(
        text for item in results for text in item["problems"]
    )
    assert set(POINTER_TYPES) > {kind.kind for kind in POINTERS.values()}
