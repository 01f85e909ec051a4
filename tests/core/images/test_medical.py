from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from brainmri_core.images.decode import DecodeError
from brainmri_core.images.medical import medical_kind, medical_slices
from tests.core.images.medical_case import dicom, nibabel, nifti

pydicom = pytest.importorskip("pydicom", reason="the extra `medical` is not installed")


def slices(data: bytes, name: str = "x") -> list[np.ndarray]:
    kind = medical_kind(data, name)
    assert kind is not None
    found = list(medical_slices(data, name, kind))
    assert {item.count for item in found} == {len(found)}
    return [item.pixels for item in found]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "ASR", "SPL"])
def test_nifti_is_shown_radiologically_however_it_is_stored(codes: str) -> None:
    volume = np.zeros((20, 24, 6), np.float32)
    volume[15:, :, 2] = 100  # the patient's right
    volume[:, 20:, 3] = 100  # the front
    world = nibabel.Nifti1Image(volume, np.diag([1, 1, 3, 1]))
    start = nibabel.orientations.io_orientation(world.affine)
    turned = world.as_reoriented(
        nibabel.orientations.ornt_transform(start, nibabel.orientations.axcodes2ornt(tuple(codes)))
    )
    found = slices(turned.to_bytes())
    assert len(found) == 6, "along the thickest voxels"
    assert found[2].shape == (24, 20)
    assert (found[2][:, :5] == 255).all(), "right is left"
    assert (found[2][:, 5:] == 0).all()
    assert (found[3][:4] == 255).all(), "the front is up"


def test_nifti_of_one_slice_of_a_series_and_compressed() -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(16, 12)).astype(np.float32)
    assert [item.shape for item in slices(nifti(flat[..., None], (1, 1, 1)))] == [(12, 16)]
    series = rng.normal(size=(16, 12, 5, 3)).astype(np.float32)
    packed = gzip.compress(nifti(series, (1, 1, 2)))
    assert len(slices(packed)) == 5
    assert [item.shape for item in slices(nifti(series[..., 0], (1, 2, 4)))] == [(24, 16)] * 5, (
        "square pixels"
    )


def test_dicom_window_inversion_frames_and_spacing() -> None:
    ramp = np.tile(np.arange(100) * 10, (50, 1))[None]
    (pixels,) = slices(dicom(ramp, WindowCenter=500, WindowWidth=201))
    assert pixels.shape == (50, 100)
    assert pixels[0, 39] == 0
    assert pixels[0, 60] == 255
    assert abs(int(pixels[0, 50]) - 128) < 3
    (inverted,) = slices(
        dicom(ramp, WindowCenter=500, WindowWidth=201, PhotometricInterpretation="MONOCHROME1")
    )
    assert np.array_equal(inverted, 255 - pixels)
    (plain,) = slices(dicom(ramp))
    assert plain[0, 0] == 0
    assert plain[0, -1] == round(990 / 4095 * 255), "12 bits are stored"
    (signed,) = slices(dicom(ramp, PixelRepresentation=1, RescaleSlope=2, RescaleIntercept=-1024))
    assert signed[0, 0] == 128, "zero lies in the middle of what 12 signed bits hold"
    (undeclared,) = slices(dicom(ramp, BitsStored=16, HighBit=15))
    assert undeclared.dtype == np.uint16
    assert np.array_equal(undeclared, ramp[0]), "its values; the data set says what is black and white"
    tall = slices(dicom(ramp, BitsStored=16, HighBit=15, PixelSpacing=[2.0, 1.0]))[0]
    assert tall.shape == (100, 100)
    assert np.array_equal(tall[50], ramp[0, 0])
    hounsfield = {"Modality": "CT", "RescaleIntercept": -1024, "RescaleSlope": 1}
    wide = dicom(ramp, BitsStored=16, HighBit=15, **hounsfield)
    (units,) = medical_slices(wide, "x", "dicom", any_modality=True)
    assert np.array_equal(units.pixels, ramp[0])
    (small,) = slices(dicom(ramp, BitsStored=16, HighBit=15, RescaleIntercept=0, RescaleSlope=1e-5))
    assert np.array_equal(small, ramp[0])
    both = slices(dicom(np.concatenate([ramp, ramp[:, ::-1, ::-1]])))
    assert np.array_equal(both[0][0], both[1][0][::-1])
    (square,) = slices(dicom(ramp, PixelSpacing=[2.0, 1.0]))
    assert square.shape == (100, 100)


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.99])
@pytest.mark.parametrize("make", ["dicom", "nifti"])
def test_damage_is_one_sentence_without_header_text(make: str, cut: float) -> None:
    frames = np.random.default_rng(0).integers(0, 4000, (1, 64, 64))
    data = dicom(frames) if make == "dicom" else nifti(frames[0][..., None].astype(np.float32), (1, 1, 1))
    with pytest.raises(DecodeError) as caught:
        list(medical_slices(data[: int(len(data) * cut)], "scan", make))
    assert "scan" in str(caught.value)
    assert "Doe" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "syntax", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"]
)
def test_compressed_dicom_has_the_pixels_of_the_plain_file(tmp_path: Path, syntax: str) -> None:
    gdcm = pytest.importorskip("gdcm", reason="the extra `medical` is not installed")
    plain = dicom(np.random.default_rng(0).integers(0, 4000, (1, 8, 8)).repeat(6, 1).repeat(6, 2))
    (tmp_path / "plain").write_bytes(plain)
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(tmp_path / "plain"))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(tmp_path / "packed"))
    assert writer.Write()
    packed = (tmp_path / "packed").read_bytes()
    assert packed != plain
    assert np.array_equal(slices(packed)[0], slices(plain)[0])


def test_another_modality_is_refused() -> None:
    frames = np.random.default_rng(0).integers(0, 4000, (1, 64, 64))
    with pytest.raises(DecodeError, match="another modality than MR"):
        slices(dicom(frames, Modality="CT"))


@pytest.mark.parametrize("library", ["pydicom", "nibabel"])
def test_a_missing_library_is_named_with_its_extra(library: str) -> None:
    program = f"""
import sys
sys.modules[{library!r}] = None
from brainmri_core.images.decode import DecodeError
from brainmri_core.images.medical import medical_slices
try:
    list(medical_slices(b"", "scan", {"dicom" if library == "pydicom" else "nifti"!r}))
except DecodeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'brainmri[medical]'" in done.stdout
