"""Pictures of single images for pages and contact sheets: thumbnails, overlays of maps, and their colour bar."""

from __future__ import annotations

import base64
import io
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from brainmri_core.arrays import F32, U8

OPACITY = 0.6


@cache
def colour_table() -> U8:
    """Return the perceptually uniform colour map *inferno*, readable with any colour vision: uint8 ``(256, 3)``."""
    from matplotlib import colormaps

    return np.asarray(colormaps["inferno"](np.arange(256))[:, :3] * 255 + 0.5, np.uint8)


def to_rgb(pixels: U8) -> U8:
    """Return ``(H, W, 3)`` of gray ``(H, W)`` or colour pixels."""
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def overlay(pixels: U8, values: F32) -> U8:
    """Lay a map over an image, more opaque where its values are higher; where they are zero the image is unchanged.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8 ``(H, W)`` or ``(H, W, 3)``.
    values : numpy.ndarray
        float32 ``(S, S)`` in [0, 1]; it is stretched to the image.

    Returns
    -------
    numpy.ndarray
        uint8 ``(H, W, 3)``.
    """
    height, width = pixels.shape[:2]
    stretched = np.asarray(
        Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    ).clip(0, 1)
    colours = colour_table()[(stretched * 255 + 0.5).astype(np.uint8)].astype(np.float32)
    share = (OPACITY * np.sqrt(stretched))[..., None]
    return np.asarray(to_rgb(pixels) * (1 - share) + colours * share + 0.5, np.uint8)


def resized(pixels: U8, side: int) -> Image.Image:
    """Return an image fitted into `side` pixels; it is never enlarged."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BILINEAR)
    return image


def data_uri(image: Image.Image, quality: int = 82) -> str:
    """Encode an image as a JPEG data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def colour_bar(width: int, height: int) -> Image.Image:
    """Return a horizontal colour bar, zero at the left, in the colours of an overlay over mid-gray."""
    ramp = np.linspace(0, 1, width, dtype=np.float32)[None].repeat(height, axis=0)
    return Image.fromarray(overlay(np.full((height, width), 96, np.uint8), ramp))


def shortened(text: str, length: int) -> str:
    """Cut the middle out of a text that is longer than `length` characters."""
    if len(text) <= length:
        return text
    tail = (length - 1) * 2 // 3
    return f"{text[: length - 1 - tail]}…{text[-tail:]}"


class Sheet:
    """A contact sheet: rows of equal tiles with a heading beside each row and caption lines under each tile."""

    def __init__(self, title: str, columns: int, rows: int, *, tile: int = 176, lines: int = 3) -> None:
        self._tile, self._lines, self._margin, self._head = tile, lines, 96, 40
        self._row = tile + 16 * lines + 14
        size = (self._margin + columns * (tile + 8) + 8, self._head + rows * self._row + 34)
        self.image = Image.new("RGB", size, "white")
        self._draw = ImageDraw.Draw(self.image)
        self._draw.text((10, 10), title, fill="black", font=_font(18))

    def heading(self, row: int, text: str) -> None:
        """Write a row's heading."""
        at = (8, self._head + row * self._row + self._tile // 2)
        self._draw.text(at, shortened(text, 14), fill="black", font=_font(13))

    def place(self, row: int, column: int, pixels: U8, captions: list[str], *, colour: str = "black") -> None:
        """Put a tile with its captions in place."""
        left, top = self._margin + column * (self._tile + 8), self._head + row * self._row
        picture = Image.fromarray(pixels).resize((self._tile, self._tile), Image.Resampling.BILINEAR)
        self.image.paste(picture, (left, top))
        for line, text in enumerate(captions[: self._lines]):
            at = (left, top + self._tile + 2 + 16 * line)
            self._draw.text(at, shortened(text, self._tile // 7), fill=colour, font=_font(12))

    def bar(self, low: str, high: str) -> None:
        """Draw the colour bar of the overlays along the bottom."""
        left, top = self._margin, self.image.height - 26
        strip = colour_bar(240, 14)
        font = _font(12)
        self._draw.text((left, top), low, fill="black", font=font)
        start = left + int(self._draw.textlength(low, font=font)) + 8
        self.image.paste(strip, (start, top))
        self._draw.text((start + strip.width + 8, top), high, fill="black", font=font)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
