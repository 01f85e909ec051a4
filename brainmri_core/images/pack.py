"""The pack: all images of a data set in one uint8 array on disk, read through a memory map."""

from __future__ import annotations

import errno
import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from brainmri_core.arrays import U8
from brainmri_core.errors import IntegrityError
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointers import PackPointer
from brainmri_core.system.checksums import sha256_file
from brainmri_core.system.storage import storage_error


def write_pack(path: Path, images: Iterable[U8], *, most: int, size: int, channels: int) -> str:
    """Write images one after the other into a new pack file.

    Parameters
    ----------
    path : pathlib.Path
        The file; its folder must exist.
    images : iterable of numpy.ndarray
        uint8, each ``(size, size)`` for one channel or ``(size, size, channels)``.
    most : int
        Upper limit of their number. Where there are fewer, the file's header changes, and the file is hashed again.
    size, channels : int
        Shape of the images.

    Returns
    -------
    str
        SHA-256 of the file.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    rows = 0
    shape = (size, size) if channels == 1 else (size, size, channels)
    try:
        with path.open("wb") as file:
            head = _header(most, shape)
            digest = hashlib.sha256(head)
            file.write(head)
            for image in images:
                assert image.shape == shape and image.dtype == np.uint8, (image.shape, image.dtype)
                pixels = np.ascontiguousarray(image).data
                file.write(pixels)
                digest.update(pixels)
                rows += 1
            if rows < most:
                file.seek(0)
                file.write(_header(rows, shape))
    except OSError as error:
        raise storage_error(error, path) from error
    return digest.hexdigest() if rows == most else sha256_file(path)


def _header(n: int, shape: tuple[int, ...]) -> bytes:
    """Return the header of a NumPy file of n images; its length does not depend on n."""
    head = io.BytesIO()
    array = {"descr": "|u1", "fortran_order": False, "shape": (n, *shape)}
    np.lib.format.write_array_header_1_0(head, array)
    return head.getvalue()


def open_pack(layout: Layout, pointer: PackPointer) -> U8:
    """Open a pack for reading.

    Returns
    -------
    numpy.ndarray
        Read-only memory map, uint8, ``(N, H, W)`` or ``(N, H, W, 3)``.

    Raises
    ------
    IntegrityError
        If the file is missing or its shape is not the recorded one.
    StorageError
        If the operating system refuses to read it, or there is no memory for it.
    """
    path = layout.absolute(pointer.pack)
    expected = (pointer.n_images, pointer.size, pointer.size) + (
        (pointer.channels,) if pointer.channels > 1 else ()
    )
    try:
        pack = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise IntegrityError(f"The pack {path} is missing; run resize again.") from None
        raise storage_error(error, path, "read") from error
    except (ValueError, EOFError) as error:
        raise IntegrityError(f"The pack {path} cannot be opened ({error}); run resize again.") from None
    if pack.dtype != np.uint8 or pack.shape != expected:
        raise IntegrityError(
            f"The pack {path} holds {pack.dtype} {pack.shape} but {expected} uint8 was recorded; run resize again."
        )
    result: U8 = pack
    return result
