from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brainmri_core.config.data import FetchConfig, ResizeConfig, SplitConfig, ValidateConfig
from brainmri_core.config.evaluation import EvaluateConfig
from brainmri_core.copies.fingerprint import fingerprint
from brainmri_core.errors import ConfigError
from brainmri_core.evaluation.tested_model import load_tested_model
from brainmri_core.fetch import fetch
from brainmri_core.images.decode import decode
from brainmri_core.images.levels import common_range, own_range
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.checkpoint import load_checkpoint, save_checkpoint
from brainmri_core.predict import Classifier
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.sample_table import read_samples
from brainmri_core.resize import resize
from brainmri_core.split import split
from brainmri_core.validate import validate
from brainmri_core.validation.report import load_report
from tests.core.evaluation_case import Case, prepare

pytestmark = pytest.mark.training

PHOTOMETRIC, MIN, MAX, FORMAT, SMIN, SMAX = 262, 280, 281, 339, 340, 341


def slice_of(top: int, seed: int = 0, side: int = 64) -> np.ndarray:
    """A head of 12 bits on black, its one brightest pixel `top`: uint16 ``(side, side)``."""
    rng = np.random.default_rng(seed)
    rough = Image.fromarray(rng.integers(300, 3600, (8, 8)).astype(np.float32)).resize((side, side), 2)
    y, x = np.mgrid[:side, :side] / (side - 1) - 0.5
    head = np.where(np.hypot(y, x) < 0.42, np.asarray(rough), 0).clip(0, 3900).astype(np.uint16)
    head[side // 2, side // 2] = top
    return head


def encoded(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def with_sbit(data: bytes, bits: int) -> bytes:
    body = b"sBIT" + bytes([bits])
    return data[:33] + struct.pack(">I", 1) + body + struct.pack(">I", zlib.crc32(body)) + data[33:]


def with_tag(data: bytes, tag: int, before: int, after: int) -> bytes:
    """Change a tag of a little-endian TIFF that Pillow writes as it likes."""
    old, new = (struct.pack("<HHII", tag, 3, 1, value) for value in (before, after))
    assert data.count(old) == 1
    return data.replace(old, new)


def kinds(pixels: np.ndarray) -> dict[str, bytes]:
    """The same values in each kind of file that declares no depth."""
    return {
        "png": encoded(pixels, "PNG"),
        "tiff": encoded(pixels, "TIFF"),
        "big-endian tiff": encoded(Image.fromarray(pixels.astype(">u2")), "TIFF"),
        "signed tiff": encoded(Image.fromarray(pixels.astype(np.int32)), "TIFF"),
        "float tiff": encoded(pixels.astype(np.float32), "TIFF"),
    }


@pytest.mark.parametrize("kind", list(kinds(slice_of(4095))))
@pytest.mark.parametrize("ranges", [{}, dict.fromkeys(["16-bit", "32-bit", "float"], (0.0, 4000.0))])
def test_one_step_more_in_the_brightest_pixel_changes_nothing_a_person_sees(
    kind: str, ranges: dict[str, tuple[float, float]]
) -> None:
    shown = [
        decode(kinds(slice_of(top))[kind], name="x", gray_ranges=ranges).pixels for top in (4095, 4096, 65535)
    ]
    assert shown[0].max() == 255
    for other in shown[1:]:
        assert np.abs(shown[0].astype(int) - other).max() <= 1


@pytest.mark.parametrize("kind", list(kinds(slice_of(4095))))
def test_fingerprints_do_not_depend_on_the_brightest_pixel(kind: str) -> None:
    first, second = (fingerprint(kinds(slice_of(top))[kind], "x") for top in (4095, 4096))
    assert np.abs(first.thumb.astype(int) - second.thumb).max() <= 1
    assert first.thumb.std() > 20
    assert first.pixel_sha256 != second.pixel_sha256, "they are not the same to the last bit"


def test_the_same_values_have_one_hash_in_every_kind_of_file() -> None:
    hashes = {fingerprint(data, "x").pixel_sha256 for data in kinds(slice_of(4095)).values()}
    assert len(hashes) == 1
    assert fingerprint(encoded(slice_of(4095).astype(np.uint8), "PNG"), "x").pixel_sha256 not in hashes


@pytest.mark.parametrize("top", [4095, 3000])
def test_what_a_file_declares_decides(top: int) -> None:
    pixels = np.minimum(slice_of(4095), top).astype(np.uint16)
    expected = np.round(pixels * (255 / 4095))
    spread = (pixels.astype(np.uint32) * 65535 // 4095).astype(np.uint16)
    fractions = (pixels / 4095).astype(np.float32)
    declaring = {
        "PNG of 12 significant bits, as they are": with_sbit(encoded(pixels, "PNG"), 12),
        "PNG of 12 significant bits, filled up by repetition": with_sbit(encoded(spread, "PNG"), 12),
        "PNG of 12 significant bits, filled up with zeros": with_sbit(encoded(pixels << 4, "PNG"), 12),
        "TIFF with its greatest value": encoded(pixels, "TIFF", tiffinfo={MAX: 4095}),
        "TIFF with a typed range": encoded(fractions, "TIFF", tiffinfo={SMIN: 0.0, SMAX: 1.0}),
    }
    for name, data in declaring.items():
        found = decode(data, name="x", gray_ranges={"16-bit": (0, 9), "float": (0, 9)})
        assert found.scaled_by == "declared depth", name
        assert np.abs(found.pixels - expected).max() <= 1, name
    full = with_sbit(encoded(pixels, "PNG"), 16)
    assert np.abs(decode(full, name="x").pixels - np.round(pixels / 257)).max() <= 1


def test_a_greatest_value_that_was_only_found_is_no_declaration() -> None:
    data = encoded(slice_of(3217), "TIFF", tiffinfo={MIN: 0, MAX: 3217})
    assert decode(data, name="x", gray_ranges={"16-bit": (0, 4095)}).scaled_by == "data set"


def test_negative_missing_large_and_reversed_values() -> None:
    pixels = slice_of(3900).astype(np.float32)
    holes = pixels - 1000
    holes[0, :3] = np.nan, np.inf, -np.inf
    shown = decode(encoded(holes, "TIFF"), name="x", gray_ranges={"float": (-1000, 3095)}).pixels
    assert shown[0, :3].tolist() == [0, 255, 0]
    assert np.abs(shown[1:] - np.round(pixels[1:] * 255 / 4095)).max() <= 1
    assert not decode(encoded(np.full((8, 8), np.nan, np.float32), "TIFF"), name="x").pixels.any()
    large = (pixels.astype(np.uint32) << 20).view(np.int32)  # beyond what 32 signed bits hold
    data = with_tag(encoded(Image.fromarray(large), "TIFF"), FORMAT, 2, 1)
    unsigned = decode(data, name="x", gray_ranges={"32-bit": (0, 2.0**32)})
    assert np.abs(unsigned.pixels - np.round(pixels * 255 / 4096)).max() <= 1
    reversed_ = with_tag(encoded(slice_of(4095), "TIFF"), PHOTOMETRIC, 1, 0)
    limits = {"16-bit": (0.0, 4095.0)}
    straight = decode(encoded(slice_of(4095), "TIFF"), name="x", gray_ranges=limits).pixels
    assert np.array_equal(decode(reversed_, name="x", gray_ranges=limits).pixels, 255 - straight)


def test_one_foreign_file_does_not_darken_the_others() -> None:
    ranges = [own_range(slice_of(4000 + n, n).astype(np.float32), whole=True) for n in range(30)]
    found = [limits for limits in ranges if limits]
    shared = common_range(found)
    assert shared is not None and shared[0] == 0 and 3000 < shared[1] <= 4100
    assert common_range([*reversed(found), (0.0, 65535.0)]) == pytest.approx(shared, rel=0.05)
    assert common_range([]) is None


def folder_of(root: Path, mixed: bool) -> Path:
    """Class folders of deep images; where `mixed`, those of one class are JPEG and of one float TIFF."""
    for number, label in enumerate(("glioma", "notumor", "pituitary")):
        (root / label).mkdir(parents=True)
        for n in range(12):
            pixels = slice_of(3950 + 20 * n, 100 * number + n)
            kind = ("png", "jpg", "tif")[number] if mixed else "png"
            data = {
                "png": lambda p: encoded(p, "PNG"),
                "jpg": lambda p: encoded((p >> 4).clip(0, 255).astype(np.uint8), "JPEG", quality=95),
                "tif": lambda p: encoded((p / 4095).astype(np.float32), "TIFF"),
            }[kind](pixels)
            # numbers that do not follow each other: neighbours that look alike would be one group
            (root / label / f"{2 * n}.{kind}").write_bytes(data)
    return root


def entry() -> Any:
    known = load_catalogue()["brainmri/phantom"]
    return known.model_copy(update={"source": "archive", "classes": ["glioma", "notumor", "pituitary"]})


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Case:
    base = tmp_path_factory.mktemp("deep")
    source = folder_of(base / "source", mixed=False)
    config = FetchConfig(archive=str(source))
    return prepare(base / "project", entry(), config, 48, loop={"epochs": 1})


@pytest.mark.full
def test_prediction_prepares_a_deep_image_as_training_did(deep: Case) -> None:
    table = read_samples(deep.job.layout.absolute(deep.pack.samples))
    pack = open_pack(deep.job.layout, deep.pack)
    root = deep.job.layout.absolute(deep.fetched.dataset_root)
    classifier = Classifier.load(deep.job.layout.absolute(deep.checkpoint.checkpoint))
    assert classifier.meta.preprocessing.gray_ranges == deep.pack.gray_ranges
    low, high = deep.pack.gray_ranges["16-bit"]
    assert low == 0 and 3000 < high < 4300
    assert deep.pack.scaled_by == {"data set": 36}
    for path, row in zip(table["path"][:3], table["row"][:3], strict=True):
        (found,) = classifier.predict([root / path], maps=True)
        assert found.pixels is not None
        np.testing.assert_array_equal(found.pixels, pack[row])


def test_a_checkpoint_without_a_range_shows_an_image_between_its_own_percentiles(
    deep: Case, tmp_path: Path
) -> None:
    meta, weights = load_checkpoint(deep.job.layout.absolute(deep.checkpoint.checkpoint))
    stored = json.loads(meta.model_dump_json())
    del stored["preprocessing"]["gray_ranges"]  # as it was before
    save_checkpoint(tmp_path / "old.pt", weights, type(meta).model_validate(stored))
    data = encoded(slice_of(1000) // 8, "PNG")
    (found,) = Classifier.load(tmp_path / "old.pt").predict([data], maps=True)
    assert found.pixels is not None and found.pixels.max() > 200


def test_evaluation_says_when_other_data_was_scaled_otherwise(deep: Case) -> None:
    job = replace(deep.job, run_id="r2")
    other = resize(ResizeConfig(size=48, gray_ranges={"16-bit": (0, 9000)}), deep.mapping, job)
    assert other.gray_ranges == {"16-bit": (0, 9000)}
    assert open_pack(job.layout, other).max() < 130
    deep.records.clear()
    load_tested_model(EvaluateConfig(), deep.checkpoint, other, job)
    assert any("another gray range" in str(record) for record in deep.records)


def test_an_impossible_gray_range_is_refused() -> None:
    for value in ({"16-bit": (9, 3)}, {"8-bit": (0, 255)}):
        with pytest.raises((ConfigError, ValueError), match="black below white"):
            ResizeConfig(gray_ranges=value)


def test_each_depth_of_a_mixed_data_set_has_its_own_range_and_is_named(job: Job, tmp_path: Path) -> None:
    job = replace(job, entry=entry())
    fetched = write_pointer(job.layout, fetch(FetchConfig(archive=str(folder_of(tmp_path / "m", True))), job))
    mapping = write_pointer(job.layout, split(SplitConfig(seed=1), fetched, job))
    pack = write_pointer(job.layout, resize(ResizeConfig(size=48), mapping, job))
    assert set(pack.gray_ranges) == {"16-bit", "float"}
    assert 0.7 < pack.gray_ranges["float"][1] <= 1.05
    pixels = open_pack(job.layout, pack)
    table = read_samples(job.layout.absolute(pack.samples))
    means = {label: pixels[part["row"]].mean() for label, part in table.groupby("label")}
    assert max(means.values()) < 1.6 * min(means.values()), "none is nearly black"
    report = load_report(job.layout, validate(ValidateConfig(), pack, job))
    assert report.scaled_by == {"data set": 24} and report.gray_ranges == pack.gray_ranges
    finding = report.finding("mixed_depths")
    assert finding is not None and finding.severity == "warning" and finding.count == 24
    assert "12 of 16-bit" in finding.message and "12 of 8-bit" in finding.message
    page = job.layout.absolute("outputs").rglob("report.html")
    assert "24 images scaled by one range for the data set" in next(page).read_text()


def test_a_split_from_before_depths_were_recorded_is_resized_alike(deep: Case) -> None:
    layout = deep.job.layout
    table = read_samples(layout.absolute(deep.mapping.samples))
    file = layout.root / "outputs" / "older.parquet"
    table.drop(columns="depth").to_parquet(file)
    older = deep.mapping.model_copy(update={"samples": layout.relative(file)})
    again = resize(ResizeConfig(size=48), older, replace(deep.job, run_id="r3"))
    assert (again.gray_ranges, again.pack_sha256) == (deep.pack.gray_ranges, deep.pack.pack_sha256)
