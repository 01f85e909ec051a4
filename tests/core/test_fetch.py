from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from brainmri_core.config.data import FetchConfig
from brainmri_core.errors import BrainMRIError, DataError, IntegrityError, SourceError
from brainmri_core.fetch import fetch
from brainmri_core.project.job import Job
from brainmri_core.project.logs import Record
from brainmri_core.project.pointers import FetchPointer
from brainmri_core.project.sample_table import FETCH_COLUMNS, read_samples
from tests.core.fetch_case import OFFICIAL, make_tree, make_zip


def get(job: Job, archive: Path) -> FetchPointer:
    return fetch(FetchConfig(archive=str(archive)), job)


@pytest.mark.parametrize(
    "record",
    ["{}", "[]", "{", '{"root": 3, "kind": "x"}', '{"root": "files", "kind": "x", "version": "x"}',
     '{"root": "files/../../../../../../../../etc", "kind": "x"}', None],
)  # fmt: skip
def test_a_changed_record_of_an_unpacked_set_is_named(tmp_path: Path, job: Job, record: str | None) -> None:
    archive = make_tree(tmp_path / "tree", OFFICIAL)
    path = job.layout.absolute(get(job, archive).samples).with_name("source.json")
    path.unlink() if record is None else path.write_text(record)
    with pytest.raises(IntegrityError, match=r"source\.json"):
        get(job, archive)


def test_official_folders_are_found_and_indexed(tmp_path: Path, job: Job) -> None:
    archive = make_zip(make_tree(tmp_path / "tree", OFFICIAL), tmp_path / "a.zip")
    pointer = get(job, archive)
    table = read_samples(job.layout.absolute(pointer.samples), FETCH_COLUMNS)
    assert table["path"].tolist() == sorted(OFFICIAL)
    assert table["origin"].tolist() == ["testing", "testing", "training", "training"]
    assert pointer.training_dir == f"{pointer.dataset_root}/Training"
    assert pointer.class_counts == {"glioma_tumor": 2, "no_tumor": 2}
    assert pointer.source == "archive"
    assert not Path(pointer.dataset_root).is_absolute()


def test_same_bytes_give_the_same_content_whatever_the_wrapping(tmp_path: Path, job: Job) -> None:
    tree = make_tree(tmp_path / "tree", OFFICIAL)
    zipped = get(job, make_zip(tree, tmp_path / "a.zip"))
    again = get(job, tmp_path / "a.zip")
    nested = get(job, make_zip(tree, tmp_path / "b.zip", "some/folder/"))
    folder = get(job, tree)
    assert zipped.dataset_root == again.dataset_root
    assert {zipped.content_hash, again.content_hash, nested.content_hash, folder.content_hash} == {
        zipped.content_hash
    }


def test_class_folders_without_official_split(tmp_path: Path, job: Job) -> None:
    pointer = get(job, make_tree(tmp_path / "tree", ["glioma/1.jpg", "notumor/deep/2.jpg"]))
    table = read_samples(job.layout.absolute(pointer.samples), FETCH_COLUMNS)
    assert table["label"].tolist() == ["glioma", "notumor"]
    assert set(table["origin"]) == {"none"}
    assert pointer.training_dir is None


@pytest.mark.parametrize(
    ("names", "error", "part"),
    [
        (["Training/glioma_tumor/1.jpg"], DataError, "fewer than two classes"),
        (["readme.png"], DataError, "no class folders"),
    ],
)
def test_unusable_trees_are_refused_and_leave_nothing(
    tmp_path: Path, job: Job, names: list[str], error: type[BrainMRIError], part: str
) -> None:
    with pytest.raises(error, match=part):
        get(job, make_tree(tmp_path / "tree", names))
    assert not list((job.layout.root / "data").rglob("*.parquet"))
    assert not [path for path in (job.layout.root / "data").rglob("*") if path.name.startswith(".tmp-")]


def test_class_folder_without_an_image_is_named(tmp_path: Path, job: Job) -> None:
    tree = make_tree(tmp_path / "tree", OFFICIAL)
    (tree / "Training/pituitary_tumor").mkdir()
    (tree / "Training/pituitary_tumor/notes.txt").write_text("x")
    with pytest.raises(DataError, match="Training/pituitary_tumor"):
        get(job, tree)


def test_archive_variable_is_used(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = job.entry.model_copy(update={"key": "owner/set", "source": "archive"})
    with pytest.raises(SourceError, match="BRAINMRI_ARCHIVES"):
        fetch(FetchConfig(), replace(job, entry=entry))
    make_zip(make_tree(tmp_path / "tree", OFFICIAL), tmp_path / "set.zip")
    monkeypatch.setenv("BRAINMRI_ARCHIVES", str(tmp_path))
    assert fetch(FetchConfig(), replace(job, entry=entry)).n_images == 4


def test_changed_file_is_refused_by_name(tmp_path: Path, job: Job) -> None:
    archive = make_zip(make_tree(tmp_path / "tree", OFFICIAL), tmp_path / "a.zip")
    pointer = get(job, archive)
    (job.layout.absolute(pointer.dataset_root) / OFFICIAL[0]).write_bytes(b"changed")
    with pytest.raises(IntegrityError, match=r"gg \(1\)\.jpg"):
        get(job, archive)


def test_missing_archive_is_named(tmp_path: Path, job: Job) -> None:
    with pytest.raises(SourceError, match="gone"):
        get(job, tmp_path / "gone.zip")


@pytest.mark.parametrize(
    ("name", "key", "words"),
    [
        ("Brain-Tumor-Classification-MRI.zip", "owner/set", "--dataset sartajbhuvaji/brain-tumor-classification-mri"),
        ("brain-tumor-classification-mri (1).zip", "clinic/brains", "has the name of sartajbhuvaji"),
        ("brain-tumor-mri-dataset", "owner/set", "--dataset masoudnickparvar/brain-tumor-mri-dataset"),
        ("scans (2).zip", "owner/set", ""),
        ("sartajbhuvaji__brain-tumor-classification-mri", "brainmri/phantom", "taken as those of brainmri/phantom"),
        ("scans.zip", "brainmri/phantom", "built-in synthetic data set, but its images are taken from scans.zip"),
        ("brain-tumor-mri-dataset.zip", "clinic/brain-tumor-mri-dataset", ""),
        ("scans.zip", "owner/set", ""),
        ("archive.zip", "owner/set", ""),
    ],
)  # fmt: skip
def test_an_archive_that_may_be_of_another_data_set_is_named(
    tmp_path: Path, job: Job, records: list[Record], name: str, key: str, words: str
) -> None:
    tree = make_tree(tmp_path / "tree", OFFICIAL)
    archive = make_zip(tree, tmp_path / name) if name.endswith(".zip") else tree.rename(tmp_path / name)
    source = "phantom" if key == "brainmri/phantom" else "archive"
    get(replace(job, entry=job.entry.model_copy(update={"key": key, "source": source})), archive)
    said = [item["event"] for item in records if item["level"] == "WARNING"]
    assert len(said) == bool(words) and words in "".join(said)
