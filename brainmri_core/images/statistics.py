"""Properties of packed pixels without a model: intensity and edge statistics, burnt-in text, and frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from brainmri_core.arrays import F64, U8, Indices, Mask
from brainmri_core.system.threads import cores, threads

INTENSITY_STATISTICS = (
    "mean",
    "std",
    "percentile_10",
    "percentile_25",
    "median",
    "percentile_75",
    "percentile_90",
    "percentile_99",
    "entropy",
    "fraction_black",
)
EDGE_STATISTICS = ("edge_strength", "sharpness", "noise")
_PERCENTILES = (0.10, 0.25, 0.50, 0.75, 0.90, 0.99)
_BLACK = 16
_FRAME_LEVEL = 64
_MARK = 70  # least gray level of writing
_CHUNK = 128

TEXT_ISLANDS = 8
"""Least number of separate bright marks in a dark corner that count as writing; anatomy rarely leaves more than six."""


@dataclass(frozen=True)
class PackScan:
    """The results of one pass over a pack, by row.

    Attributes
    ----------
    statistics : numpy.ndarray
        float64 ``(N, 10)``, columns as in `INTENSITY_STATISTICS`.
    text, framed : numpy.ndarray
        bool ``(N,)``: results of `text_like` and `framed`.
    """

    statistics: F64
    text: Mask
    framed: Mask


def scan_pack(pack: U8) -> PackScan:
    """Compute everything that needs the pixels of a pack in one pass, on all cores.

    Parameters
    ----------
    pack : numpy.ndarray
        uint8, ``(N, S, S)`` or ``(N, S, S, 3)`` with N of at least 1; may be a memory map.

    Returns
    -------
    PackScan
    """

    def work(start: int) -> PackScan:
        gray = to_gray(pack[start : start + _CHUNK])
        return PackScan(intensity_statistics(gray), text_like(gray), framed(gray))

    with threads(cores()) as pool:
        parts = list(pool.map(work, range(0, len(pack), _CHUNK)))
    return PackScan(
        np.concatenate([part.statistics for part in parts]),
        np.concatenate([part.text for part in parts]),
        np.concatenate([part.framed for part in parts]),
    )


def to_gray(images: U8) -> U8:
    """Return ``(N, H, W)`` gray images of ``(N, H, W)`` or ``(N, H, W, 3)`` ones (mean of the channels)."""
    if images.ndim == 3:
        return np.asarray(images)
    return np.asarray(images.mean(axis=3).round(), np.uint8)


def intensity_statistics(images: U8) -> F64:
    """Compute ten statistics of the gray levels of each image, its letterbox border included, as a model sees it.

    Parameters
    ----------
    images : numpy.ndarray
        uint8 ``(N, H, W)``. Only every second pixel in both directions is read, which changes the results by well under
        one gray level.

    Returns
    -------
    numpy.ndarray
        float64 ``(N, 10)``: mean, standard deviation, percentiles and median in gray levels, entropy in bits, and the
        share of pixels below 16.
    """
    levels = np.arange(256.0)
    sparse = images[:, ::2, ::2].reshape(len(images), -1)
    histogram = np.stack([np.bincount(image, minlength=256) for image in sparse]) / sparse.shape[1]
    mean = histogram @ levels
    std = np.sqrt(np.maximum(histogram @ levels**2 - mean**2, 0.0))
    cumulated = histogram.cumsum(axis=1)
    percentiles = [(cumulated >= share - 1e-9).argmax(axis=1) for share in _PERCENTILES]
    entropy = -(histogram * np.log2(np.where(histogram > 0, histogram, 1.0))).sum(axis=1)
    return np.stack([mean, std, *percentiles, entropy, cumulated[:, _BLACK - 1]], axis=1)


def edge_statistics(images: U8) -> F64:
    """Compute three statistics of the edges of each image, where it is not black.

    Parameters
    ----------
    images : numpy.ndarray
        uint8 ``(N, H, W)``, H and W of at least 3.

    Returns
    -------
    numpy.ndarray
        float64 ``(N, 3)``, all 0 where an image is black:

        - the mean absolute difference between the two neighbours of a pixel along rows and columns, in gray levels;
        - the ratio of the second differences to those differences: contrast does not change it, blur lowers it;
        - the standard deviation of the noise in gray levels (Immerkaer, Fast noise variance estimation, CVIU 1996), which
          fine texture raises, too.
    """
    wide = images.astype(np.int16)
    middle = wide[:, 1:-1, 1:-1]
    seen = middle >= _BLACK
    count = np.maximum(seen.sum(axis=(1, 2)), 1)

    def mean(values: npt.NDArray[np.int16]) -> F64:
        total: F64 = np.where(seen, np.abs(values), 0).sum(axis=(1, 2), dtype=np.int64) / count
        return total

    left, right = wide[:, 1:-1, :-2], wide[:, 1:-1, 2:]
    above, below = wide[:, :-2, 1:-1], wide[:, 2:, 1:-1]
    strength = (mean(right - left) + mean(below - above)) / 2
    curved = (mean(left + right - 2 * middle) + mean(above + below - 2 * middle)) / 2
    corners = wide[:, :-2, :-2] + wide[:, :-2, 2:] + wide[:, 2:, :-2] + wide[:, 2:, 2:]
    noise = mean(corners - 2 * (left + right + above + below) + 4 * middle) * np.sqrt(np.pi / 2) / 6
    sharpness = np.divide(curved, strength, out=np.zeros_like(curved), where=strength > 0)
    return np.stack([strength, sharpness, noise], axis=1)


def text_like(images: U8) -> Mask:
    """Say which images look as if they had writing in a dark corner.

    Scanner annotations are many small bright marks that touch nothing else. A corner counts when it is mostly dark, has
    several strong steps along one line, and holds at least `TEXT_ISLANDS` marks that do not touch the rest of the image.
    Writing over anatomy, and single letters such as a side marker, are not found.

    Parameters
    ----------
    images : numpy.ndarray
        uint8 ``(N, H, W)``.

    Returns
    -------
    numpy.ndarray
        bool ``(N,)``.
    """
    found = np.zeros(len(images), np.bool_)
    height, width = images.shape[1] // 5, images.shape[2] // 3
    for vertical in (1, -1):
        for horizontal in (1, -1):
            # Flipped so that the corner of the image is at the top left and the brain at the bottom right.
            corners = images[:, ::vertical, ::horizontal][:, :height, :width]
            bright = np.flatnonzero(~found & (corners.max(axis=(1, 2)) > _MARK))  # most corners are all black
            corners = corners[bright]
            dark = (corners < 40).mean(axis=(1, 2)) > 0.7
            steps = (np.abs(np.diff(corners[dark].astype(np.int16), axis=2)) > 40).sum(axis=2)
            stepped = (steps >= 4).sum(axis=1) >= 2
            if stepped.any():
                islands = _islands(corners[dark][stepped], images.shape[1])
                found[bright[dark][stepped]] = islands >= TEXT_ISLANDS
    return found


def _islands(corners: U8, size: int) -> Indices:
    """Count the marks of letter size in each corner that do not touch its inner border."""
    from scipy import ndimage

    neighbours = np.zeros((3, 3, 3))
    neighbours[1] = 1  # within one image only
    labels, _ = ndimage.label(corners > _MARK, neighbours)
    attached = {0, *labels[:, -1].ravel().tolist(), *labels[:, :, -1].ravel().tolist()}
    counts = np.zeros(len(corners), np.intp)
    for label, (image, rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        counts[image.start] += (
            label not in attached
            and 2 <= rows.stop - rows.start <= size // 12
            and columns.stop - columns.start <= size // 4
        )
    return counts


def framed(images: U8) -> Mask:
    """Say which images have a bright line drawn along an edge: a frame, or one side of it.

    From each side inwards, black bars are skipped. A side counts when the first line that is not black, or one of the next
    two, is almost entirely bright, and a line a little further inside is not.

    Parameters
    ----------
    images : numpy.ndarray
        uint8 ``(N, S, S)``.

    Returns
    -------
    numpy.ndarray
        bool ``(N,)``.
    """
    size = images.shape[1]
    middle = slice(size // 4, size - size // 4, 2)  # every second pixel of the middle half is enough
    inside = max(4, size // 32)
    number = np.arange(len(images))
    found = np.zeros(len(images), np.bool_)
    for across, axis in ((images[:, :, middle], 2), (images[:, middle, :], 1)):
        bright = np.add.reduce(across >= _FRAME_LEVEL, axis=axis, dtype=np.uint16) / across.shape[axis]
        filled = across.max(axis=axis) >= _BLACK
        for profile, present in ((bright, filled), (bright[:, ::-1], filled[:, ::-1])):
            first = present[:, : size // 3].argmax(axis=1)
            for line in (first, first + 1, first + 2):
                found |= (profile[number, line] > 0.9) & (profile[number, line + inside - 1] < 0.5)
    return found
