"""Images in MATLAB 7.3 files with the layout of the Figshare brain tumour data set.

Such a file is HDF5 after a header of 512 bytes. Its group ``cjdata`` holds ``image``, ``label``, ``PID``, ``tumorMask`` and
``tumorBorder``, in MATLAB's column order. HDF5 can point to other files, load filters and declare any size, so everything
is checked before a value is read, and only plain datasets are read.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from brainmri_core.arrays import U16, Array, Mask
from brainmri_core.images.decode import MAX_PIXELS, MAX_SIDE, MIN_SIDE, DecodeError

LABELS = {1: "meningioma", 2: "glioma", 3: "pituitary"}
"""The classes by their numbers in ``cjdata.label``."""

_GROUP = "cjdata"
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HEADER = 512
_FILTERS = {1, 2, 3}  # deflate, shuffle, checksum: what MATLAB writes
_LARGEST_CHUNK = 64 << 20
_LONGEST_ID = 64
_REPEAT = re.compile(r"(.*\d)[A-Za-z]+")


@dataclass(frozen=True)
class MatlabImage:
    """One image and its metadata.

    Attributes
    ----------
    values : numpy.ndarray
        uint16 ``(H, W)``; values below zero count as zero.
    label : str or None
        Class, where the file names one of `LABELS`.
    patient : str or None
        Id as in the file, without the letters at its end that mark a repeated exam.
    mask : numpy.ndarray or None
        Tumour mask, bool ``(H, W)``.
    """

    values: U16
    label: str | None
    patient: str | None
    mask: Mask | None


def is_matlab(data: bytes) -> bool:
    """Tell from its first bytes whether a file is a MATLAB file of any version."""
    return data.startswith(b"MATLAB ") and data[126:128] in (b"IM", b"MI")


def matlab_image(data: bytes, title: str) -> MatlabImage:
    """Read one file.

    Parameters
    ----------
    data : bytes
        The file's content.
    title : str
        Its name in messages, escaped.

    Raises
    ------
    DecodeError
        If the file has an older version, another layout, or is not plain HDF5.
    Exception
        h5py raises exceptions of many kinds on damaged files.
    """
    if data[_HEADER : _HEADER + len(_SIGNATURE)] != _SIGNATURE:
        raise DecodeError(
            f"{title} is a MATLAB file of a version before 7.3; save it again with save(..., '-v7.3'), or as PNG."
        )
    import h5py

    with h5py.File(io.BytesIO(data), "r") as file:
        group = _hard(file, _GROUP, title, h5py) if _GROUP in file.keys() else None  # noqa: SIM118 - `in` resolves links
        if not isinstance(group, h5py.Group) or "image" not in group.keys():  # noqa: SIM118
            raise DecodeError(f"{title} is a MATLAB file without an image in {_GROUP}.image.")
        parts = {
            name: _array(_hard(group, name, title, h5py), f"{title}, {_GROUP}.{name},", h5py)
            for name in ("image", "label", "PID", "tumorMask")
            if name in group.keys()  # noqa: SIM118
        }
    image = parts["image"]
    if image.ndim != 2 or min(image.shape) < MIN_SIDE:
        raise DecodeError(f"{title} holds an image of shape {image.shape[::-1]}; give one of two dimensions.")
    if image.max() > np.iinfo(np.uint16).max:
        raise DecodeError(f"{title} holds values above 65,535, which are not read.")
    values = np.ascontiguousarray(np.clip(image, 0, None).T.astype(np.uint16))
    mask = parts.get("tumorMask")
    return MatlabImage(
        values,
        LABELS.get(int(parts["label"].flat[0])) if parts.get("label", _NOTHING).size else None,
        _patient(parts.get("PID", _NOTHING)),
        None if mask is None or mask.shape != image.shape else np.ascontiguousarray(mask.T != 0),
    )


_NOTHING = np.zeros(0, np.uint16)


def _hard(group: Any, name: str, title: str, h5py: Any) -> Any:
    """Return a member that lies in this file; soft and external links, which may lead to any file, are refused."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise DecodeError(f"{title} has a link in place of {name}; links are not followed.")
    return group[name]


def _array(found: Any, title: str, h5py: Any) -> Array:
    """Read a dataset of integers after its size, storage and filters are checked."""
    if not isinstance(found, h5py.Dataset):
        raise DecodeError(f"{title} is not an array.")
    if found.dtype.kind not in "iub" and not (found.dtype.kind == "f" and found.size == 1):
        raise DecodeError(f"{title} is of type {found.dtype}; only integers are read.")
    if max(found.shape, default=0) > MAX_SIDE or found.size > MAX_PIXELS:
        raise DecodeError(
            f"{title} is larger than {MAX_SIDE} x {MAX_SIDE} or {MAX_PIXELS // 1_000_000} million."
        )
    plan = found.id.get_create_plist()
    filters = {plan.get_filter(number)[0] for number in range(plan.get_nfilters())}
    chunk = int(np.prod(found.chunks, dtype=np.float64)) * found.dtype.itemsize if found.chunks else 0
    if found.external or found.is_virtual or not filters <= _FILTERS or plan.get_nfilters() > len(_FILTERS):
        raise DecodeError(f"{title} is stored outside its file, or with a filter that is not supported.")
    if chunk > _LARGEST_CHUNK:
        raise DecodeError(f"{title} is stored in pieces of {chunk >> 20} MiB, which are too large.")
    return np.asarray(found[()])


def _patient(codes: Array) -> str | None:
    """Return the patient id from ``PID``, which holds the character codes of the id."""
    if codes.dtype.kind not in "iu" or not 0 < codes.size <= _LONGEST_ID:
        return None
    text = "".join(chr(int(code)) for code in codes.flat if 32 <= code < 0xD800).strip()
    repeated = _REPEAT.fullmatch(text)
    return (repeated[1] if repeated else text) or None
