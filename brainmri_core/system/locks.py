"""Lock files. The kernel releases the lock however its process ends; the file names who took it last."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from brainmri_core.errors import BusyError
from brainmri_core.escaping import printable
from brainmri_core.system.storage import make_dirs, storage_error

# Another process holds a lock for an instant while it checks whether it is free: only a lock held for longer is busy.
_TRIES = 10
_LONGEST_OWNER = 300


@contextlib.contextmanager
def exclusive(path: Path, *, wait: bool = True, busy: str = "another run holds it") -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel releases it however the process ends.

    The file names the process and machine that hold the lock and since when. A `BusyError` repeats that.

    Parameters
    ----------
    path : pathlib.Path
        Lock file; it and its folder are made if need be.
    wait : bool
        Wait until the lock is free; otherwise a held lock is an error.
    busy : str
        What the error says of a held lock.

    Raises
    ------
    BusyError
        If `wait` is False and another process holds the lock, for longer than a mere check takes.
    StorageError
        If the file cannot be locked, or an operating-system error leaves the block.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(_locked(path, wait, busy))
        except OSError as error:
            raise storage_error(error, path, "lock") from error
        try:
            yield
        except OSError as error:
            named = error.filename if isinstance(error.filename, str | os.PathLike) else path
            raise storage_error(error, Path(named), "use") from error


def _locked(path: Path, wait: bool, busy: str) -> FileIO:
    """Open a lock file and lock it; closing it unlocks it."""
    make_dirs(path.parent)
    tries = 0
    while True:
        handle = path.open("a+b", buffering=0)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.fstat(handle.fileno()).st_nlink:  # else it was removed meanwhile: lock its successor
                _sign(handle)
                return handle
            handle.close()
        except BlockingIOError:
            handle.seek(0)
            owner = printable(handle.read(_LONGEST_OWNER).decode(errors="replace").strip())
            handle.close()
            if (tries := tries + 1) < _TRIES:
                time.sleep(0.01)
                continue
            raise BusyError(
                f"Cannot lock {path}: {busy}{f' ({owner})' if owner else ''}; wait for it to end and run again."
            ) from None
        except BaseException:
            handle.close()
            raise


def signature() -> str:
    """Return what a lock says of its owner: this process, this machine and the time."""
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return f"process {os.getpid()} on {platform.node()} since {since}"


def _sign(handle: FileIO) -> None:
    with contextlib.suppress(OSError):  # on a full disk, commands that free space need their locks
        handle.truncate(0)
        handle.write(f"{signature()}\n".encode())
