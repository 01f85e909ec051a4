"""The input that a classifier accepts: files, their content, arrays, tensors and Pillow images."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from brainmri_core.arrays import U8, Array
from brainmri_core.errors import InputTypeError
from brainmri_core.escaping import printable
from brainmri_core.images.decode import DecodeError, colourfulness, decode
from brainmri_core.images.isolation import MAX_FILE_BYTES
from brainmri_core.images.levels import GrayRange, gray_levels
from brainmri_core.images.listing import list_images
from brainmri_core.learning.checkpoint import Preprocessing

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | Array | Image.Image | torch.Tensor

_WANTED = "a path, the bytes of a file, an array, a tensor, a Pillow image, or an iterable of them"
_NO_LIST = (bytes, bytearray, memoryview, str, os.PathLike, Mapping, Image.Image, io.IOBase)
_DEPTHS = {np.dtype(np.uint16): "16-bit", np.dtype(np.int32): "32-bit", np.dtype(np.uint32): "32-bit"}
_TIFF_MODES = frozenset({"1", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "P"})


@dataclass(frozen=True)
class Item:
    """One item to classify: a file, the content of a file, or pixels.

    Attributes
    ----------
    name : str
        Its name in results and messages.
    content : Path, bytes, numpy.ndarray or PIL.Image.Image
        An array is ``(H, W)`` or ``(H, W, 3)``.
    """

    name: str
    content: Path | bytes | Array | Image.Image

    @property
    def is_file(self) -> bool:
        """Whether it must be decoded in a worker process, since it is foreign bytes."""
        return isinstance(self.content, Path | bytes)


def items_of(images: Source | Iterable[Source], preprocessing: Preprocessing) -> list[Item]:
    """Return the items that an argument of `Classifier.predict` means, in order.

    Folders are searched to any depth and patterns are expanded, as on the command line.

    Raises
    ------
    InputTypeError
        If something has a type or shape that a classifier does not accept; nothing is computed then.
    """
    found: list[Item] = []
    for place, source in enumerate(_listed(images)):
        if isinstance(source, str | os.PathLike):
            found += _files(source)
        else:
            found.append(_item(source, place, preprocessing))
    return found


def _listed(images: Any) -> Iterable[Any]:
    if isinstance(images, np.ndarray):
        paths = images.ndim == 1 and images.dtype.kind in "OU"
        return list(images) if paths or images.ndim == 4 else [images]
    if isinstance(images, torch.Tensor):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, _NO_LIST) or not isinstance(images, Iterable):
        return [images]
    return images


def _files(name: str | os.PathLike[str]) -> list[Item]:
    text = os.fspath(name)
    if not isinstance(text, str):
        raise InputTypeError(f"A path of {type(text).__name__} is not accepted; give {_WANTED}.")
    path = Path(text).expanduser()
    if path.is_dir() or (glob.has_magic(text) and not path.exists()):
        return [Item(found, Path(found)) for found in list_images([text])]
    return [Item(text, path)]


def _item(source: Any, place: int, preprocessing: Preprocessing) -> Item:
    if isinstance(source, bytes | bytearray | memoryview):
        return Item(f"bytes {place}", bytes(source))
    if isinstance(source, Image.Image):
        return Item(f"image {place}", source)
    if isinstance(source, torch.Tensor):
        return Item(f"tensor {place}", _of_tensor(source, place))
    if isinstance(source, np.ndarray):
        _check_array(source, f"array {place}", preprocessing)
        return Item(f"array {place}", source)
    hint = ": read it first" if hasattr(source, "read") else ""
    raise InputTypeError(f"Item {place} is of the type {type(source).__name__}{hint}; give {_WANTED}.")


def _of_tensor(tensor: torch.Tensor, place: int) -> Array:
    """Return the pixels of a channels-first tensor as an array ``(H, W)`` or ``(H, W, 3)``."""
    good = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
    planes = tensor.ndim == 2 or (tensor.ndim == 3 and tensor.shape[0] in (1, 3))
    if tensor.dtype not in good or not planes or 0 in tensor.shape:
        raise InputTypeError(
            f"tensor {place} has the type {tensor.dtype} and the shape {tuple(tensor.shape)}; give uint8, or floats from "
            "0 for black to 1 for white, of shape (H, W), (1, H, W) or (3, H, W)."
        )
    values = tensor.detach().cpu()
    values = values if values.dtype == torch.uint8 else values.float()
    if values.ndim == 3:
        values = values[0] if values.shape[0] == 1 else values.permute(1, 2, 0)
    array: Array = values.numpy()
    return array


def _check_array(array: Array, name: str, preprocessing: Preprocessing) -> None:
    if array.ndim < 2 or array.shape[2:] not in ((), (3,)) or 0 in array.shape:
        raise InputTypeError(
            f"{name} has the shape {array.shape}; give (H, W) or (H, W, 3), and several images as a list of arrays."
        )
    if array.dtype == np.uint8 or array.dtype.kind == "f" or _range_of(array, preprocessing) is not None:
        return
    if array.dtype in _DEPTHS and array.ndim == 2:
        raise InputTypeError(
            f"{name} is of {array.dtype}, and the training images of this checkpoint had no such files, so that black and "
            "white are not known; scale it to uint8, or to floats from 0 to 1."
        )
    raise InputTypeError(
        f"{name} is of {array.dtype} and the shape {array.shape}; give uint8, or floats from 0 for black to 1 for white."
    )


def _range_of(array: Array, preprocessing: Preprocessing) -> GrayRange | None:
    """Return the values of black and white of the training images with an array's depth, or None."""
    depth = "float" if array.dtype.kind == "f" else _DEPTHS.get(array.dtype, "")
    return preprocessing.gray_ranges.get(depth) if array.ndim == 2 else None


def pixels_of(item: Item, preprocessing: Preprocessing) -> tuple[U8, float]:
    """Return the pixels of an array or Pillow image, the same as from a file with this content.

    Returns
    -------
    pixels : numpy.ndarray
        uint8 ``(H, W)``, or ``(H, W, 3)`` for a colour model.
    colourfulness : float
        Mean absolute difference of the colour channels.

    Raises
    ------
    DecodeError
        If floats are not from 0 to 1, or a Pillow image cannot be read.
    """
    content = item.content
    if isinstance(content, Image.Image):
        if not content.mode.startswith(("I", "F")):
            found = decode(_as_file(content, item.name), name=item.name, gray=not preprocessing.colour)
            return found.pixels, found.colourfulness
        content = np.asarray(ImageOps.exif_transpose(content))
        try:
            _check_array(content, item.name, preprocessing)
        except InputTypeError as error:
            raise DecodeError(str(error)) from None
    assert isinstance(content, np.ndarray)
    array = _in_8_bits(content, item.name, preprocessing)
    colour = colourfulness(array) if array.ndim == 3 else 0.0
    if preprocessing.colour and array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    elif not preprocessing.colour and array.ndim == 3:
        array = np.asarray(Image.fromarray(array).convert("L"))
    return np.ascontiguousarray(array), colour


def _in_8_bits(array: Array, name: str, preprocessing: Preprocessing) -> U8:
    if array.dtype == np.uint8:
        return array
    limits = _range_of(array, preprocessing)
    if limits is not None:
        return gray_levels(array.astype(np.float64), limits)
    values = array.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # also true for NaN
        raise DecodeError(
            f"{name} has floats from {low:.4g} to {high:.4g}; give 0 for black to 1 for white, before any normalisation."
        )
    return np.asarray(values * 255 + 0.5, np.uint8)


def _as_file(image: Image.Image, name: str) -> bytes:
    """Write a Pillow image as an uncompressed TIFF, so that `decode` handles its mode like that of any file."""
    try:
        upright = ImageOps.exif_transpose(image)
        if "transparency" in upright.info or upright.mode not in _TIFF_MODES:
            upright = upright.convert("RGBA")
        buffer = io.BytesIO()
        upright.save(buffer, "TIFF")
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise DecodeError(f"{name} cannot be read ({type(error).__name__}); open it again.") from None
    return buffer.getvalue()


def read_item(item: Item) -> bytes:
    """Return a file's content.

    Raises
    ------
    DecodeError
        If it is missing, not a file, not readable or too large; other files are not affected.
    """
    if isinstance(item.content, bytes):
        return item.content
    assert isinstance(item.content, Path)
    path, shown = item.content, printable(item.name)
    try:
        if not path.is_file():
            what = "is a folder without images" if path.is_dir() else "does not exist or is not a file"
            raise DecodeError(f"{shown} {what}; check its name.")
        if (size := path.stat().st_size) <= MAX_FILE_BYTES:
            return path.read_bytes()
    except OSError as error:
        raise DecodeError(f"{shown} cannot be read ({error.strerror or type(error).__name__}).") from None
    raise DecodeError(
        f"{shown} has {size >> 20} MiB, more than the {MAX_FILE_BYTES >> 20} MiB that are read."
    )
