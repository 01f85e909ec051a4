"""MATLAB 7.3 files of the layout that the Figshare brain tumour set has, and data sets of them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PATIENTS = ("100360", "MR040240A", "MR040240B", "110417", "112649", "98123")


def matlab_file(fill: Callable[[Any], None]) -> bytes:
    """HDF5 behind MATLAB's header, its content made by `fill`, which gets the opened file."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=512) as file:
        fill(file)
    data = bytearray(buffer.getvalue())
    data[:128] = b"MATLAB 7.3 MAT-file, Platform: PCWIN64".ljust(116) + b"\0" * 8 + b"\0\2IM"
    return bytes(data)


def figshare_file(
    image: np.ndarray[Any, Any], *, label: int, patient: str, mask: np.ndarray[Any, Any] | None = None
) -> bytes:
    """One image ``(H, W)`` with what the set stores of it; arrays lie column by column, as MATLAB has them."""

    def fill(file: Any) -> None:
        group = file.create_group("cjdata")
        group["PID"] = np.array([[ord(char)] for char in patient], np.uint16)
        group.create_dataset("image", data=np.asarray(image, np.int16).T, compression="gzip", shuffle=True)
        group["label"] = np.array([[float(label)]])
        group["tumorBorder"] = np.zeros((1, 20))
        if mask is not None:
            group["tumorMask"] = mask.T.astype(np.uint8)

    return matlab_file(fill)


def made_slice(number: int, label: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """An image of 12 bits ``(60, 48)`` and the mask of the bright disk in it, whose size goes with the class."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:60, :48]
    coarse = rng.normal(600, 250, (10, 8)).repeat(6, axis=0).repeat(6, axis=1)
    image = np.clip(coarse + rng.normal(0, 40, (60, 48)), 0, None)
    mask = np.hypot(rows - rng.integers(15, 45), columns - rng.integers(12, 36)) < 4 + 2 * label
    image[mask] += 1500
    return image.astype(np.int16), mask


def figshare_zip(path: Path, per_class: int = 8) -> Path:
    """The set as it is delivered: zips of MATLAB files in a zip, with a file of folds and a text beside them."""
    numbers = range(1, 3 * per_class + 1)
    parts: dict[str, bytes] = {}
    for number in numbers:
        label = 1 + (number - 1) // per_class
        image, mask = made_slice(number, label)
        patient = PATIENTS[(number - 1) * 2 // per_class]
        parts[f"{number}.mat"] = figshare_file(image, label=label, patient=patient, mask=mask)
    folds = matlab_file(lambda file: file.create_dataset("cvind", data=np.ones((1, len(numbers)))))
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr("README.txt", "text")
        outer.writestr("cvind.mat", folds)
        for part in (numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]):
            inner = io.BytesIO()
            with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as packed:
                for number in part:
                    packed.writestr(f"{number}.mat", parts[f"{number}.mat"])
            outer.writestr(f"brainTumorDataPublic_{part[0]}-{part[-1]}.zip", inner.getvalue())
    return path
