from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from brainmri_core.config.data import ResizeConfig
from brainmri_core.copies.fingerprint import fingerprint
from brainmri_core.errors import IntegrityError
from brainmri_core.images.fit import Fit, fit_image, image_part
from brainmri_core.images.pack import open_pack
from brainmri_core.project.job import Job
from brainmri_core.project.pointers import MappingPointer
from brainmri_core.project.sample_table import read_samples, write_samples
from brainmri_core.resize import resize
from brainmri_core.system.checksums import sha256_file


def make_mapping(job: Job, images: dict[str, Image.Image | bytes]) -> MappingPointer:
    root = job.layout.root / "data" / "raw" / "files"
    rows = []
    for number, (path, image) in enumerate(images.items()):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, bytes):
            file.write_bytes(image)
        else:
            image.save(file)
        rows.append(
            {
                "path": path,
                "label": "glioma",
                "origin": "none",
                "bytes": file.stat().st_size,
                "file_sha256": sha256_file(file),
                "found_label": "glioma",
                "class_index": 0,
                "pixel_sha256": str(number),
                "colourfulness": 0.0
                if isinstance(image, bytes)
                else fingerprint(file.read_bytes(), path).colourfulness,
                "phash": number,
                "phash_mirrored": number,
                "group": str(number),
                "split": "train",
                "fold": 0,
                "reason": "",
            }
        )
    samples = job.layout.root / "outputs" / "samples.parquet"
    write_samples(samples, pd.DataFrame(rows))
    return MappingPointer(
        dataset=job.dataset,
        run_id=job.run_id,
        content_hash="0" * 64,
        pointer_path="outputs/pointers/mapping/x.json",
        classes=["glioma", "notumor"],
        num_classes=2,
        index_remap=None,
        path="outputs/index_remap.json",
        written_at_utc="2026-01-01T00:00:00Z",
        samples="outputs/samples.parquet",
        dataset_root="data/raw/files",
        split_json="outputs/split.json",
        fetch_pointer=None,
        counts={},
    )


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    low = np.random.default_rng(seed).integers(0, 255, (8, 8), dtype=np.uint8)
    return Image.fromarray(low).resize((width, height), Image.Resampling.BICUBIC)


def test_other_extensions_than_the_configured_are_left_out_with_the_reason(job: Job) -> None:
    mapping = make_mapping(job, {"a/1.png": noise(40, 60, 1), "a/2.bmp": noise(40, 60, 2)})
    pointer = resize(ResizeConfig(size=32, exts=[".png"]), mapping, job)
    table = read_samples(job.layout.absolute(pointer.samples)).set_index("path")
    assert pointer.n_images == 1
    assert table.loc["a/2.bmp", ["split", "reason"]].tolist() == ["excluded", "extension not in resize.exts"]


def test_pack_holds_every_image_in_table_order(job: Job) -> None:
    images: dict[str, Image.Image | bytes] = {f"a/{n}.png": noise(40 + n, 60, n) for n in range(200)}
    pointer = resize(ResizeConfig(size=32), make_mapping(job, images), job)
    pack = open_pack(job.layout, pointer)
    table = read_samples(job.layout.absolute(pointer.samples))
    assert pack.shape == (200, 32, 32)
    assert table["row"].tolist() == list(range(200))
    for n in (0, 77, 199):
        expected = fit_image(np.asarray(images[f"a/{n}.png"]), 32, "letterbox")
        np.testing.assert_array_equal(pack[n], expected)
        inside = image_part(40 + n, 60, 32, "letterbox")
        assert table.loc[n, ["mean", "std"]].tolist() == pytest.approx(
            [expected[inside].mean(), expected[inside].std()], rel=1e-4
        )
    assert table.loc[3, ["width", "height", "mode"]].tolist() == [60, 43, "L"]


def test_the_result_is_the_same_however_the_pack_is_cut(job: Job) -> None:
    mapping = make_mapping(job, {f"a/{n}.png": noise(40 + n, 60, n) for n in range(20)})
    whole = resize(ResizeConfig(size=256, shard_mib=0), mapping, job)
    cut = resize(
        ResizeConfig(size=256, shard_mib=1, out_dir="data/cut", export_tree="data/tree"), mapping, job
    )
    assert (whole.shard_bytes, cut.shard_bytes) == (0, 1 << 20)
    same = ("content_hash", "pack_sha256", "n_images", "size", "channels")
    assert [getattr(cut, name) for name in same] == [getattr(whole, name) for name in same]
    folder = job.layout.absolute(cut.pack).parent
    assert sorted(path.name for path in folder.glob("pack.npy*")) == ["pack.npy", "pack.npy.1"]
    assert np.array_equal(open_pack(job.layout, cut), open_pack(job.layout, whole))
    assert len(list((job.layout.root / "data/tree").rglob("*.png"))) == 20


def test_letterbox_keeps_the_aspect_ratio_and_stretch_does_not() -> None:
    pixels = np.full((100, 50), 200, np.uint8)
    boxed = fit_image(pixels, 64, "letterbox")
    assert (boxed[:, 16:48] == 200).all()
    assert (boxed[:, :16] == 0).all()
    assert (boxed[:, 48:] == 0).all()
    assert (fit_image(pixels, 64, "stretch") == 200).all()
    assert fit_image(np.zeros((3, 5, 3), np.uint8), 16, "letterbox").shape == (16, 16, 3)


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_mean_and_deviation_are_of_the_image_not_of_the_border(job: Job, fit: Fit) -> None:
    """A constant image stays one, whatever its shape; so validation sees that it is blank."""
    images = {"a/flat.png": Image.new("L", (90, 30), 120), "a/white.jpg": Image.new("L", (40, 100), 255)}
    pointer = resize(ResizeConfig(size=32, fit=fit), make_mapping(job, {**images}), job)
    table = read_samples(job.layout.absolute(pointer.samples)).set_index("path")
    assert table["mean"].tolist() == pytest.approx([120, 255], abs=1)
    assert table["std"].tolist() == pytest.approx([0, 0], abs=0.5)


def test_corrupt_image_is_excluded_with_the_reason_and_the_rest_goes_on(job: Job) -> None:
    images: dict[str, Image.Image | bytes] = {
        "a/0.png": noise(40, 40),
        "a/1.png": b"not an image",
        "a/2.png": noise(50, 40, 2),
    }
    pointer = resize(ResizeConfig(size=32), make_mapping(job, images), job)
    table = read_samples(job.layout.absolute(pointer.samples))
    assert pointer.n_images == 2
    assert pointer.pack_sha256 == sha256_file(job.layout.absolute(pointer.pack))
    assert table["row"].tolist() == [0, -1, 1]
    assert table["split"].tolist() == ["train", "excluded", "train"]
    assert "a/1.png" in table.loc[1, "reason"]
    np.testing.assert_array_equal(
        open_pack(job.layout, pointer)[1], fit_image(np.asarray(images["a/2.png"]), 32, "letterbox")
    )


def test_colour_images_make_a_colour_pack_and_gray_ones_do_not(job: Job) -> None:
    red = Image.fromarray(np.tile(np.array([200, 10, 10], np.uint8), (40, 40, 1)))
    gray = noise(40, 40).convert("RGB")
    assert resize(ResizeConfig(size=32), make_mapping(job, {"a/0.png": gray}), job).channels == 1
    other = Job(job.layout, "r2", job.entry, job.log)
    assert (
        resize(ResizeConfig(size=32), make_mapping(job, {"a/0.png": gray, "a/1.png": red}), other).channels
        == 3
    )


def test_changed_image_is_refused_by_name(job: Job) -> None:
    mapping = make_mapping(job, {"a/0.png": noise(40, 40), "a/1.png": noise(40, 40, 1)})
    noise(40, 40, 9).save(job.layout.root / "data/raw/files/a/1.png")
    with pytest.raises(IntegrityError, match=r"a/1\.png"):
        resize(ResizeConfig(size=32), mapping, job)
    assert not (job.layout.root / "data/training_resized" / job.dataset / job.run_id).exists()


def test_export_is_a_class_folder_tree(job: Job) -> None:
    config = ResizeConfig(size=32, export_tree="data/browse")
    resize(config, make_mapping(job, {"a/0.png": noise(40, 40)}), job)
    files = [
        p.relative_to(job.layout.root / "data/browse")
        for p in (job.layout.root / "data/browse").rglob("*.png")
    ]
    assert files == [Path("train/glioma/000000-0.png")]
