"""When two 64 x 64 versions show the same picture: their orientations, their correlation, and what it leaves over.

Correlation alone takes neighbouring slices of one patient for copies, up to .988 on real sets: most of it is the dark
background and the outline of the head. What tells them apart is how many pixels differ from what their gray level lets
expect. In a copy, however bright, soft or marked with text, nearly none do; in a neighbouring slice they do everywhere.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from brainmri_core.arrays import F32, F64, I64, U8, Mask

Images = TypeVar("Images", U8, F32)

# The bits of a number: 1 mirrored left-right, 2 flipped up-down, both after 4, transposed. Turned is by 180 degrees,
# turned right and left by 90.
ORIENTATIONS = (
    "identity",
    "mirrored",
    "flipped",
    "turned",
    "mirrored and turned left",
    "turned right",
    "turned left",
    "mirrored and turned right",
)
SEARCHED = {"identity": (0,), "mirror": (0, 1), "all": tuple(range(len(ORIENTATIONS)))}
_WORDS = {
    "identity": "as it is",
    "mirrored": "mirrored left-right",
    "flipped": "flipped upside down",
    "turned": "turned by 180 degrees",
    "mirrored and turned left": "mirrored and turned by 90 degrees to the left",
    "turned right": "turned by 90 degrees to the right",
    "turned left": "turned by 90 degrees to the left",
    "mirrored and turned right": "mirrored and turned by 90 degrees to the right",
}
PIXELS = 64 * 64
_BACK = (0, 1, 2, 3, 4, 6, 5, 7)
_LEVELS = 32  # into which gray levels are sorted
_DARK = 20  # gray levels above the darkest pixel that still count as background
_MOST = 0.75  # share of the pixels that must be alike


def turned(images: Images, orientation: int) -> Images:
    """Return a view of square images ``(N, S, S)`` in one of the eight orientations of the square."""
    if orientation & 4:
        images = images.swapaxes(1, 2)
    return images[:, :: -1 if orientation & 2 else 1, :: -1 if orientation & 1 else 1]


def turned_back(orientation: int) -> int:
    """Return the orientation that undoes another: each undoes itself but the quarter turns, which undo each other."""
    return _BACK[orientation]


def orientation_words(orientation: str) -> str:
    """Say the name of an orientation in words for a reader."""
    return _WORDS.get(orientation, orientation)


def correlation(first: U8, second: U8) -> F64:
    """Return the normalised cross-correlation of image pairs, 0 where an image is constant.

    It is made of whole numbers until the last division, so it is the same on every machine.

    Parameters
    ----------
    first, second : numpy.ndarray
        uint8, ``(P, 64, 64)``.

    Returns
    -------
    numpy.ndarray
        float64, ``(P,)``, in [-1, 1].
    """
    return correlation_of(first, second, moments(first), moments(second))


def moments(thumbs: U8) -> I64:
    """Return the sum of each image's pixels, and its variance times the squared number of pixels: ``(2, N)``."""
    values = thumbs.astype(np.int32)
    total = values.sum(axis=(1, 2), dtype=np.int64)
    squares = np.einsum("ijk,ijk->i", values, values).astype(
        np.int64
    )  # below 2**31, as is any product of two
    return np.stack([total, PIXELS * squares - total**2])


def correlation_of(first: U8, second: U8, of_first: I64, of_second: I64) -> F64:
    """Return the correlation of image pairs whose `moments` are known."""
    products = np.einsum("ijk,ijk->i", first.astype(np.int32), second.astype(np.int32)).astype(np.int64)
    covariance = PIXELS * products - of_first[0] * of_second[0]
    deviations = np.sqrt(of_first[1].astype(np.float64) * of_second[1])
    correlations: F64 = np.divide(covariance, deviations, out=np.zeros(len(first)), where=deviations > 0)
    return correlations


def difference(first: U8, second: U8) -> F64:
    """Say how far three quarters of the pixels differ at most from what the other image's gray levels let expect.

    Expected of a pixel is the mean of all pixels where the other image has the same gray level: a change of brightness,
    contrast or gamma is no difference. Pixels that are dark in both images do not count, so no margin speaks for two
    images; and a quarter may differ, so text, a line or a logo does not speak against them.

    Parameters
    ----------
    first, second : numpy.ndarray
        uint8, ``(P, 64, 64)``.

    Returns
    -------
    numpy.ndarray
        float64, ``(P,)``, in standard deviations of an image's pixels that count, which are taken to be at least a
        quarter of those of all its pixels; infinite where an image is constant.
    """
    content = _content(first) | _content(second)
    gap = np.maximum(_unexpected(first, second, content), _unexpected(second, first, content))
    gap[~content] = -1  # sorted first
    dark = np.count_nonzero(~content, axis=1)
    place = dark + np.ceil(_MOST * (PIXELS - dark)).astype(np.int64) - 1
    gap.sort(axis=1)
    result: F64 = gap[np.arange(len(gap)), np.maximum(place, 0)].astype(np.float64)
    return np.where(dark < PIXELS, result, np.inf)


def _content(images: U8) -> Mask:
    flat = images.reshape(len(images), PIXELS)
    background = np.minimum(flat.min(axis=1, keepdims=True), 255 - _DARK) + _DARK
    content: Mask = flat > background
    return content


def _unexpected(first: U8, second: U8, content: Mask) -> F32:
    """Return how far the pixels of `second` are from the mean at their level in `first`: float32 ``(P, 4096)``."""
    n = len(first)
    level = first.reshape(n, PIXELS) // (256 // _LEVELS) + np.arange(0, n * _LEVELS, _LEVELS)[:, None]
    values = second.reshape(n, PIXELS)
    total = np.bincount(level.ravel(), values.ravel(), n * _LEVELS)
    count = np.bincount(level.ravel(), minlength=n * _LEVELS)
    expected = (total / np.maximum(count, 1)).astype(np.float32)
    whole = np.sqrt(moments(second)[1].astype(np.float64)) / PIXELS
    counted = np.maximum(np.count_nonzero(content, axis=1), 1)
    wide = values.astype(np.int64) * content
    squares = (wide**2).sum(axis=1) * counted - wide.sum(axis=1) ** 2
    deviation = np.maximum(np.sqrt(squares.astype(np.float64)) / counted, whole / 4)
    gap: F32 = (
        np.abs(values - expected[level]) / np.where(whole > 0, deviation, 1).astype(np.float32)[:, None]
    )
    gap[whole == 0] = np.inf
    return gap
