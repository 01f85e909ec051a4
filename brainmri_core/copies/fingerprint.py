"""Fingerprints of images, by which copies are found: checksum of the pixels, perceptual hashes and thumbnails."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from brainmri_core.arrays import F32, F64, U8, U64
from brainmri_core.copies.likeness import DARK, ORIENTATIONS, THUMB_SIDE
from brainmri_core.images.decode import decode
from brainmri_core.images.isolation import finite, no_answer, read_below, stream_answers
from brainmri_core.system.storage import storage_error
from brainmri_core.system.threads import cores

_HASH_SIDE = 8
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DEPTH = re.compile(r"[0-9]{1,2}-bit|float")
_LEAST_DECODED = 128
_SHRUNK = 192
_SAME = 16  # gray levels by which the pixels of a frame may vary
_STRAY = 0.02  # share of them that may vary more
_TAIL = 0.01
_LEAST_CONTENT = 8.0
_CHUNK = 256
_LEAST_SHARE = 32  # images per worker process below which its start takes longer than it saves
_IN_MEMORY = 16_384


@dataclass(frozen=True)
class Fingerprint:
    """Fingerprint of one image.

    Attributes
    ----------
    pixel_sha256 : str
        SHA-256 of the decoded gray pixels and their shape. JPEG whose sides are multiples of eight is decoded at the
        smallest scale whose shorter side is still 128 pixels. So two files that differ only in the finest detail may have
        the same hash, and a JPEG and a PNG of the same pixels have different ones. For more than 8 bits it is the hash of
        the original values.
    colourfulness : float
        Mean absolute difference between the colour channels, in gray levels; 0 for gray images.
    depth : str
        Depth of the file's samples, as in `decode.Decoded`.
    thumb : numpy.ndarray
        uint8, ``(64, 64)``: the whole image scaled down, without keeping the aspect ratio.
    trimmed_thumb : numpy.ndarray
        The same for the image without its margins, so that padded copies are found.
    """

    pixel_sha256: str
    colourfulness: float
    depth: str
    thumb: U8
    trimmed_thumb: U8


@dataclass(frozen=True)
class FingerprintTable:
    """Fingerprints of many images, in the order of their paths.

    Attributes
    ----------
    pixel_sha256 : list of str
        Empty text where the image could not be read.
    colourfulness : numpy.ndarray
        float64, ``(N,)``; 0 where the image could not be read.
    hashes, trimmed_hashes : numpy.ndarray
        uint64, ``(N, 8)``: in the order of `likeness.ORIENTATIONS`.
    thumbs, trimmed_thumbs : numpy.ndarray
        uint8, ``(N, 64, 64)``.
    failures : dict
        Row to the reason, for images that could not be read.
    depths : list of str
        Depths of the files' samples; empty text where the image could not be read.
    """

    pixel_sha256: list[str]
    colourfulness: F64
    hashes: U64
    trimmed_hashes: U64
    thumbs: U8
    trimmed_thumbs: U8
    failures: dict[int, str]
    depths: list[str]

    @classmethod
    def empty(cls, n: int) -> FingerprintTable:
        """Return a table of n rows to be filled; from 16,384 rows on, its thumbnails are in an unnamed temporary file."""
        hashes, trimmed = np.zeros((2, n, len(ORIENTATIONS)), np.uint64)
        return cls([""] * n, np.zeros(n), hashes, trimmed, _thumbs_array(n), _thumbs_array(n), {}, [""] * n)


@cache
def _dct_matrix() -> F32:
    """Return the first eight rows of the orthonormal DCT-II of length 32."""
    n = 32
    k = np.arange(_HASH_SIDE)[:, None]
    matrix = np.sqrt(2 / n) * np.cos(np.pi * (2 * np.arange(n)[None] + 1) * k / (2 * n))
    matrix[0] /= np.sqrt(2)
    result: F32 = matrix.astype(np.float32)
    return result


@cache
def _flips() -> F32:
    """Return the signs that turn the DCT of an image into that of its flips (odd frequencies change sign): ``(4, 8, 8)``."""
    odd = np.where(np.arange(_HASH_SIDE) % 2, -1.0, 1.0).astype(np.float32)
    ones = np.ones(_HASH_SIDE, np.float32)
    return np.stack(
        [np.outer(down, right) for down, right in ((ones, ones), (ones, odd), (odd, ones), (odd, odd))]
    )


def half_size(images: U8 | F32) -> F32:
    """Average 2 x 2 pixels: ``(N, H, W)`` to float32 ``(N, H / 2, W / 2)``, exactly."""
    wide = images.astype(np.float32)
    rows = wide[:, ::2] + wide[:, 1::2]
    return (rows[:, :, ::2] + rows[:, :, 1::2]) * np.float32(0.25)


def perceptual_hashes(thumbs: U8) -> U64:
    """Return the 64-bit DCT hashes of thumbnails in all eight orientations, from one transform each.

    Each bit says whether one of the 8 x 8 lowest frequencies is above their median (Zauner, Implementation and
    benchmarking of perceptual image hash functions, 2010). A constant image has the hash 0.

    Parameters
    ----------
    thumbs : numpy.ndarray
        uint8, ``(N, 64, 64)``.

    Returns
    -------
    numpy.ndarray
        uint64, ``(N, 8)``: in the order of `likeness.ORIENTATIONS`.
    """
    small = half_size(thumbs)
    matrix = _dct_matrix()
    low = (matrix @ small @ matrix.T)[:, None]
    # The DCT of a transposed image is the transposed DCT.
    low = np.concatenate([low * _flips(), low.swapaxes(2, 3) * _flips()], axis=1)
    low[:, :, 0, 0] = 0  # the first coefficient is the brightness, which must not matter
    flat = low.reshape(-1, len(ORIENTATIONS), _HASH_SIDE**2)
    bits = flat > np.median(flat, axis=2, keepdims=True)
    bits &= (
        np.ptp(flat, axis=2, keepdims=True) > 2**-8
    )  # below, the image is constant but for rounding errors
    return np.packbits(bits, axis=2).view(">u8")[..., 0].astype(np.uint64)


def shrink(pixels: U8) -> Image.Image:
    """Reduce a gray image by whole factors to sides of 192 to 383 pixels; smaller sides stay."""
    image = Image.fromarray(pixels)
    factors = max(1, image.width // _SHRUNK), max(1, image.height // _SHRUNK)
    return image.reduce(factors) if factors != (1, 1) else image


def content_box(pixels: U8) -> tuple[float, float, float, float] | None:
    """Return the box of a gray image's content, without a bright frame and dark margins.

    Inside the frame, the box reaches from the 1st to the 99th percentile of the brightness above the background along each
    axis. A threshold would jump by whole rows; percentiles change smoothly with the pixels, so the boxes of two copies
    agree to a fraction of a pixel.

    Returns
    -------
    tuple of float or None
        left, top, right, bottom in pixels; None where there is too little content.
    """
    left, top, right, bottom = _inside_frame(pixels)
    inside = pixels[top:bottom, left:right]
    background = min(255, int(inside.min()) + DARK)
    # float32 is exact here: the sums are integers below 2**24.
    weight = (np.maximum(inside, background) - background).astype(np.float32)
    columns = _percentile_range(np.ones(len(weight), np.float32) @ weight)
    rows = _percentile_range(weight @ np.ones(weight.shape[1], np.float32))
    if columns is None or rows is None:
        return None
    return left + columns[0], top + rows[0], left + columns[1], top + rows[1]


def _percentile_range(profile: F32) -> tuple[float, float] | None:
    total = np.concatenate([[0.0], np.cumsum(profile, dtype=np.float64)])
    if total[-1] <= 0:
        return None
    low, high = np.interp([_TAIL * total[-1], (1 - _TAIL) * total[-1]], total, np.arange(len(total)))
    return (float(low), float(high)) if high - low >= _LEAST_CONTENT else None


def _inside_frame(pixels: U8) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the image without bright lines of one gray level along its edges.

    Scans cut from web pages and slides often have such a line on one, two or all sides.
    """
    bright = int(pixels.min()) + DARK
    height, width = pixels.shape
    left, top, right, bottom = before = 0, 0, width, height
    while right - left > _LEAST_CONTENT and bottom - top > _LEAST_CONTENT:
        inside = pixels[top:bottom, left:right]
        left += _is_line(inside[:, 0], bright)
        right -= _is_line(inside[:, -1], bright)
        top += _is_line(inside[0], bright)
        bottom -= _is_line(inside[-1], bright)
        if (left, top, right, bottom) == before:
            # One pixel more: `shrink` has mixed the innermost pixel of the frame with the content.
            return left + (left > 0), top + (top > 0), right - (right < width), bottom - (bottom < height)
        before = left, top, right, bottom
    return 0, 0, width, height


def _is_line(pixels: U8, bright: int) -> bool:
    level = float(pixels.mean())
    if level <= bright:
        return False
    return int(np.count_nonzero(np.abs(pixels - level) > _SAME)) <= _STRAY * len(pixels)


def thumbnails(pixels: U8) -> tuple[U8, U8]:
    """Return two ``(64, 64)`` versions of a gray image ``(H, W)``: of the whole image, and of its content alone."""
    image = shrink(pixels)
    size, bilinear = (THUMB_SIDE, THUMB_SIDE), Image.Resampling.BILINEAR
    # The last row and column of the reduced image may cover fewer pixels than the others.
    height, width = (side / max(1, side // _SHRUNK) for side in pixels.shape)
    whole = np.asarray(image.resize(size, bilinear, box=(0, 0, width, height)))
    box = content_box(np.asarray(image))
    return whole, np.asarray(image.resize(size, bilinear, box=box)) if box else whole


def fingerprint(data: bytes, name: str) -> Fingerprint:
    """Fingerprint one image file.

    An image of more than 8 bits is scaled between its own percentiles, and not by the gray range of the data set. Whether
    two files are copies must not change when other files are added; and correlation does not depend on brightness.

    Raises
    ------
    DecodeError
        If the file is not a readable image.
    """
    decoded = decode(data, name=name, reduce_to=_LEAST_DECODED)
    digest = hashlib.sha256(f"{decoded.pixels.shape}".encode())
    if decoded.values is None:
        digest.update(decoded.pixels.data)
    else:
        digest.update(b"values")
        for start in range(0, len(decoded.values), _CHUNK):
            digest.update(decoded.values[start : start + _CHUNK].astype("<f8").tobytes())
    return Fingerprint(
        digest.hexdigest(), float(decoded.colourfulness), decoded.depth, *thumbnails(decoded.pixels)
    )


def fingerprint_files(
    root: Path,
    paths: Sequence[str],
    *,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> FingerprintTable:
    """Fingerprint many files in worker processes, with only a few files in memory at a time.

    Parameters
    ----------
    root : pathlib.Path
        Folder the paths are relative to.
    paths : sequence of str
        Files, POSIX.
    workers : int or None
        Processes; None takes one per core.
    progress : callable or None
        Called with the number of images done since the last call.

    Returns
    -------
    FingerprintTable
        Images that cannot be read, or that crash the decoder, are listed in its `failures`.

    Raises
    ------
    StorageError
        If a file cannot be read from disk or the worker processes cannot be started.
    """
    n = len(paths)
    table = FingerprintTable.empty(n)
    most = max(1, -(-n // _LEAST_SHARE))
    answers = stream_answers(
        read_below(root, paths),
        paths,
        min(workers or cores(), most),
        "brainmri_core.copies.fingerprint_worker",
    )
    with closing(answers):
        for index, (header, body) in answers:
            if header.get("more"):  # this worker never sends it; if it was taken over, its last answer counts
                continue
            if "reason" in header:
                table.failures[index] = str(header["reason"])
            else:
                try:
                    both = np.frombuffer(body, np.uint8).reshape(2, THUMB_SIDE, THUMB_SIDE)
                    colourfulness, digest = finite(header["colourfulness"]), str(header["pixel_sha256"])
                    depth = str(header["depth"])
                    if not _DIGEST.fullmatch(digest) or not _DEPTH.fullmatch(depth):
                        raise ValueError(digest)
                    table.colourfulness[index], table.pixel_sha256[index] = colourfulness, digest
                except (KeyError, TypeError, ValueError, OverflowError):
                    table.failures[index] = no_answer(paths[index])
                else:
                    table.depths[index] = depth
                    table.thumbs[index], table.trimmed_thumbs[index] = both
            if progress is not None:
                progress(1)
    for start in range(0, n, _CHUNK):
        part = slice(start, start + _CHUNK)
        table.hashes[part] = perceptual_hashes(table.thumbs[part])
        table.trimmed_hashes[part] = perceptual_hashes(table.trimmed_thumbs[part])
    return table


def _thumbs_array(n: int) -> U8:
    """Return an array for n thumbnails; for 16,384 or more it is in an unnamed temporary file, not in memory."""
    shape = (n, THUMB_SIDE, THUMB_SIDE)
    if n < _IN_MEMORY:
        return np.zeros(shape, np.uint8)
    try:
        with tempfile.TemporaryFile() as file:
            # The space is reserved at once: a write through the map to a full disk would end the process by SIGBUS.
            os.posix_fallocate(file.fileno(), 0, n * THUMB_SIDE**2)
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        raise storage_error(error, Path(tempfile.gettempdir())) from error
