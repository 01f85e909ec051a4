"""From pixels of more than 8 bits to gray levels 0 to 255, by a range that no single file's brightest pixel decides.

What a file declares comes first: the significant bits of a PNG, the sample size or range of a TIFF. Sixteen bits as such
declare nothing: scanners deliver 12 bits in 16. Such files share one range for the whole data set, which resizing measures;
where none is known yet, a file is shown between its own percentiles.
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
"""What turned a file's values into gray levels: nothing to do, all bits there are, its own words, one range for all, itself."""

PLAIN_DEPTH = "8-bit"
_TAIL = 0.1  # per cent of a file's pixels that may saturate at either end
_FILES_TAIL = (
    0.05  # share of the files that may reach beyond the common range: a few may be damaged or foreign
)
_MOST_PIXELS = 1 << 20  # that are looked at for percentiles, evenly spread
# TIFF tags: photometric interpretation, bits per sample, least and greatest value, sample format, the same two of any type
_PHOTOMETRIC, _BITS, _MIN, _MAX, _FORMAT, _SMIN, _SMAX = 262, 258, 280, 281, 339, 340, 341
_WHITE_IS_ZERO = 0


def is_deep(mode: str) -> bool:
    """Say whether a Pillow mode holds gray values that 8 bits cannot: whole numbers or fractions."""
    return is_whole(mode) or mode.startswith("F")


def is_whole(mode: str) -> bool:
    """Say whether a Pillow mode holds whole numbers of more than 8 bits."""
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
    """Return the values ``(H, W)`` of a deep image in its upright form, exactly: float64 of 32-bit whole numbers, else float32."""
    values = np.asarray(upright)
    tags: Any = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    long = values.dtype == np.int32 and _first(tags.get(_BITS)) == 32
    if long and _first(tags.get(_FORMAT, 1)) == 1:  # Pillow takes unsigned ones for signed
        values = values.view(np.uint32)
    return values.astype(np.float64 if long else np.float32)


def white_is_zero(image: Image.Image) -> bool:
    """Say whether whole numbers of a TIFF count from white to black; Pillow turns that round for 8 bits only."""
    return (
        isinstance(image, TiffImagePlugin.TiffImageFile)
        and is_whole(image.mode)
        and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    )


def declared_range(image: Image.Image, data: bytes, values: Array) -> GrayRange | None:
    """Return the values that stand for black and white as the file itself declares them, or None.

    A range whose width is no power of two (less one) is not declared but found: programs write the least and the greatest
    value of the one image there, too.
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
    """Return a tag's only or first number, None where it is absent or no number."""
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

    By the standard its values fill all 16 bits, whatever the number of significant ones: the bits below those are zero or
    repeat the upper ones. Writers that store small numbers as they are do exist; what stands in the lower bits tells.
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
    """Return the percentiles that bound nearly all finite values; None where they are all the same.

    Whole numbers that are not negative keep their zero, which is the air around the head.
    """
    step = max(1, math.isqrt(-(-values.size // _MOST_PIXELS)))
    looked_at = values[::step, ::step]
    finite = looked_at[np.isfinite(looked_at)]
    if not finite.size:
        return None
    low, high = (float(x) for x in np.percentile(finite, [_TAIL, 100 - _TAIL]))
    if high <= low:  # a few bright pixels on nothing
        low, high = float(finite.min()), float(finite.max())
    low = 0.0 if whole and low > 0 else low
    return (low, high) if high > low else None


def common_range(ranges: Iterable[GrayRange]) -> GrayRange | None:
    """Return one range for many files, given the own range of each; None where there are none.

    It depends neither on the order of the files nor on the few that reach furthest.
    """
    found = np.array(sorted(ranges), np.float64).reshape(-1, 2)
    if not len(found):
        return None
    low = float(np.quantile(found[:, 0], _FILES_TAIL, method="higher"))
    high = float(np.quantile(found[:, 1], 1 - _FILES_TAIL, method="lower"))
    return (low, high) if high > low else (float(found[:, 0].min()), float(found[:, 1].max()))


def gray_levels(values: Array, limits: GrayRange | None) -> U8:
    """Return values as uint8 ``(H, W)``: 0 up to the lower limit, 255 from the upper one on; all 0 without limits.

    What is no number counts as the lower limit.
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
