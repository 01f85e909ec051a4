from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainmri_core.config.data import FetchConfig, SplitConfig
from brainmri_core.errors import ConfigError, DataError, SourceError
from brainmri_core.fetch import fetch
from brainmri_core.project.catalogue import DatasetEntry
from brainmri_core.project.job import Job
from brainmri_core.project.logs import Record
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import FetchPointer
from brainmri_core.project.sample_table import FETCH_COLUMNS, read_samples
from brainmri_core.split import split


@pytest.fixture
def inbox(job: Job) -> Job:
    """A job on a data set without labels."""
    return replace(job, entry=DatasetEntry(key="clinic/inbox", source="archive", labelled=False))


def folder_of(path: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 10 + number, np.uint8)).save(file, "PNG")
    return path


def get(job: Job, folder: Path, **settings: object) -> FetchPointer:
    return fetch(FetchConfig.model_validate({"archive": str(folder), **settings}), job)


def paths_of(job: Job, pointer: FetchPointer) -> list[str]:
    table = read_samples(job.layout.absolute(pointer.samples), FETCH_COLUMNS)
    assert set(table["label"]) == {""}
    return [str(path) for path in table["path"]]


@pytest.mark.parametrize(
    "names",
    [
        ("a.png", "b.png"),
        ("one.png",),
        ("glioma/a.png", "notumor/b.png"),
        ("Training/glioma/a.png", "Testing/x/b.png", "c.png"),
        ("2026-11-28/exam 1/a.png", "2026-11-28/exam 2/without-ending"),
    ],
)
def test_every_image_counts_whatever_folder_it_lies_in(
    tmp_path: Path, inbox: Job, names: tuple[str, ...]
) -> None:
    pointer = get(inbox, folder_of(tmp_path / "inbox", *names))
    assert paths_of(inbox, pointer) == sorted(names)
    assert (pointer.n_images, pointer.class_counts) == (len(names), {})
    assert (pointer.training_dir, pointer.testing_dir) == (None, None)


def test_files_that_are_no_images_are_left_out_and_named(tmp_path: Path, inbox: Job) -> None:
    folder = folder_of(tmp_path / "inbox", "a.png")
    (folder / "b.raw").write_bytes(b"\x01\x02\x03\x04" * 99)
    pointer = get(inbox, folder)
    assert paths_of(inbox, pointer) == ["a.png"]
    assert pointer.left_out == {"unread": 1}


def test_a_folder_without_an_image_is_refused(tmp_path: Path, inbox: Job) -> None:
    folder = tmp_path / "inbox"
    folder.mkdir()
    with pytest.raises(SourceError, match="is empty"):
        get(inbox, folder)
    (folder / "notes.txt").write_text("none yet")
    with pytest.raises(DataError, match="The data set clinic/inbox holds no image"):
        get(inbox, folder)


def test_it_cannot_be_split_and_the_sentence_says_what_can_be_done(tmp_path: Path, inbox: Job) -> None:
    pointer = write_pointer(inbox.layout, get(inbox, folder_of(tmp_path / "inbox", "a.png", "b.png")))
    with pytest.raises(DataError, match=r"clinic/inbox is not labelled, and a split needs labels; predict"):
        split(SplitConfig(seed=1), pointer, inbox)


@pytest.mark.parametrize("setting", [{"labels_csv": "labels.csv"}, {"subset": "a"}])
def test_settings_about_labels_are_refused(tmp_path: Path, inbox: Job, setting: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"fetch.{next(iter(setting))} has no use"):
        get(inbox, folder_of(tmp_path / "inbox", "a.png"), **setting)


def test_files_changed_after_the_look_are_left_to_the_next_and_said(
    tmp_path: Path, inbox: Job, records: list[Record]
) -> None:
    folder = folder_of(tmp_path / "inbox", "old.png", "new.png")
    os.utime(folder / "old.png", (1000, 1000))
    os.utime(folder / "new.png", (2000, 2000))
    early = get(inbox, folder, modified_before=1500.0)
    assert paths_of(inbox, early) == ["old.png"]
    said = next(item for item in records if item["event"].startswith("files left to the next look"))
    assert (said["files"], said["first"]) == (1, "new.png")
    assert paths_of(inbox, get(inbox, folder, modified_before=2000.0)) == ["new.png", "old.png"]
    with pytest.raises(SourceError, match="nothing but 2 files that are still being written"):
        get(inbox, folder, modified_before=10.0)


def test_a_labelled_folder_is_taken_whole(tmp_path: Path, job: Job) -> None:
    entry = DatasetEntry(key="clinic/brains", source="archive", classes=["glioma", "notumor"])
    folder = folder_of(tmp_path / "brains", "glioma/a.png", "notumor/b.png")
    assert get(replace(job, entry=entry), folder, modified_before=10.0).n_images == 2
