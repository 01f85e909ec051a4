"""Thumbnails of JPEGs of every size against a full decode, with something foreign beyond the edge of the image."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageFilter

from brainmri_core.arrays import U8
from brainmri_core.copies.fingerprint import fingerprint, thumbnails
from brainmri_core.images.decode import decode
from tests.counts import trials

KINDS = [("L", 95, -1), ("L", 50, -1), ("RGB", 75, 2), ("RGB", 90, 0), ("RGB", 85, 1)]


def head() -> Image.Image:
    """Return a head with fine structure that reaches all four edges, sharper than most scans."""
    rng = np.random.default_rng(8)
    fine = Image.fromarray(rng.integers(0, 256, (350, 350), dtype=np.uint8)).resize((700, 700))
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8)).resize((700, 700))
    y, x = np.mgrid[:700, :700] / 350 - 1
    mixed = Image.blend(coarse, fine.filter(ImageFilter.GaussianBlur(2)), 0.3)
    return Image.fromarray((np.asarray(mixed) * (np.hypot(x, y) < 1.1)).astype(np.uint8))


def cut_short(picture: Image.Image, mode: str, quality: int, subsampling: int, beyond: int) -> bytes:
    """Encode a picture whose last blocks go on in one gray level: only the header says where it ends."""
    width, height = picture.size
    larger = Image.new("L", (-(-width // 16) * 16, -(-height // 16) * 16), beyond)
    larger.paste(picture, (0, 0))
    buffer = io.BytesIO()
    larger.convert(mode).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    data = bytearray(buffer.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


def correlated(first: U8, second: U8) -> float:
    return float(np.corrcoef(first.ravel().astype(float), second.ravel().astype(float))[0, 1])


def sizes() -> Iterator[tuple[int, int]]:
    """Sides from 17 to 700, every seventh or all, square, nearly square and with a partner drawn at random."""
    rng = np.random.default_rng(5)
    for width in range(17, 701, trials(7, 1)):
        height = (width, max(17, width - int(rng.integers(1, 9))), int(rng.integers(17, 701)))[width % 3]
        yield width, height


def test_a_thumbnail_does_not_depend_on_the_scale_a_jpeg_is_decoded_at() -> None:
    source, worst = head(), []
    for number, (width, height) in enumerate(sizes()):
        mode, quality, subsampling = KINDS[number % len(KINDS)]
        picture = source.resize((width, height), Image.Resampling.BICUBIC)
        data = cut_short(picture, mode, quality, subsampling, (0, 255)[number % 2])
        with Image.open(io.BytesIO(data)) as image:
            full = image.convert("L")
        found = fingerprint(data, "x")
        direct = np.asarray(full.resize((64, 64), Image.Resampling.BILINEAR))
        worst.append((correlated(found.thumb, direct), width, height))
        assert correlated(found.trimmed_thumb, thumbnails(np.asarray(full))[1]) > 0.99, (width, height)
    assert min(worst)[0] > 0.998, sorted(worst)[:5]


@pytest.mark.parametrize("side", [0, 1, 2, 3])
@pytest.mark.parametrize("level", [70, 255])
def test_a_bright_line_along_one_edge_does_not_move_the_content(side: int, level: int) -> None:
    rng = np.random.default_rng(2)
    scan = np.zeros((240, 232), np.uint8)
    scan[40:200, 50:180] = np.kron(rng.integers(30, 160, (16, 13)), np.ones((10, 10))).astype(np.uint8)
    lined = np.rot90(scan, side).copy()
    lined[:, -1] = level
    assert correlated(thumbnails(np.rot90(lined, -side))[1], thumbnails(scan)[1]) > 0.99


def test_the_case_of_the_bright_last_row() -> None:
    """685 x 681 pixels are 172 x 171 at a quarter of the scale, and the last of them are three quarters foreign."""
    picture = head().resize((685, 681), Image.Resampling.BICUBIC)
    data = cut_short(picture, "RGB", 90, 0, 255)
    assert decode(data, name="x", reduce_to=128).pixels.shape == (681, 685)
    small = io.BytesIO()
    picture.resize((256, 256), Image.Resampling.LANCZOS).save(small, "JPEG", quality=90)
    copy = fingerprint(small.getvalue(), "y")
    assert correlated(fingerprint(data, "x").thumb, copy.thumb) > 0.995
