"""The figures of docs/data.md, measured on the real data set by the pipeline's own stages; skipped where it is absent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from brainmri_core.config.data import (
    CopySearchConfig,
    FetchConfig,
    ResizeConfig,
    SplitConfig,
    ValidateConfig,
)
from brainmri_core.copies.fingerprint import fingerprint_files
from brainmri_core.copies.likeness import correlation
from brainmri_core.copies.search import find_copies, group_copies
from brainmri_core.fetch import fetch
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import StageLog
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import MappingPointer
from brainmri_core.project.sample_table import read_samples
from brainmri_core.resize import resize
from brainmri_core.split import split
from brainmri_core.splitting.neighbour_runs import neighbour_pairs
from brainmri_core.system.json_files import read_json
from brainmri_core.validate import validate
from brainmri_core.validation.leak_report import SplitName
from brainmri_core.validation.report import ValidationReport, load_report
from tests import ROOT

pytestmark = pytest.mark.full

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


@pytest.fixture(scope="module")
def docs() -> str:
    """What docs/data.md says, as one line."""
    return " ".join((ROOT / "docs/data.md").read_text().split())


def short(value: float) -> str:
    return f"{value:.2f}".lstrip("0")


def test_copies_groups_and_conflicts_are_those_of_the_docs(
    mapping: MappingPointer, job: Job, docs: str
) -> None:
    record = read_json(job.layout.absolute(mapping.split_json))
    copies = record["copies"]
    assert f"{record['images']:,} images; {copies['redundant_exact']} of them are redundant" in docs
    assert (
        f"Together: {copies['confirmed_pairs']} pairs, {copies['groups_of_copies']:,} groups of copies."
    ) in docs
    assert copies["orientations"]["mirrored"] == 0
    assert f"{len(record['label_conflicts'])} images have a confirmed copy that carries another label" in docs
    assert {Path(path).parent.name for path in record["label_conflicts"]} == {
        "meningioma_tumor",
        "glioma_tumor",
    }
    assert max(map(abs, record["test_share_deviation"].values())) < 0.01
    for label in ("glioma", "meningioma", "pituitary", "notumor"):
        counts = [fold[label] for fold in record["folds"].values()]
        assert max(counts) - min(counts) <= 14, "whole patients, of up to 60 images"


def test_copies_with_other_margins_are_those_of_the_docs(
    mapping: MappingPointer, job: Job, docs: str
) -> None:
    table = read_samples(job.layout.absolute(mapping.samples))
    prints = fingerprint_files(job.layout.absolute(mapping.dataset_root), table["path"].tolist())
    untrimmed = replace(prints, trimmed_thumbs=prints.thumbs, trimmed_hashes=prints.hashes)
    whole, both = (find_copies(item, CopySearchConfig()) for item in (untrimmed, prints))
    assert (
        f"Whole images alone give {len(whole.first)} pairs and {len(set(group_copies(len(table), whole))):,} groups."
        in docs
    )
    known = set(zip(whole.first, whole.second, strict=True))
    added = np.array([pair for pair in zip(both.first, both.second, strict=True) if pair not in known])
    least = correlation(prints.thumbs[added[:, 0]], prints.thumbs[added[:, 1]]).min()
    assert f"The margins add {len(added)} pairs, down to a correlation of {short(least)} between" in docs


def test_neighbouring_numbers_look_alike_as_the_subject_proxy_assumes(
    mapping: MappingPointer, job: Job, docs: str
) -> None:
    table = read_samples(job.layout.absolute(mapping.samples))
    thumbs = np.load(job.layout.absolute(mapping.samples).with_name("thumbs.npy"))
    part = (table["origin"] == "training").to_numpy()
    table, thumbs = table[part].reset_index(drop=True), thumbs[part]
    first = neighbour_pairs(table, thumbs).first
    alike = table["label"].iloc[first].value_counts() / table["label"].value_counts()
    named = ", ".join(f"{alike[name]:.0%} ({name})" for name in ("pituitary", "glioma"))
    assert (
        f"{named} and {alike['meningioma']:.0%} (meningioma) correlate above .8 at 64 x 64 with the image of"
        in docs
    )
    assert f"{alike['notumor']:.0%} in `no_tumor`" in docs
    rng = np.random.default_rng(0)
    by_chance = []
    for label in ("pituitary", "glioma", "meningioma"):
        rows = np.flatnonzero(table["label"] == label)
        one, other = rng.choice(rows, 20_000), rng.choice(rows, 20_000)
        unlike = one != other
        by_chance.append((correlation(thumbs[one[unlike]], thumbs[other[unlike]]) > 0.8).mean())
    assert f"against {min(by_chance):.0%} to {max(by_chance):.0%} of random pairs" in docs


def test_the_default_split_is_free_of_leaks(report: ValidationReport) -> None:
    assert report.passed
    assert report.finding("leak") is None
    assert report.leak.unlisted == []


def test_leaks_and_look_ups_are_those_of_the_docs(report: ValidationReport, docs: str) -> None:
    official = report.leak.row("official folders")
    assert f"{official.exact_copies} of the {official.n_test} images in `Testing`" in docs
    assert f"cropped differently it is {official.copies}." in docs
    for name, written in (
        ("this split", "pooled, patients and copies whole (default)"),
        ("official folders", "official folders"),
        ("random split", "plain random"),
        ("by copies alone", "by copies alone"),
        ("by patients", "by patients"),
    ):
        row = report.leak.row(cast(SplitName, name))
        scores = (row.accuracy, row.accuracy_tied, row.accuracy_untied)
        cells = [f"{row.n_train:,}", row.n_test, row.exact_copies, row.copies]
        cells += [f"{row.patients} of {row.known_patients}"]
        cells += ["–" if value is None else f"{value:.1%}" for value in scores]
        assert f"| {written} | " + " | ".join(map(str, cells)) + " |" in docs


def test_shortcuts_and_findings_are_those_of_the_docs(report: ValidationReport, docs: str) -> None:
    metadata, intensity = report.shortcuts
    assert f"with an AUROC of {short(metadata.auroc['notumor'] or 0)} under group cross-validation" in docs
    assert f"a balanced accuracy of {short(intensity.balanced_accuracy or 0)} over the four classes" in docs
    found = {item.check: item for item in report.findings}
    assert list(found) == [
        "burnt_in",
        "embedded_metadata",
        "shortcuts",
        "duplicates",
        "label_conflicts",
        "label_corrections",
    ]
    assert [item.severity for item in found.values()] == ["warning"] * 3 + ["info"] * 3
    assert f"{found['burnt_in'].count} images with a bright line along an edge" in docs
    assert " 0 with writing in a corner" in found["burnt_in"].message
    assert f"{found['embedded_metadata'].count} files with embedded metadata" in docs
    assert "notumor" in found["shortcuts"].message
