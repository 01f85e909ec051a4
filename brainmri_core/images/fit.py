"""From an image file to the square image that a model sees, the same for training and prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from PIL import Image

from brainmri_core.arrays import U8
from brainmri_core.images.decode import Decoded, decode
from brainmri_core.images.levels import GrayRange

Fit = Literal["letterbox", "stretch"]


def decode_fitted(
    data: bytes,
    *,
    name: str,
    size: int,
    fit: Fit,
    gray: bool,
    colour_check: bool = True,
    gray_ranges: Mapping[str, GrayRange] | None = None,
) -> tuple[Decoded, U8]:
    """Decode one image file and bring it to ``size x size``.

    Parameters
    ----------
    data, name, gray, colour_check, gray_ranges
        As in `decode.decode`.
    size, fit
        As in `fit_image`.

    Returns
    -------
    decoded : Decoded
        JPEG may have been decoded at a reduced scale.
    fitted : numpy.ndarray
        uint8, ``(size, size)`` or ``(size, size, 3)``.

    Raises
    ------
    DecodeError
        If the file is not a readable image.
    """
    decoded = decode(
        data, name=name, gray=gray, reduce_to=size, colour_check=colour_check, gray_ranges=gray_ranges
    )
    return decoded, fit_image(decoded.pixels, size, fit)


def fit_image(pixels: U8, size: int, fit: Fit) -> U8:
    """Resize an image to ``size x size``, in the same way for training, evaluation and prediction.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8, ``(H, W)`` or ``(H, W, 3)``.
    size : int
        Side of the result in pixels.
    fit : {"letterbox", "stretch"}
        Letterbox keeps the aspect ratio and centres the image on black.

    Returns
    -------
    numpy.ndarray
        uint8, ``(size, size)`` or ``(size, size, 3)``; antialiased bilinear interpolation.
    """
    height, width = pixels.shape[:2]
    rows, columns = image_part(height, width, size, fit)
    inner = (columns.stop - columns.start, rows.stop - rows.start)
    resized = np.asarray(Image.fromarray(pixels).resize(inner, Image.Resampling.BILINEAR))
    if inner == (size, size):
        return resized
    canvas = np.zeros((size, size, *pixels.shape[2:]), np.uint8)
    canvas[rows, columns] = resized
    return canvas


def image_part(height: int, width: int, size: int, fit: Fit) -> tuple[slice, slice]:
    """Return the rows and columns of a fitted ``size x size`` image that hold an image of `height` x `width` pixels."""
    if fit == "stretch":
        return slice(0, size), slice(0, size)
    scale = size / max(height, width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (size - rows) // 2, (size - columns) // 2
    return slice(top, top + rows), slice(left, left + columns)
