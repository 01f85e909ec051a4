from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from brainmri_core.errors import IntegrityError
from brainmri_core.gc import collect_garbage, remove_leftovers
from brainmri_core.learning.encoder import RECORD_NAME
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import latest_pointer
from brainmri_core.project.pointers import PackPointer
from brainmri_core.project.run_record import stage_record
from brainmri_core.studies.record import OUTCOMES_FOLDER, REPORT_FILE
from brainmri_core.system.locks import exclusive
from brainmri_core.system.storage import atomic_file, remove_folder, staging_folder
from brainmri_core.verify import verify
from tests import ROOT
from tests.core.studies.study_case import DATASET, HERE, work
from tests.faults.tiny import PHANTOM, configuration, run_stage

pytestmark = pytest.mark.training


@pytest.fixture
def layout(finished: Layout) -> Layout:
    return finished


def tree(layout: Layout) -> set[str]:
    return {
        path.relative_to(layout.root).as_posix()
        for path in layout.root.rglob("*")
        if ".locks" not in path.parts
    }


def leave(layout: Layout, *names: str) -> list[Path]:
    """Copy result folders under the run id of a run that left no pointer."""
    left = []
    for name in names:
        source = next(path for path in sorted((layout.root / name).glob("*")) if path.is_dir())
        left.append(Path(shutil.copytree(source, source.with_name("crashed"))))
        if (left[-1] / "best.pth").exists():
            (left[-1] / "best.pth").write_bytes(b"weights that no pointer names")
    return left


RESULTS = (
    f"data/training_resized/{PHANTOM}",
    f"outputs/mappings/{PHANTOM}",
    f"outputs/validation/{PHANTOM}",
    f"outputs/training/{PHANTOM}",
    f"outputs/evaluation/{PHANTOM}",
    f"models/{PHANTOM}",
    f"data/raw/{PHANTOM}",
)


@pytest.mark.full
def test_nothing_of_a_finished_project_is_garbage(layout: Layout) -> None:
    before = tree(layout)
    found = collect_garbage(layout, dry_run=False)
    assert (found.results, found.temporaries, found.size) == ([], [], 0)
    assert tree(layout) == before


def test_results_without_a_pointer_go_and_only_they(layout: Layout) -> None:
    before = tree(layout)
    left = leave(layout, *RESULTS)
    listed = collect_garbage(layout)
    assert sorted(listed.results) == sorted(left)
    assert listed.size > 1_000_000
    assert "crashed" in {path.name for path in listed.results}
    assert all(path.is_dir() for path in left), "a dry run removes nothing"
    assert collect_garbage(layout, dry_run=False) == listed
    assert tree(layout) == before
    assert verify(layout).problems == []


def test_what_only_the_history_or_a_manifest_refers_to_stays(layout: Layout) -> None:
    config = configuration("old", resize={"size": 48})
    run_stage(layout.root, "resize", "again", config)
    old = layout.root / "data/training_resized" / PHANTOM / "old-resize"
    assert collect_garbage(layout).results == []
    for history in (layout.root / "outputs/pointers/pack").rglob("*old-resize*.json"):
        history.unlink()
    assert collect_garbage(layout).results == [], "the manifest of the run still names it"
    shutil.rmtree(layout.run_dir("old-resize"))
    assert collect_garbage(layout).results == [old]


def test_the_result_of_a_running_stage_and_its_temporaries_stay(layout: Layout) -> None:
    with stage_record(layout, "crashed", "split", "dataset_split"):
        left = leave(layout, RESULTS[1], RESULTS[0])
        with atomic_file(left[0] / "x.json") as handle, staging_folder(left[0].with_name("y")) as staging:
            handle.write(b"{}")
            (staging / "samples.parquet").write_bytes(b"the result of a stage that is about to end")
            found = collect_garbage(layout, dry_run=False)
            assert found.results == []
            assert found.temporaries == []
            assert (staging / "samples.parquet").is_file()
    assert (left[0] / "x.json").is_file()
    left.append(left[0].with_name("y"))
    assert sorted(collect_garbage(layout).results) == sorted(left), "a run that left no pointer"


def test_the_whole_staging_of_a_killed_stage_is_one_temporary(layout: Layout) -> None:
    """A stage that is killed just before its rename leaves a folder that holds all that a result does."""
    staging = layout.root / "outputs/mappings" / PHANTOM / f".tmp-{os.getpid()}-{'0' * 12}"
    shutil.copytree(layout.root / "outputs/mappings" / PHANTOM / "old-split", staging)
    size = sum(path.stat().st_size for path in staging.iterdir())
    found = collect_garbage(layout, dry_run=False)
    assert (found.results, found.temporaries, found.size) == ([], [staging], size)
    assert not staging.exists()


def test_models_that_somebody_put_beside_the_results_stay(layout: Layout) -> None:
    places = [
        layout.root / "models/imported",
        layout.root / "models/from/elsewhere",
        layout.root / "models/from/elsewhere/second/try",
    ]
    for folder in places:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "best.pth").write_bytes(b"weights of somebody")
    (layout.root / "models/linked").symlink_to(layout.root / "models/brainmri")
    leave(layout, RESULTS[5])
    assert collect_garbage(layout, dry_run=False).results == [layout.root / "models" / PHANTOM / "crashed"]
    assert all((folder / "best.pth").is_file() for folder in places)


@pytest.mark.parametrize(
    ("recorded", "collected"),
    [
        ("data/../data/training_resized", "data/../data/training_resized"),
        ("data/../data/training_resized", "data/training_resized"),
        ("data/current", "data/training_resized"),
        ("data/training_resized", "data/current"),
    ],
)
def test_a_folder_by_another_name_is_the_same_folder(layout: Layout, recorded: str, collected: str) -> None:
    (layout.root / "data/current").symlink_to("training_resized")
    run_stage(layout.root, "resize", "again", configuration("old", resize={"out_dir": recorded, "size": 48}))
    (left,) = leave(layout, RESULTS[0])
    found = collect_garbage(layout, configuration("old", resize={"out_dir": collected}), dry_run=False)
    assert [path.resolve() for path in found.results] == [left]
    assert verify(layout).problems == []


@pytest.mark.parametrize("out_dir", ["../other/data/training_resized", "data/linked"])
def test_what_lies_outside_the_root_stays(layout: Layout, out_dir: str) -> None:
    other = Path(shutil.copytree(layout.root, layout.root.parent / "other"))
    (layout.root / "data/linked").symlink_to(other / "data/training_resized")
    config = configuration("old", resize={"out_dir": out_dir})
    assert collect_garbage(layout, config, dry_run=False).results == []
    assert verify(Layout(root=other)).problems == []


def test_what_crashed_folds_left_goes(layout: Layout) -> None:
    left = [
        layout.root / "models/cross_validation" / PHANTOM / "crashed",
        layout.root / "outputs/cross_validation" / PHANTOM / "folds/crashed-0",
    ]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / ("best.pth" if "models" in folder.parts else "samples.parquet")).write_bytes(b"x")
    assert sorted(collect_garbage(layout, dry_run=False).results) == sorted(left)


def test_outcomes_of_a_study_go_when_nothing_refers_to_them_and_trials_only_without_their_data(
    layout: Layout,
) -> None:
    pack = latest_pointer(layout, PackPointer, PHANTOM)
    assert pack is not None
    study = layout.study_dir(DATASET, "s")
    outcomes = [study / OUTCOMES_FOLDER / name for name in ("named", "crashed")]
    for data, garbage in ((pack.content_hash, [outcomes[1]]), ("of an older pack", [study])):
        work(layout, "r1", 1, identity=HERE.model_copy(update={"data": data}))
        for folder in outcomes:
            folder.mkdir(parents=True)
            (folder / REPORT_FILE).write_bytes(b"{}")
        with stage_record(layout, "x", "evaluate", "model_evaluation") as record:
            record.entry["output_paths"] = [layout.relative(outcomes[0] / REPORT_FILE)]
        assert collect_garbage(layout).results == [outcomes[1]], (
            "what a manifest names stays, with its trials"
        )
        if garbage == [study]:
            shutil.rmtree(layout.run_dir("x"))
        with stage_record(layout, "y", "tune", "tuning_study"):
            path = layout.run_dir("y") / "run_manifest.json"
            path.write_text(path.read_text().replace('"dataset": null', f'"dataset": "{DATASET}"'))
            assert collect_garbage(layout).results == []
        assert collect_garbage(layout, dry_run=False).results == garbage
        assert study.exists() == (garbage != [study])
        shutil.rmtree(study, ignore_errors=True)


def test_features_that_no_embeddings_name_go_when_no_run_of_their_data_is_at_work(layout: Layout) -> None:
    kept = layout.features_dir(PHANTOM, "abc")
    kept.mkdir(parents=True)
    (kept / RECORD_NAME).write_bytes(b"{}")
    with stage_record(layout, "x", "train", "model_checkpoint"):
        path = layout.run_dir("x") / "run_manifest.json"
        path.write_text(path.read_text().replace('"dataset": null', f'"dataset": "{PHANTOM}"'))
        assert collect_garbage(layout).results == []
    assert collect_garbage(layout).results == [kept]


@pytest.mark.full
def test_another_run_that_publishes_and_removes_folders_disturbs_nobody(layout: Layout) -> None:
    folder = layout.root / "outputs/mappings" / PHANTOM
    stopped = threading.Event()

    def churn() -> None:
        for number in itertools.count():
            with staging_folder(folder / f"run{number}") as staging:
                (staging / "x").write_bytes(b"x")
            remove_folder(folder / f"run{number}")
            if stopped.is_set():
                return

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(churn)
        for _ in range(60):
            remove_leftovers(layout)
            collect_garbage(layout)
        stopped.set()
        busy.result()


def test_a_fetch_that_is_running_keeps_its_data_set_and_nobody_waits_for_it(layout: Layout) -> None:
    (left,) = leave(layout, RESULTS[6])
    with exclusive(layout.lock("fetch", PHANTOM)):
        assert collect_garbage(layout).results == []
    assert collect_garbage(layout).results == [left]


def test_a_fetch_that_is_running_keeps_every_version_of_its_data_set(layout: Layout) -> None:
    leave(layout, RESULTS[6])
    with stage_record(layout, "x", "fetch", "raw_dataset"):
        path = layout.run_dir("x") / "run_manifest.json"
        path.write_text(path.read_text().replace('"dataset": null', f'"dataset": "{PHANTOM}"'))
        assert collect_garbage(layout).results == []
    assert len(collect_garbage(layout).results) == 1


def test_a_state_to_resume_from_stays(layout: Layout) -> None:
    state = layout.root / "models" / PHANTOM / "resume" / "abc"
    state.mkdir(parents=True)
    (state / "last.pth").write_bytes(b"x")
    (state.parent / "best.pth").write_bytes(b"of a run that somebody called resume")
    collect_garbage(layout, dry_run=False)
    assert (state / "last.pth").is_file()


def test_temporaries_of_dead_processes_go_and_files_of_the_data_set_stay(layout: Layout) -> None:
    places = [layout.root / "models", layout.run_dir("old-fetch"), layout.root / "data/raw" / PHANTOM]
    name = f".tmp-{os.getpid()}-{'0' * 12}"
    for folder in places:
        (folder / f"{name}-x").write_bytes(b"half")
        (folder / name).mkdir()
        (folder / name / "x").write_bytes(b"half")
    foreign = next((layout.root / "data/raw").rglob("Training")) / name
    foreign.write_bytes(b"an image of somebody with odd taste in names")
    assert len(collect_garbage(layout).temporaries) == 6
    assert len(remove_leftovers(layout)) == 6
    assert not [path for folder in places for path in folder.iterdir() if path.name.startswith(".tmp-")]
    assert foreign.is_file()


def test_what_a_killed_export_left_beside_its_folder_goes(layout: Layout) -> None:
    stale = layout.root / "data" / f".tmp-{os.getpid()}-{'0' * 12}"
    stale.mkdir()
    assert remove_leftovers(layout, configuration("old")) == [stale]
    assert (layout.root / "data" / "resized_tree").is_dir()


def test_an_unreadable_pointer_stops_it(layout: Layout) -> None:
    left = leave(layout, RESULTS[0])
    next((layout.root / "outputs/pointers/pack").rglob("latest.json")).write_text("{")
    with pytest.raises(IntegrityError, match="not valid JSON"):
        collect_garbage(layout, dry_run=False)
    assert left[0].is_dir()


def test_the_commands_list_then_remove_and_name_damage_by_exit_code(layout: Layout) -> None:
    (left,) = leave(layout, RESULTS[4])
    env = {**os.environ, "BRAINMRI_HOME": str(layout.root), "DAGSTER_HOME": str(layout.root / ".dagster")}

    def brainmri(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "brainmri_dagster.cli", *arguments]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)

    listed = brainmri("gc")
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.splitlines()[0] == layout.relative(left)
    assert "Would remove 1 results and 0 temporaries" in listed.stdout
    assert left.is_dir()
    removed = brainmri("gc", "--delete")
    assert "Removed 1 results" in removed.stdout
    assert not left.exists()
    fine = brainmri("verify")
    assert fine.returncode == 0, fine.stderr
    assert fine.stdout.startswith("All is well: 12 pointers, 6 runs")
    (layout.root / "data/training_resized" / PHANTOM / "old-resize" / "pack.npy").unlink()
    damaged = brainmri("verify")
    assert damaged.returncode == IntegrityError.exit_code == 6
    assert "old-resize/pack.npy is missing" in damaged.stdout
    assert "1 damaged" in damaged.stderr
