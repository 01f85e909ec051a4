"""The journal of a study in a file, which any number of processes can use at the same time.

Optuna's own file locks remain when their process is killed, and all others then wait; so the journal is locked by the kernel.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from brainmri_core.system.locks import exclusive
from brainmri_core.system.storage import storage_error


class _KernelLock(JournalFileOpenLock):
    """Lock of a journal that a dead process cannot keep; an incomplete line that it left at the end is removed."""

    def __init__(self, lock: Path, journal: Path) -> None:
        self._lock, self._journal = lock, journal
        self._held = contextlib.ExitStack()

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._held.enter_context(exclusive(self._lock))
        _cut_half_line(self._journal)
        return True

    def release(self) -> None:
        """Release the lock."""
        self._held.close()


class FileJournal(JournalFileBackend):
    """The journal, with this package's errors for failed writes.

    Parameters
    ----------
    path, lock : pathlib.Path
        The journal, and the file that is locked while it is written.
    """

    def __init__(self, path: Path, lock: Path) -> None:
        super().__init__(str(path), lock_obj=_KernelLock(lock, path))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations, one per line."""
        try:
            super().append_logs(logs)
        except OSError as error:
            raise storage_error(error, Path(self._file_path)) from error


def _cut_half_line(path: Path) -> None:
    with path.open("r+b") as handle:
        size = handle.seek(0, os.SEEK_END)
        if not size:
            return
        handle.seek(size - 1)
        if handle.read(1) != b"\n":
            handle.seek(0)
            handle.truncate(handle.read().rfind(b"\n") + 1)
