"""DICOM and NIfTI files with known content."""

from __future__ import annotations

import io

import numpy as np
import pytest

nibabel = pytest.importorskip("nibabel", reason="the extra `medical` is not installed")


SECRET = "Doe^Jane"


def nifti(volume: np.ndarray, spacing: tuple[float, float, float], codes: str = "RAS") -> bytes:
    """A volume whose axes run the way `codes` says."""
    axes = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, code in enumerate(codes):
        row, sign = axes[code]
        affine[row, column] = sign * spacing[column]
    image = nibabel.Nifti1Image(volume, affine)
    image.header["descrip"] = SECRET.encode()
    return image.to_bytes()


def dicom(frames: np.ndarray, **values: object) -> bytes:
    """An uncompressed MR file of 16-bit frames ``(N, H, W)``."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.PatientName, file.PatientID, file.Modality = SECRET, SECRET, "MR"
    file.Rows, file.Columns = frames.shape[1:]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    if len(frames) > 1:
        file.NumberOfFrames = len(frames)
    for name, value in values.items():
        setattr(file, name, value)
    file.PixelData = frames.astype("<u2").tobytes()
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
