"""Slices of DICOM, NIfTI and MATLAB files, read by the libraries of the ``medical`` extra where it is installed.

A header may name a patient, so only a few fields of it are read: those that decide orientation and brightness and, for
training, the ids that tell which images belong together. None of its text reaches a file, a message or a log.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from brainmri_core.arrays import F32, U8, U16, Array, Mask
from brainmri_core.config.formats import HEAD
from brainmri_core.escaping import printable
from brainmri_core.images.decode import MAX_PIXELS, MAX_SIDE, DecodeError
from brainmri_core.images.isolation import MAX_ANSWERS
from brainmri_core.images.matlab import is_matlab, matlab_image

Kind = Literal["dicom", "nifti", "matlab"]

MAX_SLICES = MAX_ANSWERS
_MAX_BYTES = 1 << 30
_NIFTI_MAGIC = (b"n+1\0", b"ni1\0")
_GZIP = b"\x1f\x8b"
_TAIL = 0.5  # per cent of the voxels that may saturate at either end
_THICK = 1.2  # slices were taken along an axis whose voxels are longer than the others by this factor
_UNEQUAL = 0.02
_LEAST_TOP = 1023  # a rescaled 16-bit image that cannot reach this value would lose detail as integers
_EXTRA = "reading it needs the `medical` extra: pip install 'brainmri[medical]'"


_SHOWN = {"dicom": "DICOM", "nifti": "NIfTI", "matlab": "MATLAB"}
_LIBRARIES = ("pydicom", "nibabel", "h5py")
_DIRECTORY = b"1.2.840.10008.1.3.10"  # storage class of a DICOMDIR
_FIRST_GROUPS = (2, 8)  # groups of the first element of a DICOM file without preamble
_LAST_GROUP = 0x28  # highest group of its second element
_LONGEST_FIRST = 400
_SHORT_VRS = b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split()
_NO_PATIENT = {
    "anon",
    "anonym",
    "anonymous",
    "anonymized",
    "anonymised",
    "unknown",
    "none",
    "null",
    "na",
    "patient",
    "",
}


@dataclass(frozen=True)
class Slice:
    """One slice of a file.

    Attributes
    ----------
    count : int
        Number of slices in the file.
    pixels : numpy.ndarray
        uint8 ``(H, W)``, square pixels, NIfTI in radiological orientation. From MATLAB files, and from DICOM files that
        declare no range, uint16 values, which the gray range of the data set scales later.
    volumes : int
        Number of volumes in the file; the slices are those of the first.
    patient, study : str or None
        Ids as in the file, only to be hashed.
    label : str or None
        Class that the file names.
    mask : numpy.ndarray or None
        Tumour mask, bool ``(H, W)``.
    """

    count: int
    pixels: U8 | U16
    volumes: int = 1
    patient: str | None = None
    study: str | None = None
    label: str | None = None
    mask: Mask | None = None


def medical_kind(data: bytes, name: str) -> Kind | None:
    """Return the kind of scan by a file's first `formats.HEAD` bytes, else by its name; None if it is not a scan."""
    lower = name.lower()
    if data[128:132] == b"DICM" or _is_bare_dicom(data):
        return "dicom"
    if is_matlab(data):
        return "matlab"
    head = _unpacked_head(data) if data[:2] == _GZIP else data
    if head[344:348] in _NIFTI_MAGIC or lower.endswith((".nii", ".nii.gz")):
        return "nifti"
    return "dicom" if lower.endswith((".dcm", ".dicom")) else None


def _unpacked_head(data: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(data[:HEAD], 400)
    except zlib.error:
        return b""


def is_dicomdir(data: bytes) -> bool:
    """Say by its first kilobyte whether a file is a DICOMDIR, the index of a medium, which holds no image."""
    return data[128:132] == b"DICM" and _DIRECTORY in data[:1024]


def _is_bare_dicom(data: bytes) -> bool:
    """Say whether a file begins with two elements of a DICOM data set, as files without preamble do."""
    group, element = int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little")
    if group not in _FIRST_GROUPS:
        return False
    explicit = data[4:6] in _SHORT_VRS
    length = int.from_bytes(data[6:8] if explicit else data[4:8], "little")
    after = data[8 + length : 12 + length]
    if length % 2 or length > _LONGEST_FIRST or len(after) < 4:
        return False
    next_group, next_element = int.from_bytes(after[:2], "little"), int.from_bytes(after[2:], "little")
    return (group, element) < (next_group, next_element) < (_LAST_GROUP + 1, 0) and next_group % 2 == 0


def medical_slices(data: bytes, name: str, kind: Kind, *, any_modality: bool = False) -> Iterator[Slice]:
    """Yield the slices of a file.

    Parameters
    ----------
    data : bytes
        The file's content.
    name : str
        Its name in messages.
    kind : str
        What `medical_kind` found.
    any_modality : bool
        Accept DICOM images of other modalities than MR.

    Raises
    ------
    DecodeError
        If the file is damaged, is not an MR image, or the library that reads it is not installed.
    """
    title = printable(name)
    try:
        if kind == "dicom":
            yield from _dicom(data, title, any_modality)
        elif kind == "nifti":
            yield from _nifti(data, title)
        else:
            found = matlab_image(data, title)
            yield Slice(1, found.values, patient=found.patient, label=found.label, mask=found.mask)
    except (DecodeError, GeneratorExit):
        raise
    except ModuleNotFoundError as error:
        if error.name not in _LIBRARIES:
            raise
        raise DecodeError(f"{title} is a {_SHOWN[kind]} file; {_EXTRA}.") from None
    except MemoryError:
        raise DecodeError(f"{title} needs more memory to decode than there is; it was left out.") from None
    except Exception as error:  # noqa: BLE001 - the libraries raise anything on damaged files, with header text in it
        raise DecodeError(
            f"{title} cannot be read as {_SHOWN[kind]} ({type(error).__name__}); it is damaged or compressed in a way that "
            "needs another library."
        ) from None


def _dicom(data: bytes, title: str, any_modality: bool) -> Iterator[Slice]:
    import pydicom
    from pydicom.pixels.processing import apply_modality_lut
    from pydicom.pixels.utils import iter_pixels

    if is_dicomdir(data):
        raise DecodeError(f"{title} is the index of a DICOM medium and no image; give the files it lists.")
    dataset: Any = pydicom.dcmread(io.BytesIO(data), force=_is_bare_dicom(data))
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = _syntax(dataset)
    if "Rows" not in dataset or "Columns" not in dataset:
        raise DecodeError(f"{title} is a DICOM file without an image, such as a report; it was left out.")
    if str(dataset.get("Modality", "MR")) != "MR" and not any_modality:
        raise DecodeError(f"{title} is a DICOM file of another modality than MR; it was left out.")
    count = int(dataset.get("NumberOfFrames") or 1)
    _check(int(dataset.Columns), int(dataset.Rows), count, title)
    spacing = [float(value) for value in dataset.get("PixelSpacing") or (1.0, 1.0)]
    for frame in iter_pixels(dataset):
        if frame.ndim == 3:
            pixels: U8 | U16 = np.asarray(Image.fromarray(frame.astype(np.uint8)).convert("L"))
        else:
            values = np.asarray(apply_modality_lut(frame, dataset), np.float32)
            declared = _window(dataset) or _declared(frame.dtype, dataset)
            inverted = dataset.get("PhotometricInterpretation") == "MONOCHROME1"
            if declared is None and not inverted and frame.dtype.itemsize == 2:
                pixels = _values(frame, values, dataset)
            else:
                pixels = _scaled(values, *(declared or _range(values)))
            if inverted:
                pixels = 255 - pixels
        yield Slice(
            count,
            _square(pixels, *spacing),
            patient=_identity(dataset.get("PatientID"), _NO_PATIENT),
            study=_identity(dataset.get("StudyInstanceUID"), {""}),
        )


def _syntax(dataset: Any) -> str:
    """Return the transfer syntax of a data set that does not declare it, as pydicom recognised it."""
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    return str(ImplicitVRLittleEndian if dataset.original_encoding[0] else ExplicitVRLittleEndian)


def _identity(value: Any, nobody: set[str]) -> str | None:
    """Return an id of a header, or None for the placeholders that anonymisation writes, such as ``anonymous``."""
    text = str(value or "").strip()
    plain = "".join(char for char in text.casefold() if char.isalnum())
    return None if plain.rstrip("0") in nobody else text


def _window(dataset: Any) -> tuple[float, float] | None:
    """Return the grey range of the first stored window (DICOM PS3.3 C.11.2.1.2), or None."""
    stored = (dataset.get("WindowCenter"), dataset.get("WindowWidth"))
    if None in stored:
        return None
    centre, width = (float(np.atleast_1d(np.asarray(value, np.float64))[0]) for value in stored)
    if width <= 1:
        return None
    return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2


def _values(frame: Array, values: F32, dataset: Any) -> U16:
    """Return the rescaled values of a 16-bit frame as integers; negative ones, which are air in MR, become zero.

    CT values (Hounsfield units) are shifted by 1024, so that air is zero. Where the rescale slope is so small that integers
    would lose the image, the stored values are taken instead.
    """
    if dataset.get("Modality") == "CT":
        values = values + 1024
    elif abs(float(dataset.get("RescaleSlope") or 1)) * np.iinfo(np.int16).max < _LEAST_TOP:
        values = frame.astype(np.float32)
    return np.clip(np.rint(values), 0, np.iinfo(np.uint16).max).astype(np.uint16)


def _declared(dtype: np.dtype[Any], dataset: Any) -> tuple[float, float] | None:
    """Return the range of the stored bits; None where more than 8 bits are stored and fill the allocated ones."""
    from pydicom.pixels.processing import apply_modality_lut

    bits = int(dataset.BitsStored)
    if bits > 8 and bits == int(dataset.BitsAllocated):
        return None
    ends = np.array([0, 2**bits - 1]) - (2 ** (bits - 1) if int(dataset.PixelRepresentation) else 0)
    low, high = sorted(float(x) for x in np.asarray(apply_modality_lut(ends.astype(dtype), dataset)))
    return low, high


def _nifti(data: bytes, title: str) -> Iterator[Slice]:
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
    volumes = canonical.shape[3] if len(canonical.shape) == 4 else 1
    proxy = canonical.dataobj[..., 0] if len(canonical.shape) == 4 else canonical.dataobj
    volume = np.asarray(proxy, np.float32)
    spacing = [float(value) for value in canonical.header.get_zooms()[:3]]
    axis = _slice_axis(volume.shape, spacing)
    first, second_axis = (number for number in range(3) if number != axis)
    planes = np.moveaxis(volume, axis, 0)
    _check(volume.shape[first], volume.shape[second_axis], len(planes), title)
    low, high = _range(volume)
    for plane in planes:
        # rows from head to foot (or front to back), columns from the patient's right to left (or front to back)
        upright = plane[::-1, ::-1].T
        pixels = _square(_scaled(upright, low, high), spacing[second_axis], spacing[first])
        yield Slice(len(planes), pixels, volumes)


def _slice_axis(shape: tuple[int, ...], spacing: list[float]) -> int:
    """Return the axis that slices were taken along: one of a single layer, else of the thickest voxels, else head to foot."""
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


def _square(pixels: U8 | U16, row_spacing: float, column_spacing: float) -> U8 | U16:
    """Resample an image to square pixels."""
    if min(row_spacing, column_spacing) <= 0:
        return pixels
    ratio = row_spacing / column_spacing
    if abs(ratio - 1) <= _UNEQUAL or not 0.1 <= ratio <= 10:
        return pixels
    height, width = pixels.shape
    size = (width, max(2, round(height * ratio))) if ratio > 1 else (max(2, round(width / ratio)), height)
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    exact = Image.fromarray(pixels.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(np.rint(np.asarray(exact)), np.uint16)
