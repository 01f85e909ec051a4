from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from brainmri_core.project.catalogue import DatasetEntry, load_catalogue
from brainmri_core.project.layout import ARCHIVES_VARIABLE, ROOT_VARIABLE
from brainmri_core.project.pointers import BatchPredictionPointer, CheckpointPointer, FetchPointer
from brainmri_core.verify import verify
from brainmri_dagster.code_location import defs
from brainmri_dagster.defs import incoming
from brainmri_dagster.defs.incoming import incoming_images
from brainmri_dagster.running import stage_run
from tests.dagster.conftest import PHANTOM, Workbench, checks_of, failure_of

pytestmark = pytest.mark.training

INBOX = "figshare/1512427"  # any partition: its catalogue entry is replaced


@pytest.fixture
def inbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a data set without labels."""
    entry = DatasetEntry(key=INBOX, source="archive", labelled=False)
    known = load_catalogue() | {INBOX: entry}
    for module in (stage_run, incoming):
        monkeypatch.setattr(module, "catalogue", lambda: known)
    folder = tmp_path / "archives" / "1512427"
    folder.mkdir(parents=True)
    monkeypatch.setenv(ARCHIVES_VARIABLE, str(folder.parent))
    return folder


def filled(bench: Workbench, folder: Path, count: int) -> None:
    raw = bench.pointer("raw_dataset")
    assert isinstance(raw, FetchPointer)
    source = bench.layout.absolute(raw.dataset_root)
    for number, path in enumerate(sorted(source.glob("T*ing/**/*.jpg"))[:count]):
        shutil.copyfile(path, folder / f"{number:03d}.jpg")


def numbers_of(made: dg.AssetMaterialization) -> dict[str, float]:
    return {
        name: float(entry.value)  # type: ignore[arg-type]
        for name, entry in made.metadata.items()
        if isinstance(entry, dg.IntMetadataValue | dg.FloatMetadataValue)
    }


def test_an_unlabelled_folder_is_fetched_predicted_and_checked(evaluated: Workbench, inbox: Path) -> None:
    filled(evaluated, inbox, 40)
    result = evaluated.done(["raw_dataset", "batch_predictions"], partition=INBOX)
    pointer = evaluated.pointer("batch_predictions", INBOX)
    checkpoint = evaluated.pointer("model_checkpoint")
    assert isinstance(pointer, BatchPredictionPointer)
    assert isinstance(checkpoint, CheckpointPointer)
    assert (pointer.images, pointer.unusable, pointer.trained_on) == (40, 0, PHANTOM)
    assert pointer.checkpoint_pointer == checkpoint.pointer_path
    made = evaluated.newest("batch_predictions", INBOX)
    numbers = numbers_of(made)
    assert numbers["images"] == 40
    assert all(math.isfinite(value) for value in numbers.values())
    check = checks_of(result)["drift"]
    assert check.severity == dg.AssetCheckSeverity.WARN
    assert check.metadata["partition"].value == INBOX
    assert not verify(evaluated.layout).problems
    manifest = next(
        (evaluated.layout.root / "outputs/orchestrator").glob(f"{pointer.run_id}/run_manifest.json")
    )
    entry = json.loads(manifest.read_text())["stages"]["batch_predict"]
    assert (entry["status"], entry["metrics"]["images"]) == ("success", 40)
    assert pointer.predictions in entry["output_hashes"]


@pytest.mark.parametrize(
    "asset", ["dataset_split", "resized_images", "model_checkpoint", "evaluation", "champion"]
)
def test_assets_that_need_labels_refuse_such_a_data_set_in_one_sentence(
    evaluated: Workbench, inbox: Path, asset: str
) -> None:
    said = failure_of(evaluated.run([asset], partition=INBOX))
    assert said.startswith(
        f"The data set {INBOX} is not labelled, and the asset {asset} needs labels; predict its"
    )


def test_the_model_in_use_predicts_its_own_data_set_in_the_run_that_crowns_it(evaluated: Workbench) -> None:
    result = evaluated.done(["champion", "batch_predictions"])
    pointer = evaluated.pointer("batch_predictions")
    assert isinstance(pointer, BatchPredictionPointer)
    assert pointer.trained_on == PHANTOM
    steps = [event.step_key for event in result.all_events if event.is_step_success]
    assert steps == ["champion", "batch_predictions"]


def test_without_a_fetched_folder_it_says_how_to_get_one(evaluated: Workbench, inbox: Path) -> None:
    other = "masoudnickparvar/brain-tumor-mri-dataset"
    said = failure_of(evaluated.run(["batch_predictions"], partition=other))
    assert (
        said
        == f"There is no fetched data set of {other} yet; make it with `brainmri fetch --dataset {other}`."
    )


def test_a_checkpoint_that_is_gone_is_said(evaluated: Workbench, inbox: Path) -> None:
    filled(evaluated, inbox, 3)
    said = failure_of(
        evaluated.run(
            ["raw_dataset", "batch_predictions"], "batch_predict.checkpoint=gone.pth", partition=INBOX
        )
    )
    assert said.endswith("gone.pth does not exist; train a model or name another file.")


@pytest.fixture
def watched(inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "project"))
    return inbox


def look(instance: dg.DagsterInstance, before: dg.SensorResult | None = None) -> dg.SensorResult:
    time.sleep(0.01)
    context = dg.build_sensor_context(
        instance=instance, cursor=before.cursor if before else None, definitions=defs
    )
    result = incoming_images(context)
    assert isinstance(result, dg.SensorResult)
    return result


def keys_of(answer: dg.SensorResult) -> list[str]:
    return [str(request.run_key) for request in answer.run_requests or []]


def write(folder: Path, name: str, text: str = "x") -> None:
    (folder / name).write_text(text)


def test_a_file_is_requested_once_and_after_two_looks_that_found_it_unchanged(watched: Path) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        empty = look(instance)
        assert "nothing new" in empty.skip_reason.skip_message
        write(watched, "a.png")
        first = look(instance, empty)
        assert not first.run_requests
        assert "1 file may still be changing" in first.skip_reason.skip_message
        second = look(instance, first)
        (request,) = second.run_requests
        assert request.partition_key == INBOX
        assert not look(instance, second).run_requests
        assert not look(instance, look(instance, second)).run_requests
        write(watched, "b.png")
        third = look(instance, look(instance, second))
        assert len(keys_of(third)) == 1
        assert keys_of(third) != keys_of(second)


def test_a_file_that_is_being_written_waits_and_keeps_no_other_waiting(watched: Path) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        write(watched, "whole.png")
        write(watched, "growing.png")
        answer = look(instance)
        requested = []
        for step in range(4):
            with (watched / "growing.png").open("a") as file:
                file.write("more" * step)
            os.utime(watched / "growing.png")
            answer = look(instance, answer)
            requested += answer.run_requests or []
        assert len(requested) == 1
        limit = requested[0].run_config["ops"]["raw_dataset"]["config"]["modified_before"]
        assert (watched / "whole.png").stat().st_mtime <= limit < (watched / "growing.png").stat().st_mtime
        assert len(keys_of(look(instance, answer))) == 1, "it was left alone for once"


def test_a_file_of_the_same_size_with_another_time_has_changed(watched: Path) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        write(watched, "a.png")
        os.utime(watched / "a.png", (1000, 1000))
        first = look(instance)
        os.utime(watched / "a.png", (2000, 2000))
        assert not look(instance, first).run_requests


def test_a_file_dated_in_the_future_is_not_taken_and_it_is_said(watched: Path) -> None:
    """Fetch could not tell it from one that is still being written."""
    with dg.DagsterInstance.ephemeral() as instance:
        write(watched, "a.png")
        os.utime(watched / "a.png", (4e9, 4e9))
        answer = look(instance, look(instance, look(instance)))
        assert not answer.run_requests
        assert "1 file may still be changing" in answer.skip_reason.skip_message


def test_what_systems_leave_behind_starts_nothing(watched: Path) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        for name in (".DS_Store", "._a.png", ".upload.png", "Thumbs.db"):
            write(watched, name)
        assert "nothing new" in look(instance, look(instance)).skip_reason.skip_message


def test_new_files_wait_for_a_run_at_work_on_the_folder(watched: Path) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        write(watched, "a.png")
        first = look(instance)
        run = instance.create_run_for_job(
            defs.resolve_job_def("incoming"),
            tags={"dagster/partition": INBOX},
            status=dg.DagsterRunStatus.STARTED,
        )
        busy = look(instance, first)
        assert not busy.run_requests
        assert "1 new file waiting for the present run to end" in busy.skip_reason.skip_message
        instance.report_run_canceled(run)
        assert len(keys_of(look(instance, busy))) == 1


def test_a_missing_folder_is_said_and_the_sensor_is_off_until_switched_on(
    watched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.rmdir()
    with dg.DagsterInstance.ephemeral() as instance:
        assert look(instance).skip_reason.skip_message == f"{INBOX}: its folder does not exist"
        monkeypatch.setattr(incoming, "catalogue", load_catalogue)
        assert look(instance).skip_reason.skip_message == "There is no data set without labels."
    assert incoming_images.default_status == dg.DefaultSensorStatus.STOPPED


def test_the_request_of_the_sensor_runs_and_takes_what_it_was_made_for(
    evaluated: Workbench, inbox: Path
) -> None:
    filled(evaluated, inbox, 3)
    for path in inbox.iterdir():
        os.utime(path, (1000, 1000))
    with dg.DagsterInstance.ephemeral() as instance:
        answer = look(instance, look(instance))
    (request,) = answer.run_requests
    assert dg.validate_run_config(defs.resolve_job_def("incoming"), request.run_config)
    (inbox / "late.jpg").write_bytes((inbox / "000.jpg").read_bytes()[:500])
    os.utime(inbox / "late.jpg", (time.time() + 60,) * 2)
    given: dict[str, Any] = request.run_config["ops"]["raw_dataset"]["config"]
    evaluated.done(
        ["raw_dataset", "batch_predictions"],
        f"fetch.modified_before={given['modified_before']!r}",
        partition=INBOX,
    )
    pointer = evaluated.pointer("batch_predictions", INBOX)
    assert isinstance(pointer, BatchPredictionPointer)
    assert (pointer.images, pointer.unusable) == (3, 0)
