"""Several files in one piece of memory, one after the other."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

_FIXED = 0x10  # MAP_FIXED, on Linux and macOS


def map_files(files: Sequence[Path], sizes: Sequence[int]) -> mmap.mmap:
    """Map files one after the other into memory, copy-on-write: what is written there does not reach the files.

    Parameters
    ----------
    files : sequence of pathlib.Path
        The files; the size of each but the last is a multiple of the memory's page size.
    sizes : sequence of int
        Their sizes in bytes.

    Raises
    ------
    OSError
        If a file cannot be opened or mapped.
    """
    whole = mmap.mmap(-1, sum(sizes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    place = ctypes.addressof(ctypes.c_char.from_buffer(whole))
    system = ctypes.CDLL(None, use_errno=True)
    system.mmap.restype = ctypes.c_void_p
    system.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    for file, size in zip(files, sizes, strict=True):
        with file.open("rb") as handle:
            protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _FIXED
            if system.mmap(place, size, protection, flags, handle.fileno(), 0) != place:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), str(file))
        place += size
    return whole
