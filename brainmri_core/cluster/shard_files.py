"""Results of pieces of work: NumPy archives named after their content, in a folder that all workers see."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brainmri_core.errors import IntegrityError
from brainmri_core.system.storage import storage_error, write_by_content

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
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return write_by_content(folder, f"{number}-", buffer.getbuffer())


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
    try:
        data = path.read_bytes()
        path.unlink()
    except OSError as error:
        raise storage_error(error, path, "read") from error
    if hashlib.sha256(data).hexdigest() != name.partition("-")[2]:
        raise IntegrityError(f"The file {path} was changed after a Dask worker wrote it; run again.")
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        return {key: found[key] for key in found.files}
