"""The only module that opens a foreign image.

JPEG is decoded by simplejpeg. It gives the same pixels as Pillow's gray draft mode in 0.7 of the time, is as fast as OpenCV
at a hundredth of its size, and reports damage inside a file that Pillow and OpenCV ignore. Pillow decodes all other
formats, and CMYK and multi-picture JPEG. Of animations and multi-picture files, the first picture counts.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from brainmri_core.arrays import U8, Array
from brainmri_core.config.formats import FORMATS, readable_kinds
from brainmri_core.errors import DataError
from brainmri_core.escaping import printable
from brainmri_core.images.levels import (
    PLAIN_DEPTH,
    GrayRange,
    ScaledBy,
    declared_range,
    depth_of,
    gray_levels,
    is_deep,
    is_whole,
    own_range,
    values_of,
    white_is_zero,
)

MIN_SIDE = 2
MAX_SIDE = 16_384
MAX_PIXELS = 80_000_000  # below the size at which Pillow warns of a decompression bomb
_BLOCK = 8  # side of a JPEG block in pixels
MAX_SCANS = 500  # of a progressive JPEG: a small file with more is an attack that keeps the decoder busy
_HARMLESS = ("extraneous bytes before marker", "unknown JFIF revision")
# TIFF tags: description, maker, model, software, date, artist, host; XMP, copyright, IPTC, Photoshop, EXIF, ICC, GPS
_TELLING_TAGS = {0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x013C}
_TELLING_TAGS |= {0x02BC, 0x8298, 0x83BB, 0x8649, 0x8769, 0x8773, 0x8825}
_METADATA_KEYS = {"exif", "xmp", "XML:com.adobe.xmp", "comment", "Comment", "icc_profile", "photoshop"}

# What Pillow's plugins raise on malformed input.
_MALFORMED = (
    OSError,
    ValueError,
    SyntaxError,
    struct.error,
    zlib.error,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    EOFError,
    BufferError,
    RuntimeError,
)


class DecodeError(DataError):
    """A file is not a readable image; the message names the file and the reason."""


@dataclass(frozen=True)
class Decoded:
    """The pixels of one image and the properties of its file.

    Attributes
    ----------
    pixels : numpy.ndarray
        uint8, ``(H, W)`` gray (luma) or ``(H, W, 3)`` RGB, EXIF orientation applied, transparency over black.
    width, height : int
        Size of the image before any reduced-scale decoding, after orientation.
    mode : str
        Pixel mode of the file: ``L``, ``RGB``, ``P``, ``RGBA``, ``I;16``, ``CMYK`` ...
    colourfulness : float
        Mean absolute difference between the colour channels, in gray levels; 0 for gray images.
    has_metadata : bool
        Whether the file carries EXIF, XMP, ICC, Photoshop blocks or comments.
    depth : str
        Depth of the file's samples: ``8-bit``, ``12-bit``, ``16-bit``, ``32-bit`` or ``float``.
    scaled_by : str
        How values of more than 8 bits became gray levels; see `levels.ScaledBy`.
    values : numpy.ndarray or None
        ``(H, W)``: the original values of a gray image of more than 8 bits, float32 or float64.
    """

    pixels: U8
    width: int
    height: int
    mode: str
    format: str
    colourfulness: float
    has_metadata: bool
    depth: str = PLAIN_DEPTH
    scaled_by: ScaledBy = "8-bit"
    values: Array | None = None


def decode(
    data: bytes,
    *,
    name: str,
    gray: bool = True,
    reduce_to: int | None = None,
    colour_check: bool = True,
    gray_ranges: Mapping[str, GrayRange] | None = None,
) -> Decoded:
    """Decode one image file.

    Parameters
    ----------
    data : bytes
        The file's content.
    name : str
        Its name in error messages.
    gray : bool
        Gray pixels (luma) instead of RGB.
    reduce_to : int or None
        Decode JPEG at the smallest scale of libjpeg (n/8) whose shorter side is still at least this long. This applies
        only where both sides are multiples of eight pixels. Otherwise blocks lie partly outside the image, and the
        encoder's padding would be averaged into the edge; such a file is decoded in full.
    colour_check : bool
        Measure colourfulness; False leaves it 0 and saves time.
    gray_ranges : mapping or None
        Depth to the values of black and white, for files of more than 8 bits that declare no range. A file whose depth
        is not among them is scaled between its own percentiles.

    Returns
    -------
    Decoded

    Raises
    ------
    DecodeError
        If the file is damaged, has an unknown format, or is too small or too large.
    """
    try:
        if (
            data[:3] == b"\xff\xd8\xff"
            and (found := _jpeg(data, name, gray, reduce_to, colour_check)) is not None
        ):
            return found
        return _pillow(data, name, gray, gray_ranges or {})
    except DecodeError:
        raise
    except MemoryError:
        raise DecodeError(
            f"{printable(name)} needs more memory to decode than there is; it was left out."
        ) from None
    except _MALFORMED as error:
        reason = printable(str(error).splitlines()[0] if str(error) else type(error).__name__)[:160]
        raise DecodeError(f"{printable(name)} cannot be decoded ({reason}); replace or remove it.") from None


def _check_size(width: int, height: int, name: str) -> None:
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise DecodeError(
            f"{printable(name)} is {width} x {height} pixels; sides must be {MIN_SIDE} to {MAX_SIDE} with at most "
            f"{MAX_PIXELS // 1_000_000} million pixels in all."
        )


def _jpeg_markers(data: bytes) -> set[str]:
    """Return which metadata segments stand before the first scan."""
    found: set[str] = set()
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker == 0xDA:
            break
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        body = data[position + 4 : position + 4 + 16]
        if marker == 0xFE:
            found.add("comment")
        elif marker == 0xE1:
            found.add("exif" if body.startswith(b"Exif") else "xmp")
        elif marker == 0xE2:
            found.add("mpf" if body.startswith(b"MPF\0") else "icc_profile")
        elif marker == 0xED:
            found.add("photoshop")
        position += 2 + max(2, length)
    return found


def _jpeg(data: bytes, name: str, gray: bool, reduce_to: int | None, colour_check: bool) -> Decoded | None:
    """Decode a plain JPEG; None leaves it to Pillow."""
    markers = _jpeg_markers(data)
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except ValueError:
        return None
    if "mpf" in markers or space not in ("Gray", "YCbCr", "RGB"):
        return None
    _check_size(width, height, name)
    # Counting one byte takes a third of the time, and rules out nearly all files.
    if data.count(b"\xda") > MAX_SCANS and data.count(b"\xff\xda") > MAX_SCANS:
        raise DecodeError(
            f"{printable(name)} has more than {MAX_SCANS} JPEG scans; save it again or remove it."
        )
    whole_blocks = width % _BLOCK == 0 == height % _BLOCK
    least = min(reduce_to, width, height) if reduce_to and whole_blocks else 0
    colour = 0.0
    if gray and colour_check and space != "Gray":
        pixels, colour = _luma(data, least)
    else:
        pixels = _jpeg_pixels(data, "Gray" if gray else "RGB", least)
        if not gray and space != "Gray":
            colour = colourfulness(pixels)
    if "exif" in markers and (orientation := _orientation(data)) != 1:
        pixels = _upright(pixels, orientation)
        width, height = (height, width) if orientation >= 5 else (width, height)
    mode = "L" if space == "Gray" else "RGB"
    return Decoded(pixels[..., 0] if gray else pixels, width, height, mode, "JPEG", colour, bool(markers))


def _luma(data: bytes, least: int) -> tuple[U8, float]:
    """Return the gray pixels ``(H, W, 1)`` of a colour JPEG and its colourfulness.

    Most scans are gray images in colour files. Where all channels are equal, each of them is the luma, and one decoding
    is enough.
    """
    pixels = _jpeg_pixels(data, "RGBX", least)
    packed = pixels.view("<u4")
    if not ((packed ^ (packed >> np.uint32(8))) & np.uint32(0xFFFF)).any():
        return packed.astype(np.uint8), 0.0
    return _jpeg_pixels(data, "Gray", least), colourfulness(pixels)


def _jpeg_pixels(data: bytes, space: str, least: int) -> U8:
    """Decode; refuse damaged data, but ignore the harmless ones of libjpeg's warnings."""
    bounds = {"min_height": least, "min_width": least} if least else {}
    try:
        pixels: U8 = simplejpeg.decode_jpeg(data, space, **bounds)
    except ValueError as error:
        if not any(remark in str(error) for remark in _HARMLESS):
            raise
        pixels = simplejpeg.decode_jpeg(data, space, strict=False, **bounds)
    return pixels


def _orientation(data: bytes) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where it is absent or invalid."""
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        value = image.getexif().get(0x0112, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: U8, orientation: int) -> U8:
    """Undo an EXIF orientation (Exif 2.3, tag 0x0112)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _pillow(data: bytes, name: str, gray: bool, gray_ranges: Mapping[str, GrayRange]) -> Decoded:
    kinds = readable_kinds()
    try:
        image = Image.open(io.BytesIO(data), formats=list(FORMATS))
    except Image.DecompressionBombError:
        raise DecodeError(
            f"{printable(name)} has more than {MAX_PIXELS // 1_000_000} million pixels; scale it down or remove it."
        ) from None
    except UnidentifiedImageError:
        raise DecodeError(
            f"{printable(name)} is not a readable image ({kinds}); replace or remove it."
        ) from None
    with image:
        file_format, mode = image.format or "", image.mode
        if file_format not in (*FORMATS, "MPO"):
            raise DecodeError(f"{printable(name)} is {file_format}, not one of {kinds}; convert it to PNG.")
        _check_size(*image.size, name)
        image.seek(0)
        image.load()
        # Pillow lists a TIFF's layout (width, strips, compression ...) among its EXIF tags.
        tags = set(image.getexif())
        has_metadata = bool(
            _METADATA_KEYS & set(image.info) or (tags & _TELLING_TAGS if file_format == "TIFF" else tags)
        )
        depth = depth_of(image, data)
        upright = ImageOps.exif_transpose(image)
        values: Array | None = None
        scaled_by: ScaledBy = "8-bit" if depth == PLAIN_DEPTH else "full depth"
        if is_deep(mode):
            plain, values, scaled_by = _deep(image, upright, data, gray_ranges.get(depth))
        else:
            plain = _to_plain(upright)
    array = np.asarray(plain)
    colour = colourfulness(array) if array.ndim == 3 else 0.0
    if gray and array.ndim == 3:
        array = np.asarray(plain.convert("L"))
    elif not gray and array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    height, width = array.shape[:2]
    return Decoded(
        np.ascontiguousarray(array),
        width,
        height,
        mode,
        file_format,
        colour,
        has_metadata,
        depth,
        scaled_by,
        values,
    )


def _deep(
    image: Image.Image, upright: Image.Image, data: bytes, common: GrayRange | None
) -> tuple[Image.Image, Array, ScaledBy]:
    """Return an image of more than 8 bits in 8 bits, its values, and how they were scaled."""
    values = values_of(image, upright)
    scaled_by: ScaledBy = "declared depth"
    limits = declared_range(image, data, values)
    if limits is None:
        scaled_by = "file" if common is None else "data set"
        limits = common or own_range(values, whole=is_whole(image.mode))
    levels = gray_levels(values, limits)
    return Image.fromarray(255 - levels if white_is_zero(image) else levels), values, scaled_by


def _to_plain(image: Image.Image) -> Image.Image:
    """Bring any pixel mode of 8 bits to L or RGB; transparency is laid over black."""
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("L", "RGB"):
        if "transparency" not in image.info:
            return image
        image = image.convert("RGBA")
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        black.alpha_composite(image)
        return black.convert("RGB")
    return image.convert("RGB")


def colourfulness(pixels: U8) -> float:
    """Return the mean absolute difference between the channels of an RGB array ``(H, W, 3)``, in gray levels.

    It is measured on about 128 x 128 evenly spread pixels at most.
    """
    step = max(1, min(pixels.shape[:2]) // 128)
    values = pixels[::step, ::step].astype(np.int16)
    red, green, blue = values[..., 0], values[..., 1], values[..., 2]
    return float((np.abs(red - green).mean() + np.abs(green - blue).mean() + np.abs(red - blue).mean()) / 3)
