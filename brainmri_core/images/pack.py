"""The pack: all images of a data set in one uint8 array on disk, read through a memory map.

It is one NumPy file, or that file cut into several, of which all but the last have the same size: their contents one after
the other are the same bytes, with the same hash, however they are cut.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from brainmri_core.arrays import U8
from brainmri_core.errors import IntegrityError
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointers import PackPointer
from brainmri_core.system.checksums import sha256_files
from brainmri_core.system.memory import map_files
from brainmri_core.system.storage import storage_error


def write_pack(
    path: Path, images: Iterable[U8], *, most: int, size: int, channels: int, shard_bytes: int = 0
) -> str:
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
    shard_bytes : int
        Most bytes in a file, a multiple of the memory's page size; what is above goes to further files beside it. 0 keeps
        the pack in one.

    Returns
    -------
    str
        SHA-256 of the file, or of the contents of all files.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    rows = 0
    shape = (size, size) if channels == 1 else (size, size, channels)
    try:
        with _Writer(path, shard_bytes) as file:
            file.write(memoryview(_header(most, shape)))
            for image in images:
                assert image.shape == shape and image.dtype == np.uint8, (image.shape, image.dtype)
                file.write(np.ascontiguousarray(image).data.cast("B"))
                rows += 1
        if rows == most:
            return file.digest.hexdigest()
        with path.open("r+b") as first:
            first.write(_header(rows, shape))
    except OSError as error:
        raise storage_error(error, path) from error
    return sha256_files(_cut(path, file.written, shard_bytes))


class _Writer:
    """Writes bytes into a file, and into a further one whenever it is full."""

    def __init__(self, path: Path, shard_bytes: int) -> None:
        self._path, self._most = path, shard_bytes
        self._file = path.open("wb")
        self.written, self.digest = 0, hashlib.sha256()

    def write(self, data: memoryview) -> None:
        """Write bytes."""
        self.digest.update(data)
        while data:
            room = self._most - self.written % self._most if self._most else len(data)
            if self._most and self.written and room == self._most:
                self._file.close()
                self._file = _part(self._path, self.written // self._most).open("wb")
            self._file.write(data[:room])
            self.written += len(data[:room])
            data = data[room:]

    def __enter__(self) -> _Writer:
        """Return the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the last file."""
        self._file.close()


def _part(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}") if number else path


def _cut(path: Path, total: int, shard_bytes: int) -> list[Path]:
    """Return the files of a pack of so many bytes."""
    count = -(-total // shard_bytes) if shard_bytes else 1
    return [_part(path, number) for number in range(count)]


def _header(n: int, shape: tuple[int, ...]) -> bytes:
    """Return the header of a NumPy file of n images; its length does not depend on n."""
    head = io.BytesIO()
    array = {"descr": "|u1", "fortran_order": False, "shape": (n, *shape)}
    np.lib.format.write_array_header_1_0(head, array)
    return head.getvalue()


def is_cut(path: Path) -> bool:
    """Say whether a pack is several files."""
    return _part(path, 1).is_file()


def pack_shape(pointer: PackPointer) -> tuple[int, ...]:
    """Return the recorded shape, ``(N, H, W)`` or ``(N, H, W, 3)``."""
    shape = (pointer.n_images, pointer.size, pointer.size)
    return (*shape, pointer.channels) if pointer.channels > 1 else shape


def pack_sha256(layout: Layout, pointer: PackPointer) -> str:
    """Return the SHA-256 that a pack has now.

    Raises
    ------
    IntegrityError
        If a file of it is missing.
    StorageError
        If it cannot be read.
    """
    files = _files(layout.absolute(pointer.pack), pointer)
    for file in files:
        if not file.is_file():
            raise IntegrityError(f"The pack {file} is missing; run resize again.")
    return sha256_files(files)


def check_pack(layout: Layout, pointer: PackPointer) -> None:
    """Check that a pack is the one that was recorded.

    Raises
    ------
    IntegrityError
        If it is missing or was changed.
    StorageError
        If it cannot be read.
    """
    if pack_sha256(layout, pointer) != pointer.pack_sha256:
        raise IntegrityError(
            f"The pack {layout.absolute(pointer.pack)} was changed after it was recorded; run resize again."
        )


def _files(path: Path, pointer: PackPointer) -> list[Path]:
    return _cut(path, _total(pack_shape(pointer)), pointer.shard_bytes)


def _total(shape: tuple[int, ...]) -> int:
    return len(_header(shape[0], shape[1:])) + math.prod(shape)


def open_pack(layout: Layout, pointer: PackPointer) -> U8:
    """Open a pack for reading.

    Returns
    -------
    numpy.ndarray
        Read-only memory map, uint8, ``(N, H, W)`` or ``(N, H, W, 3)``, also where the pack is several files.

    Raises
    ------
    IntegrityError
        If a file is missing or the shape is not the recorded one.
    StorageError
        If the operating system refuses to read it, or there is no memory for it.
    """
    path, expected = layout.absolute(pointer.pack), pack_shape(pointer)
    try:
        pack = read_pack(path, expected, pointer.shard_bytes)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise IntegrityError(f"The pack {error.filename or path} is missing; run resize again.") from None
        raise storage_error(error, path, "read") from error
    except (ValueError, EOFError) as error:
        raise IntegrityError(f"The pack {path} cannot be opened ({error}); run resize again.") from None
    if pack.dtype != np.uint8 or pack.shape != expected:
        raise IntegrityError(
            f"The pack {path} holds {pack.dtype} {pack.shape} but {expected} uint8 was recorded; run resize again."
        )
    result: U8 = pack
    return result


def read_pack(path: Path, shape: tuple[int, ...], shard_bytes: int) -> U8:
    """Map the files of a pack into memory, one after the other, as one array.

    Raises
    ------
    OSError
        If a file is missing or cannot be mapped.
    ValueError
        If a file is no NumPy file, or has another size than the shape asks for.
    """
    files = _cut(path, _total(shape), shard_bytes)
    if len(files) == 1:
        one: U8 = np.load(path, mmap_mode="r", allow_pickle=False)
        return one
    sizes = [file.stat().st_size for file in files]
    total = _total(shape)
    if sizes != [shard_bytes] * (len(files) - 1) + [total - shard_bytes * (len(files) - 1)]:
        raise ValueError(f"its {len(files)} files have {sizes} bytes")
    start = len(_header(shape[0], shape[1:]))
    with path.open("rb") as first:
        if first.read(start) != _header(shape[0], shape[1:]):
            raise ValueError("its header is not that of its shape")
    pack: U8 = np.frombuffer(map_files(files, sizes), np.uint8, offset=start).reshape(shape)
    pack.flags.writeable = False
    return pack
