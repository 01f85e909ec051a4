"""When two 64 x 64 versions show the same picture: orientations, correlation, and the remaining difference.

Correlation alone mistakes neighbouring slices of one patient for copies, with values up to .988 on real data: the dark
background and the outline of the head dominate it. So a second measure asks how many pixels differ from the value that the
gray level of the other image predicts. In a copy nearly none do, even if it is brighter, blurred or marked with text; in a
neighbouring slice many do, all over the image.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from brainmri_core.arrays import F32, F64, I64, U8, Mask

Images = TypeVar("Images", U8, F32)

# The bits of an orientation's number: 4 transposed, then 2 flipped up-down and 1 mirrored left-right. "turned" is by 180
# degrees, "turned right" and "turned left" are by 90.
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
THUMB_SIDE = 64
PIXELS = THUMB_SIDE**2
DARK = 20
"""Gray levels above the darkest pixel that still count as background."""
_BACK = (0, 1, 2, 3, 4, 6, 5, 7)
_LEVELS = 32  # bins of gray levels
_MOST = 0.75  # share of the pixels that must be alike


def turned(images: Images, orientation: int) -> Images:
    """Return a view of square images ``(N, S, S)`` in one of the eight orientations of the square."""
    if orientation & 4:
        images = images.swapaxes(1, 2)
    return images[:, :: -1 if orientation & 2 else 1, :: -1 if orientation & 1 else 1]


def turned_back(orientation: int) -> int:
    """Return the inverse of an orientation: each is its own inverse, except that the quarter turns undo each other."""
    return _BACK[orientation]


def orientation_words(orientation: str) -> str:
    """Return the name of an orientation in words for a report."""
    return _WORDS.get(orientation, orientation)


def correlation(first: U8, second: U8) -> F64:
    """Return the normalised cross-correlation of image pairs, 0 where an image is constant.

    All arithmetic before the last division is on integers, so the result is the same on every machine.

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
    """Return the sum of each image's pixels, and their variance times the squared number of pixels: int64 ``(2, N)``."""
    values = thumbs.astype(np.int32)
    total = values.sum(axis=(1, 2), dtype=np.int64)
    squares = np.einsum("ijk,ijk->i", values, values).astype(np.int64)  # fits int32: 4096 * 255**2 < 2**31
    return np.stack([total, PIXELS * squares - total**2])


def correlation_of(first: U8, second: U8, of_first: I64, of_second: I64) -> F64:
    """Return the correlation of image pairs whose `moments` are known.

    Parameters
    ----------
    first, second : numpy.ndarray
        Images of the pairs, uint8 ``(P, 64, 64)``.
    of_first, of_second : numpy.ndarray
        Their `moments`, int64 ``(2, P)``.

    Returns
    -------
    numpy.ndarray
        float64 ``(P,)`` in [-1, 1]; 0 where an image is uniform.
    """
    products = np.einsum("ijk,ijk->i", first.astype(np.int32), second.astype(np.int32)).astype(np.int64)
    covariance = PIXELS * products - of_first[0] * of_second[0]
    deviations = np.sqrt(of_first[1].astype(np.float64) * of_second[1])
    correlations: F64 = np.divide(covariance, deviations, out=np.zeros(len(first)), where=deviations > 0)
    return correlations


def difference(first: U8, second: U8) -> F64:
    """Return the 75th percentile of how far pixels differ from what the gray levels of the other image predict.

    The prediction for a pixel is the mean over all pixels where the other image has the same gray level, so a change of
    brightness, contrast or gamma is no difference. Pixels that are dark in both images are left out, so that margins do not
    make images alike. By taking the 75th percentile, a quarter of the pixels may differ: text, a line or a logo.

    Parameters
    ----------
    first, second : numpy.ndarray
        uint8, ``(P, 64, 64)``.

    Returns
    -------
    numpy.ndarray
        float64, ``(P,)``, in standard deviations of the pixels that count (at least a quarter of the standard deviation
        of the whole image); infinite where an image is constant.
    """
    content = _content(first) | _content(second)
    gap = np.maximum(_unexpected(first, second, content), _unexpected(second, first, content))
    gap[~content] = -1  # so that these pixels are sorted first and can be skipped
    dark = np.count_nonzero(~content, axis=1)
    place = dark + np.ceil(_MOST * (PIXELS - dark)).astype(np.int64) - 1
    gap.sort(axis=1)
    result: F64 = gap[np.arange(len(gap)), np.maximum(place, 0)].astype(np.float64)
    return np.where(dark < PIXELS, result, np.inf)


def _content(images: U8) -> Mask:
    flat = images.reshape(len(images), PIXELS)
    background = np.minimum(flat.min(axis=1, keepdims=True), 255 - DARK) + DARK
    content: Mask = flat > background
    return content


def _unexpected(first: U8, second: U8, content: Mask) -> F32:
    """Return how far each pixel of `second` is from the mean at its gray level in `first`: float32 ``(P, 4096)``."""
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
