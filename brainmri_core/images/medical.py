"""Slices of DICOM and NIfTI files, through pydicom and nibabel where the ``medical`` extra is installed.

Only pixels, and what is needed to show them upright and at the right brightness, are read. Header text may name a patient:
none of it reaches a result or an error message.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from brainmri_core.images.decode import MAX_PIXELS, MAX_SIDE, DecodeError
from brainmri_core.images.isolation import MAX_ANSWERS
from brainmri_core.text import printable

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Kind = Literal["dicom", "nifti"]

SUFFIXES = (".dcm", ".dicom", ".nii", ".nii.gz")
MAX_SLICES = MAX_ANSWERS
_MAX_BYTES = 1 << 30
_NIFTI_MAGIC = (b"n+1\0", b"ni1\0")
_GZIP = b"\x1f\x8b"
_TAIL = 0.5  # per cent of the voxels that may saturate at either end
_THICK = 1.2  # voxels this much longer along one axis say that slices were taken along it
_UNEQUAL = 0.02
_EXTRA = "reading it needs the `medical` extra: pip install 'brainmri[medical]'"


def medical_kind(data: bytes, name: str) -> Kind | None:
    """Tell from content, else from its name, whether a file is DICOM or NIfTI."""
    lower = name.lower()
    if data[128:132] == b"DICM":
        return "dicom"
    if data[344:348] in _NIFTI_MAGIC or data[:2] == _GZIP or lower.endswith((".nii", ".nii.gz")):
        return "nifti"
    return "dicom" if lower.endswith((".dcm", ".dicom")) else None


def medical_slices(data: bytes, name: str, kind: Kind) -> Iterator[tuple[int, U8]]:
    """Yield the slices of a file.

    Yields
    ------
    count : int
        Number of slices in the file.
    pixels : numpy.ndarray
        uint8 ``(H, W)``, square pixels; NIfTI in radiological orientation.

    Raises
    ------
    DecodeError
        If the file is damaged, is no MR image, or the library that reads it is not installed.
    """
    title = printable(name)
    try:
        yield from (_dicom if kind == "dicom" else _nifti)(data, title)
    except (DecodeError, GeneratorExit):
        raise
    except ModuleNotFoundError as error:
        if error.name not in ("pydicom", "nibabel"):
            raise
        shown = "DICOM" if kind == "dicom" else "NIfTI"
        raise DecodeError(f"{title} is a {shown} file; {_EXTRA}.") from None
    except MemoryError:
        raise DecodeError(f"{title} needs more memory to decode than there is; it was left out.") from None
    except Exception as error:  # noqa: BLE001 - both libraries raise anything on damaged files, with header text in it
        raise DecodeError(
            f"{title} cannot be read as {kind.upper() if kind == 'dicom' else 'NIfTI'} ({type(error).__name__}); "
            "it is damaged or compressed in a way that needs another library."
        ) from None


def _dicom(data: bytes, title: str) -> Iterator[tuple[int, U8]]:
    import pydicom
    from pydicom.pixels.processing import apply_modality_lut
    from pydicom.pixels.utils import iter_pixels

    dataset = pydicom.dcmread(io.BytesIO(data))
    if str(dataset.get("Modality", "MR")) != "MR":
        raise DecodeError(f"{title} is a DICOM file of another modality than MR; it was left out.")
    count = int(dataset.get("NumberOfFrames") or 1)
    _check(int(dataset.Columns), int(dataset.Rows), count, title)
    spacing = [float(value) for value in dataset.get("PixelSpacing") or (1.0, 1.0)]
    for frame in iter_pixels(dataset):
        if frame.ndim == 3:
            pixels = np.asarray(Image.fromarray(frame.astype(np.uint8)).convert("L"))
        else:
            values = np.asarray(apply_modality_lut(frame, dataset), np.float32)
            declared = _window(dataset) or _declared(frame.dtype, dataset)
            pixels = _scaled(values, *(declared or _range(values)))
            if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
                pixels = 255 - pixels
        yield count, _square(pixels, *spacing)


def _window(dataset: Any) -> tuple[float, float] | None:
    """Return the grey range of the first stored window (DICOM PS3.3 C.11.2.1.2), or None."""
    stored = (dataset.get("WindowCenter"), dataset.get("WindowWidth"))
    if None in stored:
        return None
    centre, width = (float(np.atleast_1d(np.asarray(value, np.float64))[0]) for value in stored)
    if width <= 1:
        return None
    return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2


def _declared(dtype: np.dtype[Any], dataset: Any) -> tuple[float, float] | None:
    """Return the range of the bits that are stored where they are fewer than fit, or None; all bits declare nothing."""
    from pydicom.pixels.processing import apply_modality_lut

    bits = int(dataset.BitsStored)
    if not 8 < bits < int(dataset.BitsAllocated):
        return None
    ends = np.array([0, 2**bits - 1]) - (2 ** (bits - 1) if int(dataset.PixelRepresentation) else 0)
    low, high = sorted(float(x) for x in np.asarray(apply_modality_lut(ends.astype(dtype), dataset)))
    return low, high


def _nifti(data: bytes, title: str) -> Iterator[tuple[int, U8]]:
    import nibabel

    library: Any = nibabel
    if data[:2] == _GZIP:
        unpacker = zlib.decompressobj(wbits=31)
        data = unpacker.decompress(data, _MAX_BYTES)
        if unpacker.unconsumed_tail:
            raise DecodeError(f"{title} unpacks to more than {_MAX_BYTES >> 20} MiB; cut it into parts.")
    second = int.from_bytes(data[:4], "little") == 540 or int.from_bytes(data[:4], "big") == 540
    stored = (library.Nifti2Image if second else library.Nifti1Image).from_bytes(data)
    if len(stored.shape) not in (2, 3, 4) or min(stored.shape) < 1:
        raise DecodeError(
            f"{title} has {len(stored.shape)} dimensions; give an image, a volume or a series of them."
        )
    if len(stored.shape) == 2:
        stored = library.Nifti1Image(np.asanyarray(stored.dataobj)[..., None], stored.affine)
    canonical = library.as_closest_canonical(stored)
    volume = np.asarray(canonical.dataobj, np.float32)
    volume = volume[..., 0] if volume.ndim == 4 else volume
    spacing = [float(value) for value in canonical.header.get_zooms()[:3]]
    axis = _slice_axis(volume.shape, spacing)
    first, second_axis = (number for number in range(3) if number != axis)
    planes = np.moveaxis(volume, axis, 0)
    _check(volume.shape[first], volume.shape[second_axis], len(planes), title)
    low, high = _range(volume)
    for plane in planes:
        # rows from head to foot (or front to back), columns from the patient's right to left (or front to back)
        upright = plane[::-1, ::-1].T
        yield len(planes), _square(_scaled(upright, low, high), spacing[second_axis], spacing[first])


def _slice_axis(shape: tuple[int, ...], spacing: list[float]) -> int:
    """Return the axis slices were taken along: that of a single layer, or of the thickest voxels, else head to foot."""
    if 1 in shape:
        return 2 if shape[2] == 1 else shape.index(1)
    thickest = int(np.argmax(spacing))
    return thickest if spacing[thickest] > _THICK * sorted(spacing)[1] else 2


def _check(width: int, height: int, count: int, title: str) -> None:
    if not 1 <= count <= MAX_SLICES or min(width, height) < 2 or max(width, height) > MAX_SIDE:
        raise DecodeError(
            f"{title} holds {count} slices of {width} x {height} pixels; at most {MAX_SLICES} of sides from 2 to {MAX_SIDE} are read."
        )
    if width * height > MAX_PIXELS:
        raise DecodeError(f"{title} has slices of more than {MAX_PIXELS // 1_000_000} million pixels.")


def _range(values: F32) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 0.0
    low, high = np.percentile(finite, [_TAIL, 100 - _TAIL])
    return (float(low), float(high)) if high > low else (float(finite.min()), float(finite.max()))


def _scaled(values: F32, low: float, high: float) -> U8:
    factor = 255.0 / (high - low) if high > low else 0.0
    clean = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    return np.ascontiguousarray(np.clip((clean - low) * factor + 0.5, 0, 255).astype(np.uint8))


def _square(pixels: U8, row_spacing: float, column_spacing: float) -> U8:
    """Resample an image whose pixels are not square so that they are."""
    if min(row_spacing, column_spacing) <= 0:
        return pixels
    ratio = row_spacing / column_spacing
    if abs(ratio - 1) <= _UNEQUAL or not 0.1 <= ratio <= 10:
        return pixels
    height, width = pixels.shape
    size = (width, max(2, round(height * ratio))) if ratio > 1 else (max(2, round(width / ratio)), height)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
