"""From pixels of more than 8 bits to gray levels 0 to 255, by a range that does not depend on single bright pixels.

A range that the file declares comes first: the significant bits of a PNG, the sample size or range of a TIFF. A sample
size of 16 bits declares nothing, since scanners store 12 bits in 16. Such files share one range for the whole data set,
which resizing measures. Until it is known, a file is scaled between its own percentiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from PIL import Image, TiffImagePlugin

from brainmri_core.arrays import U8, Array

GrayRange = tuple[float, float]
ScaledBy = Literal["8-bit", "full depth", "declared depth", "data set", "file"]
"""How a file's values became gray levels: unchanged; by the full range of their bits; by a range that the file declares; by
the common range of the data set; by the percentiles of the file itself."""

PLAIN_DEPTH = "8-bit"
_TAIL = 0.1  # per cent of a file's pixels that may saturate at either end
# Share of the files that may exceed the common range: a few may be damaged or foreign.
_FILES_TAIL = 0.05
_MOST_PIXELS = 1 << 20  # evenly spread pixels that percentiles are measured on
# TIFF tags: photometric interpretation, bits per sample, least and greatest value (short), sample format, least and greatest
# value (any type).
_PHOTOMETRIC, _BITS, _MIN, _MAX, _FORMAT, _SMIN, _SMAX = 262, 258, 280, 281, 339, 340, 341
_WHITE_IS_ZERO = 0


def is_deep(mode: str) -> bool:
    """Say whether a Pillow mode holds gray values of more than 8 bits: integers or floats."""
    return is_whole(mode) or mode.startswith("F")


def is_whole(mode: str) -> bool:
    """Say whether a Pillow mode holds integers of more than 8 bits."""
    return mode.startswith("I")


def depth_of(image: Image.Image, data: bytes) -> str:
    """Return the depth of an opened image's samples: ``8-bit``, ``12-bit``, ``16-bit``, ``32-bit`` or ``float``."""
    if image.mode.startswith("F"):
        return "float"
    bits: Any = 8
    if image.format == "PNG":
        bits = data[24]
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = max(np.atleast_1d(image.tag_v2.get(_BITS, 1)))
    return f"{bits}-bit" if bits > 8 else PLAIN_DEPTH


def values_of(image: Image.Image, upright: Image.Image) -> Array:
    """Return the exact values ``(H, W)`` of an upright image of more than 8 bits: float64 for 32-bit integers, else float32."""
    values = np.asarray(upright)
    tags: Any = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    long = values.dtype == np.int32 and _first(tags.get(_BITS)) == 32
    if long and _first(tags.get(_FORMAT, 1)) == 1:  # Pillow reads unsigned values as signed
        values = values.view(np.uint32)
    return values.astype(np.float64 if long else np.float32)


def white_is_zero(image: Image.Image) -> bool:
    """Say whether 0 is white in a TIFF of more than 8 bits; Pillow inverts such images of 8 bits only."""
    return (
        isinstance(image, TiffImagePlugin.TiffImageFile)
        and is_whole(image.mode)
        and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    )


def declared_range(image: Image.Image, data: bytes, values: Array) -> GrayRange | None:
    """Return the values of black and white that the file declares, or None.

    Only a range whose width is a power of two, less one, counts as declared. Programs also write the least and the greatest
    value of the single image into these tags.
    """
    if image.format == "PNG":
        return _of_significant_bits(data, values)
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    tags, whole = image.tag_v2, is_whole(image.mode)
    for names in ((_SMIN, _SMAX), (_MIN, _MAX)):
        low, high = (_first(tags.get(name)) for name in names)
        if high is not None and _is_declaration(low or 0.0, high, whole):
            return low or 0.0, high
    bits = _first(tags.get(_BITS))
    return (0.0, 2.0**bits - 1) if whole and bits is not None and 8 < bits < 16 else None


def _first(value: Any) -> float | None:
    """Return the first number of a TIFF tag; None where it is absent or not a number."""
    if isinstance(value, tuple) and value:
        value = value[0]
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _is_declaration(low: float, high: float, whole: bool) -> bool:
    width = high - low
    if not whole and width in (1.0, 2.0):
        return True
    return 255 <= width < 2**32 and width.is_integer() and (int(width) + 1).bit_count() == 1


def _of_significant_bits(data: bytes, values: Array) -> GrayRange | None:
    """Return the range of a 16-bit PNG with an ``sBIT`` chunk.

    By the PNG standard the values are scaled to all 16 bits: the bits below the significant ones are zero or repeat the
    upper ones. Some programs store the small numbers unscaled; the lower bits show which is the case.
    """
    bits = _significant_bits(data)
    if bits is None or not 1 <= bits <= 16:
        return None
    stored, most = values.astype(np.int64), (1 << bits) - 1
    upper = stored >> (16 - bits)
    lower = stored & ((1 << (16 - bits)) - 1)
    spread = not lower.any() or bool((np.abs(stored - upper * 65535 // most) <= 1).all())
    return (0.0, 65535.0) if spread or stored.max() > most else (0.0, float(most))


def _significant_bits(data: bytes) -> int | None:
    position = 8
    while position + 12 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if kind == b"sBIT":
            return data[position + 8] if length else None
        if kind in (b"IDAT", b"PLTE"):
            return None
        position += 12 + length
    return None


def own_range(values: Array, *, whole: bool) -> GrayRange | None:
    """Return the percentiles between which nearly all finite values lie; None where all values are the same.

    For integers the lower limit is at most 0, so that the air around the head stays black.
    """
    step = max(1, math.isqrt(-(-values.size // _MOST_PIXELS)))
    sparse = values[::step, ::step]
    finite = sparse[np.isfinite(sparse)]
    if not finite.size:
        return None
    low, high = (float(x) for x in np.percentile(finite, [_TAIL, 100 - _TAIL]))
    if high <= low:  # a few bright pixels on black
        low, high = float(finite.min()), float(finite.max())
    low = 0.0 if whole and low > 0 else low
    return (low, high) if high > low else None


def common_range(ranges: Iterable[GrayRange]) -> GrayRange | None:
    """Return one range for many files from the range of each; None where there are none.

    It does not depend on the order of the files, nor on the few with the widest range.
    """
    found = np.array(sorted(ranges), np.float64).reshape(-1, 2)
    if not len(found):
        return None
    low = float(np.quantile(found[:, 0], _FILES_TAIL, method="higher"))
    high = float(np.quantile(found[:, 1], 1 - _FILES_TAIL, method="lower"))
    return (low, high) if high > low else (float(found[:, 0].min()), float(found[:, 1].max()))


def gray_levels(values: Array, limits: GrayRange | None) -> U8:
    """Return values as uint8 ``(H, W)``: 0 up to the lower limit, 255 from the upper one on; all 0 without limits.

    NaN counts as the lower limit.
    """
    if limits is None:
        return np.zeros(values.shape, np.uint8)
    low, high = limits
    levels = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    np.clip(levels, low, high, out=levels)
    levels -= low
    levels *= 255.0 / (high - low)
    levels += 0.5
    return levels.astype(np.uint8)
