"""The account of a data set's files, through the real stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brainmri_core.config.data import FetchConfig, ResizeConfig, SplitConfig, ValidateConfig
from brainmri_core.errors import IntegrityError
from brainmri_core.fetch import fetch
from brainmri_core.project.job import Job
from brainmri_core.project.pointer_store import latest_pointer, write_pointer
from brainmri_core.project.pointers import MappingPointer
from brainmri_core.project.sample_table import read_samples, write_samples
from brainmri_core.resize import resize
from brainmri_core.sources.index import LEFT_OUT
from brainmri_core.split import split
from brainmri_core.validate import validate
from brainmri_core.validation.report import ValidationReport, load_report
from brainmri_dagster.defs.data_metadata import of_resize
from tests.cases.build import Case, class_tree, picture, tree
from tests.cases.case_run import own, write


def validated(case: Case, folder: Path, job: Job, spoil: bool = False, **splitting: Any) -> ValidationReport:
    job = own(job, case)
    fetched = fetch(FetchConfig(archive=str(write(case, folder)), subset=case.subset), job)
    if spoil:
        path = job.layout.absolute(fetched.samples).with_name(LEFT_OUT)
        write_samples(path, read_samples(path).iloc[:0])
    mapping = split(SplitConfig(seed=1, **splitting), write_pointer(job.layout, fetched), job)
    pack = resize(ResizeConfig(size=32), write_pointer(job.layout, mapping), job)
    return load_report(job.layout, validate(ValidateConfig(), write_pointer(job.layout, pack), job))


@pytest.mark.full
def test_the_account_leads_from_the_archive_to_the_pack(tmp_path: Path, job: Job) -> None:
    case = Case(
        class_tree(each=6) | {"README": b"x", "glioma/cut.jpg": picture(99)[:200], "lone.jpg": picture(98)}
    )
    case.files["notumor/again.jpg"] = case.files["glioma/i0.jpg"]
    report = validated(case, tmp_path, job)
    account = report.account
    assert account is not None
    assert (account.source_files, account.indexed_files, account.images) == (28, 26, 26)
    assert [(row.stage, row.files, row.example) for row in account.left_out] == [
        ("fetch", 1, "README"),
        ("fetch", 1, "lone.jpg"),
        ("split", 2, "glioma/i0.jpg"),
        ("split", 1, "glioma/cut.jpg"),
    ]
    assert account.packed == 23 == report.n_packed
    assert all(row.reason and row.remedy for row in account.left_out)
    page = (next((job.layout.root / "outputs").rglob("report.html"))).read_text()
    assert "From the archive to the pack" in page
    assert "lies in no class folder" in page


def test_the_account_names_what_resize_left_out_and_that_a_gif_gives_its_first_frame(
    tmp_path: Path, job: Job
) -> None:
    case = Case(class_tree() | tree("glioma", "notumor", ending=".gif", kind="GIF", seed=5))
    account = validated(case, tmp_path, job).account
    assert account is not None
    assert account.gifs == 6
    page = (next((job.layout.root / "outputs").rglob("report.html"))).read_text()
    assert "of each of the 6 GIF files, the first frame is used" in page
    mapping = latest_pointer(job.layout, MappingPointer, own(job, case).dataset)
    assert mapping is not None
    pack = resize(ResizeConfig(size=32, exts=[".jpg"]), mapping, replace(own(job, case), run_id="r2"))
    shown = of_resize(job.layout, pack)
    assert shown["left_out"] == 6
    assert "| extension not in resize.exts | 6 |" in shown["left_out_by_reason"].value


def test_endings_that_the_split_leaves_out_are_a_warning(tmp_path: Path, job: Job) -> None:
    case = Case(class_tree() | tree("glioma", "notumor", ending=".bmp", kind="BMP", seed=5))
    finding = validated(case, tmp_path, job, exts=[".jpg"]).finding("left_out")
    assert finding is not None
    assert (finding.severity, finding.count) == ("warning", 6)
    assert "every file ending .bmp (6)" in finding.message
    assert "33.3% of all" in finding.message


@pytest.mark.full
def test_a_lost_class_folder_is_a_warning_and_litter_is_none(tmp_path: Path, job: Job) -> None:
    files = class_tree(each=30) | {"README": b"x", "glioma/.DS_Store": b"x", "meningioma/val/notes.txt": b"x"}
    case = Case(files | {"docs/glioma/a.heic": b"\0\0\0 ftypheic"})
    finding = validated(case, tmp_path, job).finding("left_out")
    assert finding is not None
    assert finding.files == ["docs/glioma/a.heic"]
    assert "left out: the folder docs/glioma (1), every file ending .heic (1). The" in finding.message


@pytest.mark.full
def test_litter_alone_is_no_finding(tmp_path: Path, job: Job) -> None:
    report = validated(Case(class_tree() | {"README": b"x", "glioma/Thumbs.db": b"x"}), tmp_path, job)
    assert report.finding("left_out") is None
    assert report.account is not None
    assert report.account.left_out[0].files == 2


def test_an_account_that_does_not_add_up_is_refused(tmp_path: Path, job: Job) -> None:
    case = Case(class_tree() | {"README": b"x"})
    with pytest.raises(IntegrityError, match="does not balance"):
        validated(case, tmp_path, job, spoil=True)
