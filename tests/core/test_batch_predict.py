from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter

import brainmri_core.batch_predict as batch_module
from brainmri_core.batch_predict import batch_predict
from brainmri_core.classifier.reference import Reference, validation_reference
from brainmri_core.config.batch import BatchPredictConfig
from brainmri_core.config.data import FetchConfig
from brainmri_core.errors import ConfigError, IntegrityError, MissingUpstreamError, ModelError
from brainmri_core.evaluation.calibration import probabilities
from brainmri_core.evaluation.tested_model import validation_of
from brainmri_core.fetch import fetch
from brainmri_core.gc import collect_garbage
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.checkpoint import EnsembleRecord, MemberRecord
from brainmri_core.learning.ensemble import Ensemble, Member
from brainmri_core.learning.inference import predict_evenly
from brainmri_core.predict import Classifier
from brainmri_core.project.catalogue import DatasetEntry
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import (
    BatchPredictionPointer,
    CheckpointPointer,
    EvaluationPointer,
    FetchPointer,
)
from brainmri_core.project.sample_table import read_samples
from brainmri_core.system.checksums import sha256_file
from brainmri_core.system.json_files import read_json
from brainmri_core.verify import verify
from tests.core.evaluation_case import Case
from tests.core.images.medical_case import SECRET, dicom
from tests.counts import PATIENCE_S, rest
from tests.dask_case import Dask, dask

pytestmark = pytest.mark.training

INBOX = DatasetEntry(key="clinic/inbox", source="archive", labelled=False)


@pytest.fixture(scope="module", autouse=True)
def _evaluated(case: Case, pointer: EvaluationPointer) -> None:
    """The project knows the evaluation of its checkpoint."""
    write_pointer(case.job.layout, pointer)


@pytest.fixture
def inbox(tmp_path: Path, case: Case) -> Path:
    """A folder of 12 images of the training data's kind, of which nobody says what they show."""
    source = case.job.layout.absolute(case.fetched.dataset_root)
    folder = tmp_path / "inbox"
    folder.mkdir()
    for number, path in enumerate(sorted(source.glob("Testing/**/*.jpg"))[:12]):
        shutil.copyfile(path, folder / f"{number:02d}.jpg")
    return folder


def got(case: Case, folder: Path, run_id: str = "b1") -> FetchPointer:
    job = replace(case.job, entry=INBOX, run_id=run_id)
    return write_pointer(job.layout, fetch(FetchConfig(archive=str(folder)), job))


def predicted(case: Case, folder: Path, run_id: str, **settings: Any) -> BatchPredictionPointer:
    config = BatchPredictConfig.model_validate({"seed": 42, **settings})
    job = replace(case.job, entry=INBOX, run_id=run_id)
    case.records.clear()
    return write_pointer(job.layout, batch_predict(config, got(case, folder, run_id), job))


def table_of(case: Case, found: BatchPredictionPointer) -> pd.DataFrame:
    return pd.read_parquet(case.job.layout.absolute(found.predictions))


def report_of(case: Case, found: BatchPredictionPointer) -> dict[str, Any]:
    report = read_json(case.job.layout.absolute(found.report))
    assert isinstance(report, dict)
    return report


@pytest.mark.full
def test_workers_of_a_cluster_predict_the_same_to_the_bit_though_one_is_killed(
    case: Case, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (inbox / "05.jpg").write_bytes((inbox / "05.jpg").read_bytes()[:900])
    here = predicted(case, inbox, "here")
    shutil.rmtree(case.job.layout.absolute(here.folder).with_name("resume"))
    monkeypatch.setattr(batch_module, "_SHARD", 2)
    with dask(tmp_path / "dask", "one", "other") as cluster:
        job = cluster.job(replace(case.job, entry=INBOX), "there")
        killing = cluster.kill_in_mid_work(job.layout.shards)
        fetched = write_pointer(job.layout, fetch(FetchConfig(archive=str(inbox)), job))
        there = batch_predict(BatchPredictConfig(seed=42), fetched, job)
        killing.join()
        assert cluster.workers[0].wait() == -signal.SIGKILL
        assert said(cluster, "predicting")["to_do"] == 12
    first, second = (table_of(case, found).drop(columns="first_predicted_utc") for found in (here, there))
    assert (first["error"] == "").sum() == 11
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    reports = [report_of(case, found) for found in (here, there)]
    assert reports[0]["drift"] == reports[1]["drift"]


def said(case: Case | Dask, event: str) -> dict[str, Any]:
    return next(item for item in case.records if item["event"] == event)


def test_every_image_gets_the_answer_of_predict(case: Case, inbox: Path) -> None:
    found = predicted(case, inbox, "answers")
    table = table_of(case, found)
    assert table["path"].tolist() == [f"{number:02d}.jpg" for number in range(12)]
    classifier = Classifier.load(case.job.layout.absolute(case.checkpoint.checkpoint))
    assert classifier.temperature is not None
    for row, expected in zip(table.to_dict("records"), classifier.predict(inbox), strict=True):
        shares = {name: row[f"prob_{name}"] for name in classifier.classes}
        assert shares == pytest.approx(expected.probabilities, abs=1e-12)
        assert [row[f"logit_{name}"] for name in classifier.classes] == list(expected.logits)
        assert (row["predicted"], row["outlier"]) == (expected.predicted, expected.outlier)
        assert row["error"] == ""
    assert sum(found.predicted.values()) == found.images == 12
    assert found.flagged == table["outlier"].sum()
    assert found.trained_on == case.job.dataset


def test_a_file_that_cannot_be_used_costs_itself_only_and_is_named_as_in_the_folder(
    case: Case, inbox: Path
) -> None:
    (inbox / "05.jpg").write_bytes((inbox / "05.jpg").read_bytes()[:900])
    Image.new("L", (64, 64), 0).save(inbox / "blank.png")
    found = predicted(case, inbox, "unusable")
    errors = table_of(case, found).set_index("path")["error"]
    assert errors[errors != ""].index.tolist() == ["05.jpg", "blank.png"]
    assert errors["blank.png"].startswith("blank.png is blank")
    assert str(case.job.layout.root) not in "".join(errors)
    assert (found.images, found.unusable) == (13, 2)
    predicted(case, inbox, "unusable-again")
    assert said(case, "predicting")["to_do"] == 2, "a file that could not be used is tried again"
    assert table_of(case, found).loc[5, [f"prob_{name}" for name in case.pack.classes]].isna().all()


def test_a_folder_of_files_that_cannot_be_used_is_told_and_drift_says_why_not(
    case: Case, tmp_path: Path
) -> None:
    (tmp_path / "bad").mkdir()
    Image.new("L", (64, 64), 0).save(tmp_path / "bad/blank.png")
    found = predicted(case, tmp_path / "bad", "nothing")
    assert (found.images, found.unusable, found.drifted) == (1, 1, None)
    assert report_of(case, found)["drift"]["reason"] == "no image could be predicted"


KILLED = """
import os, signal, sys
from pathlib import Path
from brainmri_core import batch_predict
from brainmri_core.classifier.finished_work import FinishedWork
from brainmri_core.config.batch import BatchPredictConfig
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import StageLog
from brainmri_core.project.pointers import FetchPointer
from brainmri_core.project.pointer_store import latest_pointer
from tests.core.test_batch_predict import INBOX

batch_predict._PART = 4
add, parts = FinishedWork.add, []

def add_or_die(self, rows):
    if len(parts) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    parts.append(len(rows))
    add(self, rows)

FinishedWork.add = add_or_die
layout = Layout(root=Path(sys.argv[1]))
job = Job(layout, "killed", INBOX, StageLog("test", "killed", INBOX.key, []))
batch_predict.batch_predict(BatchPredictConfig(seed=42), latest_pointer(layout, FetchPointer, INBOX.key), job)
"""


@pytest.mark.full
def test_work_done_before_a_kill_is_not_done_again(case: Case, inbox: Path) -> None:
    for path in list(inbox.iterdir()):  # files no other test has predicted
        Image.open(path).convert("L").resize((90, 90)).save(path.with_suffix(".png"))
        path.unlink()
    got(case, inbox)
    root = case.job.layout.root
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(root)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (root / "outputs/batch_predictions/clinic/inbox/killed").exists()
    found = predicted(case, inbox, "resumed")
    assert (said(case, "predicting")["done_before"], said(case, "predicting")["to_do"]) == (8, 4)
    shutil.rmtree(root / "outputs/batch_predictions/clinic/inbox/resume")
    anew = predicted(case, inbox, "anew")
    assert said(case, "predicting")["done_before"] == 0
    tables = [table_of(case, item).drop(columns="first_predicted_utc") for item in (found, anew)]
    pd.testing.assert_frame_equal(*tables)
    assert report_of(case, anew)["drift"] == report_of(case, found)["drift"]
    assert anew.content_hash == found.content_hash


def test_only_the_new_images_of_a_grown_folder_are_predicted(case: Case, inbox: Path) -> None:
    predicted(case, inbox, "first")
    shutil.copyfile(inbox / "00.jpg", inbox / "zz.jpg")
    (inbox / "01.jpg").write_bytes((inbox / "02.jpg").read_bytes())
    (inbox / "03.jpg").unlink()
    found = predicted(case, inbox, "grown")
    assert (said(case, "predicting")["done_before"], said(case, "predicting")["to_do"]) == (10, 2)
    table = table_of(case, found).set_index("path")
    assert "03.jpg" not in table.index
    assert table.loc["01.jpg", "outlier_score"] == pytest.approx(table.loc["02.jpg", "outlier_score"])
    assert report_of(case, found)["reused"] == 10


def test_damaged_work_is_said_and_done_again(case: Case, inbox: Path) -> None:
    predicted(case, inbox, "whole")
    (part,) = (case.job.layout.root / "outputs/batch_predictions/clinic/inbox/resume").glob("*/*.parquet")
    part.write_bytes(part.read_bytes()[:100])
    predicted(case, inbox, "corrected")
    assert said(case, "predictions that a run left are damaged; they are made again")["file"] == part.name
    assert said(case, "predicting")["done_before"] == 0


def test_drift_is_measured_against_the_validation_images_and_found(case: Case, tmp_path: Path) -> None:
    source = case.job.layout.absolute(case.fetched.dataset_root)
    same, soft = tmp_path / "same", tmp_path / "soft"
    for folder in (same, soft):
        folder.mkdir()
    for number, path in enumerate(sorted(source.glob("T*ing/**/*.jpg"))[::2]):
        shutil.copyfile(path, same / f"{number}.jpg")
        Image.open(path).filter(ImageFilter.GaussianBlur(3)).save(soft / f"{number}.jpg", quality=95)
    usual, blurred = predicted(case, same, "same"), predicted(case, soft, "soft")
    assert usual.drifted == []
    assert blurred.drifted is not None
    assert "edges" in blurred.drifted
    drift = report_of(case, blurred)["drift"]
    assert "lower sharpness" in drift["shift"]["summary"]
    assert drift["shift"]["reference"] == "the validation images of brainmri/phantom"
    shares = report_of(case, usual)["drift"]["labels"]
    assert shares["estimated"] is None or sum(shares["estimated"].values()) == pytest.approx(1)


@pytest.mark.parametrize(("mirror", "several"), [(False, False), *rest((True, False), (True, True))])
def test_the_validation_images_are_predicted_once_and_as_any_image_is(
    case: Case, passes: list[int], mirror: bool, several: bool
) -> None:
    layout, classifier = (
        case.job.layout,
        Classifier.load(case.job.layout.absolute(case.checkpoint.checkpoint)),
    )
    inference = replace(classifier.inference, mirror=mirror)
    if several:
        members = [Member(inference.model, [0.1 * number], [1.0 + number]) for number in range(2)]
        record = MemberRecord(fold=0, checkpoint_pointer="p", checkpoint_sha256="0" * 64, temperature=1.0)
        ensemble = EnsembleRecord(members=[record] * 2, parameters=1, weights_bytes=4, forward_passes=2)
        meta = inference.meta.model_copy(update={"ensemble": ensemble})
        inference = replace(inference, model=Ensemble(members).eval(), meta=meta)
    found = validation_reference(inference, layout, case.job.log)
    assert isinstance(found, Reference)
    computed = len(passes)
    again = validation_reference(inference, layout, case.job.log)
    assert isinstance(again, Reference) and len(passes) == computed
    packed = read_samples(layout.absolute(case.pack.samples))
    packed = packed[packed["row"] >= 0].sort_values("row", ignore_index=True)
    rows = packed["row"].to_numpy()[validation_of(packed, inference.meta)]
    expected = predict_evenly(
        inference.model, open_pack(layout, case.pack), rows, inference.meta.preprocessing, device=inference.device,
        batch_size=16, precision=inference.precision, tta=mirror,
    )  # fmt: skip
    wanted = probabilities(expected.logits, inference.temperature or 1.0)
    for reference in (found, again):
        np.testing.assert_allclose(reference.probabilities, wanted, atol=1e-5)
        np.testing.assert_allclose(reference.images.embeddings, expected.embeddings, rtol=1e-4, atol=1e-4)


@pytest.mark.full
def test_drift_of_what_is_new_does_not_hide_among_the_older_images(case: Case, tmp_path: Path) -> None:
    source = case.job.layout.absolute(case.fetched.dataset_root)
    folder = tmp_path / "growing"
    folder.mkdir()
    paths = sorted(source.glob("T*ing/**/*.jpg"))
    for number, path in enumerate(paths):
        shutil.copyfile(path, folder / f"{number}.jpg")
    usual = predicted(case, folder, "usual", drift_images=30)
    for number, path in enumerate(paths[::3]):
        Image.open(path).filter(ImageFilter.GaussianBlur(3)).save(folder / f"new{number}.jpg", quality=95)
    grown = predicted(case, folder, "softer", drift_images=30)
    new = len(paths[::3])
    assert report_of(case, grown)["newest"]["images"] == new > 30
    assert (usual.drifted, report_of(case, grown)["reused"]) == ([], len(paths))
    assert "edges" in (grown.drifted or [])
    shutil.copyfile(paths[0], folder / "one-more.jpg")
    last = predicted(case, folder, "last", drift_images=30)
    assert report_of(case, last)["newest"]["images"] == 30, "one alone would tell nothing"
    assert "edges" in (last.drifted or [])


def test_a_checkpoint_without_evaluation_or_training_data_says_what_cannot_be_told(
    case: Case, inbox: Path, tmp_path: Path
) -> None:
    alone = replace(
        case, job=replace(case.job, layout=case.job.layout.model_copy(update={"root": tmp_path / "p"}))
    )
    file = tmp_path / "elsewhere.pth"
    shutil.copyfile(case.job.layout.absolute(case.checkpoint.checkpoint), file)
    found = predicted(alone, inbox, "bare", checkpoint=str(file))
    report = report_of(alone, found)
    assert (found.flagged, found.drifted, found.checkpoint_pointer) == (None, None, None)
    assert report["model"]["temperature"] is None
    assert "probabilities are not calibrated" in report["caveats"][1]
    assert (
        report["drift"]["reason"] == "the images that the checkpoint was validated on are not in this project"
    )
    assert table_of(alone, found)["outlier"].isna().all()
    assert found.model_sha256 == sha256_file(file)


def test_no_model_a_missing_one_and_several_are_refused_with_what_to_do(
    case: Case, inbox: Path, tmp_path: Path
) -> None:
    empty = replace(
        case, job=replace(case.job, layout=case.job.layout.model_copy(update={"root": tmp_path / "p"}))
    )
    with pytest.raises(MissingUpstreamError, match=r"no model in .* yet; make one with `brainmri pipeline`"):
        predicted(empty, inbox, "none")
    with pytest.raises(MissingUpstreamError, match="no checkpoint of owner/slug yet"):
        predicted(case, inbox, "none", model_of="owner/slug")
    with pytest.raises(ModelError, match=r"gone.pth does not exist"):
        predicted(case, inbox, "none", checkpoint=str(tmp_path / "gone.pth"))
    layout = empty.job.layout
    record = case.checkpoint.model_copy(update={"pointer_path": None})
    write_pointer(layout, record)
    with pytest.raises(IntegrityError, match=r"best.pth is missing; run the stage that makes it again"):
        predicted(empty, inbox, "gone")
    weights = layout.absolute(record.checkpoint)
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"x")
    with pytest.raises(IntegrityError, match="checkpoint"):
        predicted(empty, inbox, "changed")
    write_pointer(layout, CheckpointPointer.model_validate({**record.model_dump(), "dataset": "owner/other"}))
    with pytest.raises(
        ConfigError, match=r"several data sets \(brainmri/phantom, owner/other\); choose one with"
    ):
        predicted(empty, inbox, "several")
    with pytest.raises(IntegrityError, match=r"phantom/r1/best.pth was changed"):  # its own goes first
        batch_predict(BatchPredictConfig(seed=42), case.fetched, empty.job)


def test_a_labelled_data_set_is_predicted_and_its_labels_left_alone(case: Case) -> None:
    case.records.clear()
    job = replace(case.job, run_id="labelled")
    found = batch_predict(BatchPredictConfig(seed=42), case.fetched, job)
    assert found.images == case.fetched.n_images
    assert any("labels of this data set are not looked at" in item["event"] for item in case.records)
    assert "label" not in table_of(case, found)


def test_the_project_is_whole_afterwards_and_nothing_of_it_is_garbage(case: Case, inbox: Path) -> None:
    found = predicted(case, inbox, "kept")
    assert not verify(case.job.layout).problems
    folder = case.job.layout.absolute(found.folder)
    assert folder not in collect_garbage(case.job.layout).results
    orphan = folder.with_name("orphan")
    shutil.copytree(folder, orphan)
    assert orphan in collect_garbage(case.job.layout).results
    shutil.rmtree(orphan)
    table = case.job.layout.absolute(found.predictions)
    whole = table.read_bytes()
    table.write_bytes(whole[:-1])
    problems = verify(case.job.layout).problems
    table.write_bytes(whole)
    assert [item.path for item in problems] == [found.predictions]


def test_the_stored_numbers_are_finite_where_there_are_any(case: Case, inbox: Path) -> None:
    table = table_of(case, predicted(case, inbox, "finite"))
    numbers = table[[name for name in table if name.startswith(("prob_", "logit_"))]].to_numpy(np.float64)
    assert np.isfinite(numbers).all()
    assert not [name for name in table if name.startswith("feature_") or name == "embedding"]


def test_the_table_says_which_scans_are_of_one_patient_and_names_no_patient(
    case: Case, tmp_path: Path
) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    rng = np.random.default_rng(3)
    for number in range(4):
        frame = rng.integers(0, 4000, (1, 64, 64), np.uint16)
        owner = {"PatientID": f"{SECRET}{number // 2}", "SeriesInstanceUID": f"1.2.{number}"}
        (folder / f"{number}.dcm").write_bytes(dicom(frame, **owner))
    table = table_of(case, predicted(case, folder, "scans"))
    assert table["patient"].tolist() == [*[table["patient"][0]] * 2, *[table["patient"][2]] * 2]
    assert table["patient"].nunique() == 2 and table["scan"].nunique() == 4
    assert SECRET not in table.to_csv()
