from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brainmri_core.config.data import FetchConfig, ResizeConfig, SlicesConfig, SplitConfig
from brainmri_core.errors import DataError
from brainmri_core.fetch import fetch
from brainmri_core.images.fit_worker import answers
from brainmri_core.images.listing import list_images
from brainmri_core.learning.checkpoint import CheckpointMeta, load_checkpoint, save_checkpoint
from brainmri_core.predict import Classifier
from brainmri_core.project.job import Job
from brainmri_core.project.pointers import FetchPointer
from brainmri_core.project.sample_table import read_samples
from brainmri_core.resize import resize
from brainmri_core.sources.index import LEFT_OUT
from brainmri_core.split import split
from tests.core.evaluation_case import prepare
from tests.core.images.medical_case import SECRET, dicom, nifti
from tests.counts import rest

CLASSES = ("glioma", "notumor")


def frames(seed: int, count: int = 1) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 4000, (count, 8, 8))
    return coarse.repeat(6, axis=1).repeat(6, axis=2)


def bare(data: bytes) -> bytes:
    """The same data set without preamble and meta header."""
    import io

    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(data))
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, pydicom.Dataset(dataset), implicit_vr=True, little_endian=True)
    return buffer.getvalue()


def hospital(folder: Path) -> Path:
    """Scans of two classes as they come: named by UID, without preamble, of many frames, volumes, an index."""
    for number, label in enumerate(CLASSES):
        target = folder / label
        (target / "study").mkdir(parents=True)
        for one in range(4):
            data = dicom(
                frames(100 * number + one),
                PatientID=f"{SECRET}{number}{one // 2}",
                StudyInstanceUID=f"1.2.{number}.{one}",
            )
            (target / "study" / f"MR.1.2.840.{one}").write_bytes(bare(data) if one % 2 else data)
        (target / "frames.dcm").write_bytes(
            dicom(frames(100 * number + 50, 6), PatientID="anonymous", StudyInstanceUID=f"1.3.{number}")
        )
        for one in range(3):
            volume = np.moveaxis(frames(100 * number + 60 + one, 20), 0, 2).astype(np.float32)
            (target / f"volume{one}.nii").write_bytes(nifti(volume, (1, 1, 3)))
    report = dicom(frames(1))
    (folder / "DICOMDIR").write_bytes(
        report[:128] + b"DICM" + b"\x02\0\x02\0UI\x16\x00" + b"1.2.840.10008.1.3.10\0\0"
    )
    return folder


@pytest.fixture
def fetched(tmp_path: Path, job: Job) -> FetchPointer:
    return fetch(FetchConfig(archive=str(hospital(tmp_path / "set"))), job)


def test_scans_in_class_folders_give_a_sample_per_slice(job: Job, fetched: FetchPointer) -> None:
    table = read_samples(job.layout.absolute(fetched.samples))
    file = table["path"].str.rsplit("#", n=1).str[0].str.rsplit("/", n=1).str[1]
    counts = file[table["label"] == "glioma"].value_counts().to_dict()
    assert counts == {f"MR.1.2.840.{n}": 1 for n in range(4)} | {"frames.dcm": 6} | {
        f"volume{n}.nii": 10 for n in range(3)
    }, "the central half of a long file, all of a short one"
    numbers = table["path"][file == "volume0.nii"].str.rsplit("#", n=1).str[1].astype(int)
    assert set(numbers) == set(range(6, 16))
    left_out = read_samples(job.layout.absolute(fetched.samples).with_name(LEFT_OUT)).set_index("path")
    assert left_out.loc["DICOMDIR", "kind"] == "litter"
    assert set(left_out["kind"]) == {"opened", "litter"}


def test_patients_and_studies_are_keyed_hashes_of_this_project(
    tmp_path: Path, job: Job, fetched: FetchPointer
) -> None:
    table = read_samples(job.layout.absolute(fetched.samples))
    assert table["patient"].dropna().str.fullmatch("hashed:[0-9a-f]{16}").all()
    assert table["patient"].nunique() == 4
    assert table["patient"][table["path"].str.contains("frames.dcm")].isna().all(), "anonymous is nobody"
    assert table["patient"][table["path"].str.contains("nii")].isna().all()
    for path in job.layout.root.rglob("*"):
        if path.is_file() and "files" not in path.parts:
            data = path.read_bytes() + (
                read_samples(path).to_csv().encode() if path.suffix == ".parquet" else b""
            )
            assert SECRET.encode() not in data, path
    for path in job.layout.root.rglob("*#*"):
        assert SECRET.encode() not in path.read_bytes(), path
    other = replace(job, layout=job.layout.model_copy(update={"root": tmp_path / "other"}))
    again = read_samples(
        other.layout.absolute(fetch(FetchConfig(archive=str(tmp_path / "set")), other).samples)
    )
    assert again["path"].tolist() == table["path"].tolist()
    assert not set(again["patient"].dropna()) & set(table["patient"].dropna())


@pytest.mark.full
@pytest.mark.parametrize("group_by", ["auto", *rest("patient", "near_duplicate", "subject")])
def test_slices_of_one_file_are_never_parted(job: Job, fetched: FetchPointer, group_by: str) -> None:
    mapping = split(SplitConfig(seed=3, test_frac=0.4, group_by=group_by), fetched, job)
    table = read_samples(job.layout.absolute(mapping.samples))
    assert set(table["split"]) == {"train", "test"}
    assert (table.groupby("scan")["split"].nunique() == 1).all()
    assert (table.groupby("scan")["group"].nunique() == 1).all()
    if group_by in ("auto", "patient"):
        assert (table.dropna(subset="patient").groupby("patient")["group"].nunique() == 1).all()
    pack = resize(ResizeConfig(size=32), mapping, job)
    assert pack.n_images == len(table) == fetched.n_images


@pytest.mark.full
def test_a_csv_gives_labels_instead_of_folders(tmp_path: Path, job: Job) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    rows = ["path,label"]
    for number in range(6):
        (flat / f"scan{number}").write_bytes(dicom(frames(number, 2)))
        rows.append(f"scan{number},{CLASSES[number % 2]}")
    (flat / "extra.dcm").write_bytes(dicom(frames(9)))
    (flat / "labels.csv").write_text("\n".join([*rows, "gone,glioma"]))
    pointer = fetch(FetchConfig(archive=str(flat), labels_csv="labels.csv"), job)
    assert pointer.class_counts == {"glioma": 6, "notumor": 6}
    left_out = read_samples(job.layout.absolute(pointer.samples).with_name(LEFT_OUT)).set_index("path")
    assert "fetch.labels_csv" in left_out.loc["extra.dcm#1", "reason"]
    (flat / "labels.csv").write_text("path,label\nno,glioma\n")
    with pytest.raises(DataError, match="names no image"):
        fetch(FetchConfig(archive=str(flat), labels_csv="labels.csv"), job)


def test_another_modality_is_let_in_where_the_catalogue_says_so(tmp_path: Path, job: Job) -> None:
    for label in CLASSES:
        (tmp_path / "ct" / label).mkdir(parents=True)
        for number in range(2):
            data = dicom(frames(number + len(label)), Modality="CT")
            (tmp_path / "ct" / label / f"{number}.dcm").write_bytes(data)
    with pytest.raises(DataError):
        fetch(FetchConfig(archive=str(tmp_path / "ct")), job)
    wide = replace(job, entry=job.entry.model_copy(update={"modality": "any"}))
    assert fetch(FetchConfig(archive=str(tmp_path / "ct")), wide).n_images == 4


@pytest.mark.parametrize("signed", [0, *rest(1)])
def test_slices_of_a_series_that_declares_nothing_share_one_gray_range(
    tmp_path: Path, job: Job, signed: int
) -> None:
    for number, label in enumerate(CLASSES):
        (tmp_path / "set" / label).mkdir(parents=True)
        for one in range(4):
            slice_of = frames(number)
            slice_of[0, :4, :4] = (4095, 4096, 9000, 16000)[one]  # more than a percentile leaves out
            header = {"PixelRepresentation": signed, "BitsStored": 16, "HighBit": 15}
            data = dicom(slice_of, PatientID=f"{label}{one}", **header)
            (tmp_path / "set" / label / f"{one}.dcm").write_bytes(data)
    fetched = fetch(FetchConfig(archive=str(tmp_path / "set")), job)
    mapping = split(SplitConfig(seed=1, test_frac=0.4, group_by="none"), fetched, job)
    pack = resize(ResizeConfig(size=48), mapping, job)
    assert list(pack.gray_ranges) == ["16-bit"]
    pixels = np.load(job.layout.absolute(pack.pack)).astype(int)
    assert len(pixels) == 8
    table = read_samples(job.layout.absolute(pack.samples)).set_index("path")
    for label in CLASSES:
        rest = pixels[table["row"][table["label"] == label], 4:]
        assert rest.max() > 50, "they show something"
        assert (rest == rest[0]).all(), "a brighter spot elsewhere changes nothing"
    path = table.index[0]
    file = job.layout.absolute(fetched.dataset_root) / path.removesuffix("#1")
    [answer] = answers(file.read_bytes(), "x", 48, pack.fit, True, pack.gray_ranges)
    assert answer.endswith(pixels[table.loc[path, "row"]].astype(np.uint8).tobytes()), (
        "predict shows it so, too"
    )


@pytest.mark.full
@pytest.mark.training
def test_a_model_answers_for_the_modalities_it_was_trained_on(tmp_path: Path, job: Job) -> None:
    for number, label in enumerate(CLASSES):
        (tmp_path / "ct" / label).mkdir(parents=True)
        for one in range(8):
            data = dicom(frames(20 * number + one), Modality="CT", PatientID=f"{label}{one}")
            (tmp_path / "ct" / label / f"{one}.dcm").write_bytes(data)
    entry = job.entry.model_copy(update={"modality": "any", "classes": list(CLASSES)})
    archive = FetchConfig(archive=str(tmp_path / "ct"))
    case = prepare(tmp_path / "project", entry, archive, 32, loop={"epochs": 1}, data={"val_frac": 0.4})
    path = case.job.layout.absolute(case.checkpoint.checkpoint)
    for stored in (path, path.with_name("best.safetensors")):
        (found,) = Classifier.load(stored).predict(data)
        assert found.error is None and found.predicted in CLASSES
    meta, weights = load_checkpoint(path)
    preprocessing = meta.preprocessing.model_dump(exclude={"modality"})
    older = CheckpointMeta.model_validate(meta.model_dump() | {"preprocessing": preprocessing})
    save_checkpoint(tmp_path / "older.pth", weights, older)
    (refused,) = Classifier.load(tmp_path / "older.pth").predict(data)
    assert "another modality than MR" in str(refused.error)


def test_a_folder_lists_scans_by_content_and_no_index(tmp_path: Path) -> None:
    hospital(tmp_path / "set")
    (tmp_path / "set" / "notes.dat").write_bytes(b"\x08\0\x05\0text that begins as a data set might")
    found = [Path(path).name for path in list_images([str(tmp_path / "set")])]
    assert sorted(found) == sorted(
        2 * [*(f"MR.1.2.840.{n}" for n in range(4)), "frames.dcm", *(f"volume{n}.nii" for n in range(3))]
    )


@pytest.mark.parametrize(
    ("count", "rule", "chosen"),
    [
        (1, {}, [0]),
        (10, {}, list(range(10))),
        (12, {}, list(range(3, 9))),
        (12, {"share": 1}, list(range(12))),
        (12, {"every": 2}, [3, 5, 7]),
        (3, {"share": 0.1, "whole_up_to": 0}, [1]),
    ],
)
def test_the_slices_of_a_file_are_chosen_around_its_middle(
    count: int, rule: dict[str, float], chosen: list[int]
) -> None:
    assert list(SlicesConfig.model_validate(rule).chosen(count)) == chosen
