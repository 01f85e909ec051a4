"""The published facts about the real data set, measured by the pipeline's own stages; skipped where it is absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brainmri_core.catalogue import load_catalogue
from brainmri_core.config.data import FetchConfig, ResizeConfig, SplitConfig, ValidateConfig
from brainmri_core.fetch import fetch
from brainmri_core.job import Job
from brainmri_core.layout import Layout
from brainmri_core.logs import StageLog
from brainmri_core.pointers import MappingPointer, write_pointer
from brainmri_core.resize import resize
from brainmri_core.samples import read_samples
from brainmri_core.split import split
from brainmri_core.storage import read_json
from brainmri_core.subjects import neighbour_pairs
from brainmri_core.validate import ValidationReport, load_report, validate

REAL = "sartajbhuvaji/brain-tumor-classification-mri"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    layout = Layout(root=tmp_path_factory.mktemp("real"))
    return Job(layout, "r1", load_catalogue()[REAL], StageLog("test", "r1", REAL, []))


@pytest.fixture(scope="module")
def mapping(real_archive: Path, job: Job) -> MappingPointer:
    fetched = write_pointer(job.layout, fetch(FetchConfig(archive=str(real_archive)), job))
    return write_pointer(job.layout, split(SplitConfig(seed=42), fetched, job))


@pytest.fixture(scope="module")
def report(mapping: MappingPointer, job: Job) -> ValidationReport:
    pack = write_pointer(job.layout, resize(ResizeConfig(), mapping, job))
    return load_report(job.layout, validate(ValidateConfig(), pack, job))


def test_copies_groups_and_conflicts_are_as_measured(mapping: MappingPointer, job: Job) -> None:
    record = read_json(job.layout.absolute(mapping.split_json))
    assert record["copies"]["redundant_exact"] == 394
    # whole images alone give 2,809 groups; 86 pairs more are copies with other margins
    assert record["groups"] == pytest.approx(2780, abs=10)
    assert record["largest_group"] <= 12
    assert len(record["label_conflicts"]) == pytest.approx(15, abs=2)
    deviations = record["test_share_deviation"]
    assert max(map(abs, deviations.values())) < 0.005


def test_neighbouring_numbers_look_alike_as_the_subject_proxy_assumes(
    mapping: MappingPointer, job: Job
) -> None:
    table = read_samples(job.layout.absolute(mapping.samples))
    thumbs = np.load(job.layout.absolute(mapping.samples).with_name("thumbs.npy"))
    part = (table["origin"] == "training").to_numpy()
    table, thumbs = table[part].reset_index(drop=True), thumbs[part]
    first, _ = neighbour_pairs(table, thumbs)
    alike = table["label"].iloc[first].value_counts() / table["label"].value_counts()
    assert alike["pituitary"] == pytest.approx(0.735, abs=0.02)
    assert alike["glioma"] == pytest.approx(0.68, abs=0.02)
    assert alike["meningioma"] == pytest.approx(0.567, abs=0.02)
    assert alike["notumor"] < 0.06


def test_the_default_split_is_free_of_leaks(report: ValidationReport) -> None:
    ours = report.leak.row("this split")
    assert report.passed
    assert report.finding("leak") is None
    assert (ours.exact_copies, ours.copies) == (0, 0)
    assert len(report.leak.unlisted) <= 5


def test_the_official_folders_leak_as_measured(report: ValidationReport) -> None:
    official = report.leak.row("official folders")
    assert (official.n_train, official.n_test) == (2870, 394)
    assert official.exact_copies == 251
    assert official.copies == pytest.approx(259, abs=4)


def test_the_look_up_scores_memory(report: ValidationReport) -> None:
    official = report.leak.row("official folders")
    ours, random = report.leak.row("this split"), report.leak.row("random split")
    assert official.accuracy == pytest.approx(0.769, abs=0.015)
    # copies with other margins count as copies, but the look-up compares whole images and may pass them over
    assert official.accuracy_with_copy == pytest.approx(0.98, abs=0.015)
    assert official.accuracy_without_copy == pytest.approx(0.341, abs=0.04)
    assert ours.accuracy == pytest.approx(0.81, abs=0.04)
    assert ours.macro_f1 == pytest.approx(0.79, abs=0.04)
    assert random.accuracy is not None
    assert ours.accuracy is not None
    assert random.accuracy > ours.accuracy + 0.03


def test_file_metadata_gives_no_tumour_away(report: ValidationReport) -> None:
    metadata, intensity = report.shortcuts
    assert metadata.auroc["notumor"] == pytest.approx(0.97, abs=0.015)
    assert intensity.balanced_accuracy == pytest.approx(0.72, abs=0.05)
    finding = report.finding("shortcuts")
    assert finding is not None
    assert "notumor" in finding.message


def test_drawn_lines_are_found_and_no_writing_is_imagined(report: ValidationReport) -> None:
    finding = report.finding("burnt_in")
    assert finding is not None
    assert finding.count == pytest.approx(94, abs=25)
    assert " 0 with writing in a corner" in finding.message
