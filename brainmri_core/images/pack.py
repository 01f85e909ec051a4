"""The pack: all images of a data set in one uint8 array on disk, read through a memory map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brainmri_core.errors import IntegrityError
from brainmri_core.layout import Layout
from brainmri_core.pointers import PackPointer
from brainmri_core.storage import reserve

U8 = npt.NDArray[np.uint8]
Pack = np.memmap[Any, np.dtype[np.uint8]]


def create_pack(path: Path, n: int, size: int, channels: int) -> Pack:
    """Create an empty pack file.

    Returns
    -------
    numpy.ndarray
        Writable memory map, uint8, ``(n, size, size)`` for one channel or ``(n, size, size, 3)``.

    Raises
    ------
    StorageError
        If there is no room for it.
    """
    shape = (n, size, size) if channels == 1 else (n, size, size, channels)
    pack: Pack = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    reserve(path)
    return pack


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
    """
    path = layout.absolute(pointer.pack)
    expected = (pointer.n_images, pointer.size, pointer.size) + (
        (pointer.channels,) if pointer.channels > 1 else ()
    )
    try:
        pack = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise IntegrityError(f"The pack {path} cannot be opened ({error}); run resize again.") from None
    if pack.dtype != np.uint8 or pack.shape != expected:
        raise IntegrityError(
            f"The pack {path} holds {pack.dtype} {pack.shape} but {expected} uint8 was recorded; run resize again."
        )
    result: U8 = pack
    return result
