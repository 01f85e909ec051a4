"""The hostile corpus against the archive reader, the decoder, the worker processes and the first two stages."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brainmri_core.config.data import FetchConfig, ResizeConfig, SplitConfig
from brainmri_core.copies import fingerprint
from brainmri_core.copies.fingerprint import fingerprint_files
from brainmri_core.errors import SourceError
from brainmri_core.evaluation.tested_data import gather_tested_data
from brainmri_core.fetch import fetch
from brainmri_core.images import isolation
from brainmri_core.images.decode import DecodeError, decode
from brainmri_core.images.isolation import stream_answers
from brainmri_core.images.pack import open_pack
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.sample_table import read_samples
from brainmri_core.resize import resize
from brainmri_core.sources.archive import extract_archive
from brainmri_core.sources.phantom import PhantomImage, PhantomTruth
from brainmri_core.split import split
from tests.counts import rest
from tests.security.corpus import LIMITS, PATIENT, archives, encoded, exif, images, png_of_size, slice_image

ARCHIVES, IMAGES = archives(), images()
STORED_AS = {  # Exif 2.3, tag 0x0112: how the stored picture comes from the upright one
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
REFUSED = {name: item for name, item in IMAGES.items() if item.refusal is not None}
TAKEN = {name: item for name, item in IMAGES.items() if item.refusal is None}


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("name", ARCHIVES)
def test_archive_is_refused_with_its_reason_or_unpacks_inside(tmp_path: Path, name: str) -> None:
    hostile = ARCHIVES[name]
    (tmp_path / "a.zip").write_bytes(hostile.data)
    (tmp_path / "dest").mkdir()
    if hostile.refusal is None:
        names = extract_archive(tmp_path / "a.zip", tmp_path / "dest", LIMITS)
        assert {(tmp_path / "dest" / item).is_file() for item in names} == {True}
    else:
        with pytest.raises(SourceError) as caught:
            extract_archive(tmp_path / "a.zip", tmp_path / "dest", LIMITS)
        assert hostile.refusal in str(caught.value)
        assert str(caught.value).isprintable()
        written = [path for path in (tmp_path / "dest").rglob("*") if path.is_file()]
        assert (
            sum(path.stat().st_size for path in written) <= 1001
        )  # what the lying one declares, and the good one
        assert not written or name == "more than declared"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "dest"]


def test_refused_archive_leaves_nothing_in_the_project(job: Job, tmp_path: Path) -> None:
    for number, (name, hostile) in enumerate(ARCHIVES.items()):
        if hostile.refusal is None:
            continue
        path = tmp_path / f"{number}.zip"
        path.write_bytes(hostile.data)
        with pytest.raises(SourceError):
            fetch(FetchConfig(archive=str(path), limits=LIMITS), job)
        cache = job.layout.dataset_cache("data", job.dataset)
        assert tree(cache) == [], name
    assert not Path("/tmp/evil.jpg").exists() and not (tmp_path / "evil.jpg").exists()


@pytest.mark.parametrize("name", REFUSED)
def test_file_that_is_no_usable_image_is_refused_with_a_reason(name: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(REFUSED[name].data, name=name)
    text = str(caught.value)
    assert text.startswith(f"{name} ") and str(REFUSED[name].refusal) in text
    assert text.isprintable() and text.endswith(".") and len(text) < 300


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", TAKEN)
def test_odd_but_whole_image_has_the_pixels_that_it_shows(name: str) -> None:
    gray = np.asarray(slice_image()).astype(int)
    colour = np.stack([gray, np.rot90(gray), gray], axis=2)
    expected: dict[str, Any] = {
        "cmyk.jpg": np.asarray(Image.fromarray(colour.astype(np.uint8)).convert("L")).astype(int),
        "bits.png": np.asarray(slice_image().convert("1")).astype(int) * 255,
        "alpha.png": np.where(np.arange(48) < 24, 0, gray),
        "float.tif": (gray - gray.min()) * 255 / (gray.max() - gray.min()),
    }
    expected["palette.png"] = expected["cmyk.jpg"]
    found = decode(TAKEN[name].data, name=name, gray_ranges={"16-bit": (0, 65535)})
    assert found.pixels.shape == (48, 48) and found.pixels.dtype == np.uint8
    difference = np.abs(found.pixels - expected.get(name, gray))
    exact = name not in ("cmyk.jpg", "palette.png", "float.tif") and ".jpg" not in name.replace("png.jpg", "")
    assert difference.max() <= (1 if exact else 40) and difference.mean() < 5
    assert found.has_metadata or not any(part in name for part in ("exif", "personal", "page-inside"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    upright = slice_image().crop((0, 0, 48, 32))
    stored = upright.transpose(STORED_AS[orientation]) if orientation > 1 else upright
    options: dict[str, Any] = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(kind, {})
    found = decode(encoded(stored, kind, exif=exif(orientation), **options), name="x")
    assert (found.width, found.height) == (48, 32)
    assert np.abs(found.pixels.astype(int) - np.asarray(upright)).max() <= 3
    assert found.has_metadata


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The whole corpus of images among good ones."""
    (tmp_path / "set").mkdir()
    for name, item in IMAGES.items():
        (tmp_path / "set" / name).write_bytes(item.data)
    return tmp_path / "set"


def test_workers_survive_the_corpus_and_name_every_file_they_refuse(folder: Path) -> None:
    names = sorted(IMAGES)
    table = fingerprint_files(folder, names, workers=1)
    assert {names[row] for row in table.failures} == set(REFUSED)
    for row, reason in table.failures.items():
        assert str(REFUSED[names[row]].refusal) in reason
        assert table.pixel_sha256[row] == ""
    assert all(table.pixel_sha256[row] for row in range(len(names)) if row not in table.failures)


def use_worker(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Let the files be fingerprinted by another program than the usual one."""

    def stream(read: Any, names: Any, workers: int, _: str) -> Iterator[Any]:
        return stream_answers(read, names, workers, module)

    monkeypatch.setattr(fingerprint, "stream_answers", stream)


@pytest.mark.full
def test_image_that_needs_too_much_memory_is_left_out_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_worker(monkeypatch, "tests.security.small_worker")
    (tmp_path / "deep.png").write_bytes(png_of_size(10_000, 7_500, depth=16, rows=True))
    (tmp_path / "good.png").write_bytes(encoded(slice_image()))
    table = fingerprint_files(tmp_path, ["deep.png", "good.png"], workers=1)
    assert list(table.failures) == [0], table.failures
    assert "more memory to decode than there is" in table.failures[0]
    assert table.pixel_sha256[1]


@pytest.mark.parametrize(
    ("accident", "how"),
    [
        ("segfault", "signal SIGSEGV"),
        *rest(("killed", "signal SIGKILL"), ("abort", "signal SIGABRT"), ("greedy", "exit code 1")),
        pytest.param("stall", "no answer in 20 s", marks=pytest.mark.slow),
    ],
)
def test_decoder_that_dies_costs_one_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accident: str, how: str
) -> None:
    use_worker(monkeypatch, "tests.security.accident_worker")
    if accident == "stall":
        monkeypatch.setattr(isolation, "SECONDS_PER_IMAGE", 20.0)
    names = [f"{n}.png" for n in range(12)]
    names[5] = f"{accident}.png"
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(encoded(slice_image().rotate(number)))
    table = fingerprint_files(tmp_path, names, workers=1)
    assert list(table.failures) == [5]
    assert f"ended the image decoder 2 times ({how})" in table.failures[5]
    assert sum(bool(item) for item in table.pixel_sha256) == 11


def test_ground_truth_that_an_archive_brings_along_is_not_believed(tmp_path: Path, job: Job) -> None:
    """It would name any file of this machine as a mask, to be opened outside of the worker processes."""
    (tmp_path / "outside.png").write_bytes(encoded(slice_image()))
    tree = tmp_path / "tree"
    drawn = PhantomTruth(
        seed=1,
        images=[
            PhantomImage(
                path=f"{label}/{number}.png",
                subject="s",
                plane="axial",
                label=label,
                filed_as=label,
                mask=str(tmp_path / "outside.png"),
            )
            for label in ("glioma", "notumor")
            for number in range(4)
        ],
    )
    rng = np.random.default_rng(0)
    for image in drawn.images:
        (tree / image.path).parent.mkdir(parents=True, exist_ok=True)
        (tree / image.path).write_bytes(encoded(Image.fromarray(rng.integers(0, 256, (48, 48), np.uint8))))
    (tree / "truth").mkdir()
    (tree / "truth/truth.json").write_text(drawn.model_dump_json())
    fetched = write_pointer(job.layout, fetch(FetchConfig(archive=str(tree)), job))
    mapping = write_pointer(job.layout, split(SplitConfig(seed=1), fetched, job))
    pack = write_pointer(job.layout, resize(ResizeConfig(size=32), mapping, job))
    found = gather_tested_data(pack, open_pack(job.layout, pack), job)
    assert (found.masks, found.planes) == ({}, {})


@pytest.mark.parametrize(
    "kind",
    [
        "text",
        *rest(
            "endless", "more", "list", "deep", "empty", "short", "words", "number", "nan", "half", "digest"
        ),
    ],
)
def test_a_worker_that_a_file_has_taken_over_costs_that_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    use_worker(monkeypatch, "tests.security.accident_worker")
    names = [f"{n}.png" for n in range(6)]
    names[2] = f"nonsense-{kind}.png"
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(encoded(slice_image().rotate(number)))
    table = fingerprint_files(tmp_path, names, workers=1)
    assert list(table.failures) == [2]
    assert sum(bool(item) for item in table.pixel_sha256) == 5


def test_more_answers_than_files_do_not_keep_the_pass_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_worker(monkeypatch, "tests.security.accident_worker")
    for number, name in enumerate(("0.png", "twice.png")):
        (tmp_path / name).write_bytes(encoded(slice_image().rotate(number)))
    table = fingerprint_files(tmp_path, ["0.png", "twice.png"], workers=1)
    assert all(table.pixel_sha256) and not table.failures


@pytest.mark.full
def test_two_dying_files_of_one_batch_are_told_from_their_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_worker(monkeypatch, "tests.security.accident_worker")
    names = [f"{n}.bmp" for n in range(40)]
    names[2], names[9], names[30] = "killed.bmp", "segfault.bmp", "killed-too.bmp"
    for number, name in enumerate(names):
        side = 1600 if number in (5, 9) else 48  # 2.5 MB: more than a batch holds, and more than a pipe
        (tmp_path / name).write_bytes(encoded(slice_image().rotate(number).resize((side, side)), "BMP"))
    sizes: list[int] = []
    table = fingerprint_files(tmp_path, names, workers=1, progress=sizes.append)
    assert sorted(table.failures) == [2, 9, 30] and sum(sizes) == 40
    assert "SIGKILL" in table.failures[2] and "SIGSEGV" in table.failures[9]
    whole = fingerprint_files(tmp_path, [name for name in names if name.split(".")[0].isdigit()], workers=2)
    assert [item for item in table.pixel_sha256 if item] == whole.pixel_sha256


def test_split_excludes_the_corpus_with_reasons_and_goes_on(job: Job, tmp_path: Path, folder: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as opened:
        for name, item in IMAGES.items():
            opened.writestr(f"glioma/{name}", item.data)
        for number in range(24):
            label = ("glioma", "meningioma", "pituitary", "notumor")[number % 4]
            noise = np.random.default_rng(number).integers(0, 255, (64, 64), np.uint8)
            opened.writestr(f"{label}/{number}.png", encoded(Image.fromarray(noise)))
    own = local(job)
    pointer = fetch(FetchConfig(archive=str(tmp_path / "set.zip")), own)
    mapping = split(SplitConfig(seed=1), pointer, own)
    table = read_samples(job.layout.absolute(mapping.samples)).set_index("path")
    left_out = read_samples(job.layout.absolute(pointer.samples).with_name("left_out.parquet")).set_index(
        "path"
    )
    assert left_out.index.tolist() == ["glioma/dicom.jpg"], "a scan by its content, opened by fetch"
    assert "DICOM" in left_out["reason"].iloc[0] and PATIENT not in left_out["reason"].iloc[0]
    for name in REFUSED.keys() - {"dicom.jpg"}:
        row = table.loc[f"glioma/{name}"]
        assert row["split"] == "excluded" and str(REFUSED[name].refusal) in row["reason"], name
    used = table[table["split"] != "excluded"]
    assert {f"glioma/{name}" for name in REFUSED}.isdisjoint(used.index)
    assert len(used) >= 24


def local(job: Job) -> Job:
    entry = load_catalogue()["brainmri/phantom"].model_copy(update={"source": "archive"})
    return replace(job, entry=entry)


def test_worker_has_limits_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_KEY", "secret")
    answers = list(stream_answers(lambda index: b"", ["limits"], 1, "tests.security.limits_worker"))
    [(_, (header, _))] = answers
    assert header["address_space"] <= 2 << 30 and header["core"] == 0
    assert "PYTHONPATH" in header["environment"]
    assert not {"KAGGLE_KEY", "HOME", "DAGSTER_HOME"} & set(header["environment"])


@pytest.mark.parametrize(("tag", "value", "telling"), [(None, None, False), (0x013B, "Jane Roe", True)])
def test_a_tiff_has_metadata_only_where_it_says_more_than_its_layout(
    tag: int | None, value: str | None, telling: bool
) -> None:
    data = encoded(Image.new("L", (32, 32)), "TIFF", tiffinfo={tag: value} if tag else {})
    assert decode(data, name="a.tiff").has_metadata is telling
