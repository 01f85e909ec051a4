"""Results of pieces of work: files of arrays named after their content, in a folder that all workers see."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from brainmri_core.errors import IntegrityError
from brainmri_core.system.storage import as_storage_errors, write_by_content

Arrays = dict[str, npt.NDArray[Any]]


def write_arrays(folder: Path, number: int, arrays: Arrays) -> str:
    """Write arrays into one file and return its name: the number, and the SHA-256 of its content.

    Parameters
    ----------
    folder : pathlib.Path
        Folder of the file; it must exist.
    number : int
        Number of the piece of work, so that two pieces with the same result do not share a file.
    arrays : dict
        Name to array; arrays of Python objects are not allowed.

    Raises
    ------
    StorageError
        If it cannot be written.
    """

    def fill(file: BinaryIO) -> None:
        for array in (np.array(list(arrays)), *arrays.values()):
            np.save(file, array, allow_pickle=False)

    return write_by_content(folder, f"{number}-", fill)


def take_arrays(folder: Path, name: str) -> Arrays:
    """Read a file of arrays and remove it.

    Parameters
    ----------
    folder : pathlib.Path
        Folder of the file.
    name : str
        Its name, from `write_arrays`.

    Returns
    -------
    dict
        Name to array.

    Raises
    ------
    IntegrityError
        If its content does not have the SHA-256 in its name.
    StorageError
        If it cannot be read or removed.
    """
    path = folder / name
    with as_storage_errors(path, "read"), path.open("rb") as file:
        path.unlink()
        if hashlib.file_digest(file, "sha256").hexdigest() != name.partition("-")[2]:
            raise IntegrityError(f"The file {path} was changed after a Dask worker wrote it; run again.")
        file.seek(0)
        return {key: np.load(file, allow_pickle=False) for key in np.load(file, allow_pickle=False).tolist()}
