from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brainmri_core.config.data import FetchConfig, ResizeConfig, SplitConfig
from brainmri_core.fetch import fetch
from brainmri_core.images.decode import DecodeError
from brainmri_core.images.matlab import matlab_image
from brainmri_core.images.medical import medical_kind, medical_slices
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.sample_table import known_patients, read_samples
from brainmri_core.resize import resize
from brainmri_core.sources.index import LEFT_OUT
from brainmri_core.sources.masks import MASKS, MaskStore
from brainmri_core.split import split
from tests.matlab_files import PATIENTS, figshare_file, figshare_zip, made_slice, matlab_file

h5py = pytest.importorskip("h5py", reason="the extra `medical` is not installed")
KEY = "figshare/1512427"


@pytest.fixture
def figshare(job: Job) -> Job:
    return replace(job, entry=load_catalogue()[KEY])


def test_an_image_is_read_upright_with_all_that_the_file_says() -> None:
    image, mask = made_slice(3, 2)
    found = matlab_image(figshare_file(image, label=2, patient="MR040240B", mask=mask), "x")
    assert np.array_equal(found.values, image)
    assert found.mask is not None
    assert np.array_equal(found.mask, mask)
    assert (found.label, found.patient) == ("glioma", "MR040240"), "letters mark a repeated exam"
    image[0, 0] = -5
    assert matlab_image(figshare_file(image, label=9, patient=""), "x").values[0, 0] == 0


@pytest.mark.full
def test_the_set_as_delivered_comes_with_classes_patients_and_masks(tmp_path: Path, figshare: Job) -> None:
    pointer = fetch(FetchConfig(archive=str(figshare_zip(tmp_path / "set.zip"))), figshare)
    folder = figshare.layout.absolute(pointer.samples).parent
    table = read_samples(folder / "samples.parquet")
    assert pointer.class_counts == {"meningioma": 8, "glioma": 8, "pituitary": 8}
    assert table["path"].str.fullmatch(r"brainTumorDataPublic_\d+-\d+/\d+\.mat#1").all()
    numbers = table["path"].str.extract(r"/(\d+)\.mat")[0].astype(int)
    patients = table["patient"].to_numpy()[np.argsort(numbers)]
    assert len(set(patients)) == 5, "two of the six ids are exams of one patient"
    assert all(name.startswith("hashed:") for name in patients)
    assert patients[4] == patients[8] != patients[0]
    left_out = read_samples(folder / LEFT_OUT).set_index("path")
    assert left_out["kind"].to_dict()["cvind.mat"] == "unread"
    assert "cjdata" in left_out.loc["cvind.mat", "reason"]
    assert (left_out["kind"] == "opened").sum() == pointer.n_slices == 24
    masks = MaskStore.read(folder / MASKS)
    for path, number in zip(table["path"], numbers, strict=True):
        image, mask = made_slice(number, 1 + (number - 1) // 8)
        assert np.array_equal(masks[path], mask)
        with Image.open(figshare.layout.absolute(pointer.dataset_root) / path) as opened:
            assert np.array_equal(np.asarray(opened), image)


@pytest.mark.full
def test_the_whole_set_shares_one_gray_range_and_predict_takes_it(tmp_path: Path, figshare: Job) -> None:
    from brainmri_core.images.fit_worker import answers

    fetched = fetch(FetchConfig(archive=str(figshare_zip(tmp_path / "set.zip"))), figshare)
    mapping = split(SplitConfig(seed=1, test_frac=0.3), fetched, figshare)
    table = read_samples(figshare.layout.absolute(mapping.samples))
    assert (known_patients(table) != "").all()
    sides = table[table["split"] != "excluded"].groupby("patient")["split"].nunique()
    assert mapping.classes == ["glioma", "meningioma", "pituitary"]
    pack = resize(ResizeConfig(size=48), mapping, figshare)
    assert list(pack.gray_ranges) == ["16-bit"]
    assert sides.max() >= 1
    packed = read_samples(figshare.layout.absolute(pack.samples)).set_index("path")
    pixels = np.load(figshare.layout.absolute(pack.pack))
    path = next(path for path in packed.index if packed.loc[path, "row"] >= 0)
    file = figshare.layout.absolute(fetched.dataset_root) / path.removesuffix("#1")
    [answer] = answers(file.read_bytes(), "x", 48, pack.fit, True, pack.gray_ranges)
    assert answer.endswith(pixels[packed.loc[path, "row"]].tobytes())


def test_no_patient_id_is_written(tmp_path: Path, figshare: Job) -> None:
    pointer = fetch(FetchConfig(archive=str(figshare_zip(tmp_path / "set.zip"))), figshare)
    for path in figshare.layout.root.rglob("*"):
        if path.is_file() and path.suffix != ".mat":
            data = path.read_bytes()
            data += read_samples(path).to_csv().encode() if path.suffix == ".parquet" else b""
            assert not any(patient.encode() in data for patient in PATIENTS), path
    assert pointer.n_slices


def test_class_folders_go_before_the_label_in_the_file(tmp_path: Path, figshare: Job) -> None:
    for number in range(1, 5):
        folder = tmp_path / "set" / ("glioma" if number < 3 else "pituitary")
        folder.mkdir(parents=True, exist_ok=True)
        image, _ = made_slice(number, 1)
        (folder / f"{number}.mat").write_bytes(figshare_file(image, label=1, patient=f"{number}"))
    pointer = fetch(FetchConfig(archive=str(tmp_path / "set")), figshare)
    assert pointer.class_counts == {"glioma": 2, "pituitary": 2}


def outside(tmp_path: Path) -> bytes:
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["secret"] = np.ones((8, 8), np.int16)
    return bytes(path)


def linked(file: Any, tmp_path: Path) -> None:
    file.create_group("cjdata")["image"] = h5py.ExternalLink(outside(tmp_path).decode(), "secret")


def linked_group(file: Any, tmp_path: Path) -> None:
    file["cjdata"] = h5py.ExternalLink(outside(tmp_path).decode(), "/")


def soft(file: Any, tmp_path: Path) -> None:
    file["other"] = np.ones((8, 8), np.int16)
    file.create_group("cjdata")["image"] = h5py.SoftLink("/other")


def stored_elsewhere(file: Any, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"x" * 128)
    file.create_group("cjdata").create_dataset(
        "image", (8, 8), np.int16, external=[(str(tmp_path / "raw"), 0, 128)]
    )


def virtual(file: Any, tmp_path: Path) -> None:
    layout = h5py.VirtualLayout((8, 8), np.int16)
    layout[:] = h5py.VirtualSource(outside(tmp_path).decode(), "secret", (8, 8))
    file.create_group("cjdata").create_virtual_dataset("image", layout)


def filtered(file: Any, tmp_path: Path) -> None:
    file.create_group("cjdata").create_dataset("image", data=np.ones((8, 8), np.int16), compression="lzf")


def huge(file: Any, tmp_path: Path) -> None:
    file.create_group("cjdata").create_dataset("image", (10**6, 10**6), np.int16, chunks=(64, 64))


def huge_pieces(file: Any, tmp_path: Path) -> None:
    file.create_group("cjdata").create_dataset(
        "image", (8, 8), np.int16, chunks=(9000, 9000), maxshape=(None, None)
    )


def huge_label(file: Any, tmp_path: Path) -> None:
    group = file.create_group("cjdata")
    group["image"] = np.ones((8, 8), np.int16)
    group.create_dataset("label", (10**7, 10**5), np.int8, chunks=(64, 64))


def text(file: Any, tmp_path: Path) -> None:
    file.create_group("cjdata")["image"] = "not an image"


def cube(file: Any, tmp_path: Path) -> None:
    file.create_group("cjdata")["image"] = np.ones((8, 8, 8), np.int16)


def a_group(file: Any, tmp_path: Path) -> None:
    file.create_group("cjdata/image")


@pytest.mark.parametrize(
    "fill",
    [linked, linked_group, soft, stored_elsewhere, virtual, filtered, huge, huge_pieces, huge_label, text, cube, a_group],
)  # fmt: skip
def test_hdf5_that_leads_elsewhere_or_claims_too_much_is_one_sentence(
    tmp_path: Path, fill: Callable[[Any, Path], None]
) -> None:
    data = matlab_file(lambda file: fill(file, tmp_path))
    with pytest.raises(DecodeError, match=r"^scan") as caught:
        list(medical_slices(data, "scan", "matlab"))
    assert "\n" not in str(caught.value)
    assert "damaged" not in str(caught.value), "said by what it is, not by what the library raised"


@pytest.mark.parametrize("cut", [130, 520, 2000, 4000])
def test_a_cut_file_is_one_sentence(cut: int) -> None:
    image, mask = made_slice(1, 1)
    data = figshare_file(image, label=1, patient="1", mask=mask)[:cut]
    assert medical_kind(data, "x") == "matlab"
    with pytest.raises(DecodeError, match="x"):
        list(medical_slices(data, "x", "matlab"))


@pytest.mark.full
def test_a_damaged_file_costs_itself_and_no_other(tmp_path: Path, figshare: Job) -> None:
    whole = zipfile.ZipFile(figshare_zip(tmp_path / "set.zip"))
    with zipfile.ZipFile(tmp_path / "broken.zip", "w") as target:
        for part in whole.namelist():
            if part.endswith(".zip"):
                inner = zipfile.ZipFile(io.BytesIO(whole.read(part)))
                for name in inner.namelist():
                    data = inner.read(name)
                    target.writestr(name, data[: len(data) // 2] if name == "3.mat" else data)
    pointer = fetch(FetchConfig(archive=str(tmp_path / "broken.zip")), figshare)
    left_out = read_samples(figshare.layout.absolute(pointer.samples).with_name(LEFT_OUT)).set_index("path")
    assert pointer.n_images == 23
    assert left_out.loc["3.mat", "kind"] == "unread"
    assert "3.mat" in left_out.loc["3.mat", "reason"]
