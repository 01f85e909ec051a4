"""From many image files to prepared pixels, with the size, fit and channels of a pack."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from brainmri_core.arrays import U8
from brainmri_core.config.data import ResizeConfig
from brainmri_core.errors import IntegrityError
from brainmri_core.images.decode import DecodeError
from brainmri_core.images.fit import Fit, decode_fitted, image_part
from brainmri_core.images.isolation import read_below
from brainmri_core.images.levels import GrayRange
from brainmri_core.system.threads import cores, outcome, threads

COLOUR_THRESHOLD = 12.0
NO_FACTS: dict[str, float | int | str | bool] = {
    "width": 0,
    "height": 0,
    "mode": "",
    "mean": 0.0,
    "std": 0.0,
    "has_metadata": False,
    "scaled_by": "",
}
"""The facts that are recorded of an image besides its pixels, with the values for one that cannot be decoded."""


_CHUNK = 16


@dataclass(frozen=True)
class Resized:
    """One image at the size of a pack.

    Attributes
    ----------
    pixels : numpy.ndarray or None
        uint8, ``(size, size)`` or ``(size, size, 3)``; None where it could not be decoded, for `reason`.
    reason : str
        Why the image could not be decoded; empty where there are pixels.
    facts : dict
        A value for each of `NO_FACTS`; empty where there are no pixels.
    """

    pixels: U8 | None
    reason: str
    facts: dict[str, float | int | str | bool]


def unchanged(data: bytes, path: str, expected: str) -> bytes:
    """Return the bytes of a file if they are unchanged since a worker process of the split decoded them."""
    if hashlib.sha256(data).hexdigest() != expected:
        raise IntegrityError(f"The image {path} was changed after it was fetched; fetch and split again.")
    return data


def resized_images(
    root: Path,
    paths: Sequence[str],
    hashes: Sequence[str],
    config: ResizeConfig,
    channels: int,
    *,
    workers: int | None = None,
) -> Iterator[Resized]:
    """Yield images in order, with all cores busy and at most a few chunks in memory.

    Parameters
    ----------
    root : pathlib.Path
        Folder that the paths are relative to.
    paths, hashes : sequence of str
        POSIX paths of the files, and the SHA-256 that each had when it was fetched.
    config : ResizeConfig
        Size in pixels, fit and gray ranges.
    channels : int
        1 for gray, 3 for colour.
    workers : int or None
        Number of threads; one per core where None.

    Raises
    ------
    IntegrityError
        If a file was changed since it was fetched.
    StorageError
        If a file cannot be read.
    """
    read = read_below(root, paths)
    workers = workers or cores()

    def work(chunk: range) -> list[Resized]:
        return [
            resize_one(unchanged(read(i), paths[i], hashes[i]), paths[i], config, channels) for i in chunk
        ]

    every = range(len(paths))
    with (
        threads(workers) as pool,
        tqdm(total=len(paths), desc="resizing", unit="image", disable=None) as bar,
    ):
        chunks = (every[start : start + _CHUNK] for start in every[::_CHUNK])
        running = deque((chunk, pool.submit(work, chunk)) for chunk in islice(chunks, 2 * workers))
        while running:
            chunk, results = running.popleft()
            done = outcome(results)
            running.extend((chunk, pool.submit(work, chunk)) for chunk in islice(chunks, 1))
            yield from done
            bar.update(len(chunk))


def prepared_images(
    root: Path, table: pd.DataFrame, *, size: int, fit: Fit, channels: int, gray_ranges: dict[str, GrayRange]
) -> Iterator[tuple[int, U8]]:
    """Yield the images of a sample table as a pack with these settings would hold them.

    Parameters
    ----------
    root : pathlib.Path
        Folder of the data set.
    table : pandas.DataFrame
        Rows of its sample table.
    size, fit, channels, gray_ranges
        As in a pack's pointer.

    Yields
    ------
    position : int
        Position in the table.
    pixels : numpy.ndarray
        uint8, ``(size, size)`` or ``(size, size, 3)``. Images that cannot be decoded are left out.

    Raises
    ------
    IntegrityError
        If a file was changed since it was fetched.
    StorageError
        If a file cannot be read.
    """
    config = ResizeConfig(size=size, fit=fit, gray_ranges=gray_ranges)
    paths, hashes = table["path"].tolist(), table["file_sha256"].tolist()
    for position, result in enumerate(resized_images(root, paths, hashes, config, channels)):
        if result.pixels is not None:
            yield position, result.pixels


def resize_one(data: bytes, path: str, config: ResizeConfig, channels: int) -> Resized:
    """Decode and fit one image; where it cannot be decoded, the result has a reason instead of pixels."""
    try:
        decoded, pixels = decode_fitted(
            data,
            name=path,
            size=config.size,
            fit=config.fit,
            gray=channels == 1,
            colour_check=False,
            gray_ranges=config.gray_ranges,
        )
    except DecodeError as error:
        return Resized(None, str(error), {})
    height, width = decoded.pixels.shape[:2]
    rows, columns = image_part(height, width, config.size, config.fit)
    mean, std = _mean_and_std(pixels[rows, columns])
    return Resized(
        pixels,
        "",
        {
            "width": decoded.width,
            "height": decoded.height,
            "mode": decoded.mode,
            "mean": mean,
            "std": std,
            "has_metadata": bool(decoded.has_metadata),
            "scaled_by": decoded.scaled_by,
        },
    )


def _mean_and_std(pixels: U8) -> tuple[float, float]:
    """Return mean and standard deviation of the gray levels (of the mean of the channels, for colour).

    The caller leaves out the black border of letterboxing, which would hide a constant image.
    """
    levels = pixels.astype(np.float32) if pixels.ndim == 2 else pixels.mean(axis=2, dtype=np.float32)
    mean = float(levels.mean())
    levels -= np.float32(mean)
    return mean, float(np.sqrt(np.vdot(levels, levels) / levels.size))
