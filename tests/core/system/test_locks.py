from __future__ import annotations

import os
import platform
import resource
import signal
from pathlib import Path

import pytest

from brainmri_core.errors import BusyError, StorageError
from brainmri_core.system.locks import exclusive


def test_a_lock_held_by_another_process_is_refused_at_once_with_its_owner(tmp_path: Path) -> None:
    lock = tmp_path / "l"
    with exclusive(lock):
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            try:
                with exclusive(lock, wait=False):
                    os.write(write, b"got it")
            except BusyError as error:
                os.write(write, str(error).encode())
            os._exit(0)
        os.waitpid(child, 0)
        message = os.read(read, 1000).decode()
    assert f"another run holds it (process {os.getpid()} on {platform.node()} since 2" in message, message


def test_an_error_under_a_lock_is_no_error_of_the_lock(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"Cannot use .*gone"), exclusive(tmp_path / "l"):
        (tmp_path / "gone").read_bytes()


def test_a_full_disk_keeps_nobody_from_a_lock(tmp_path: Path) -> None:
    """What clears a disk needs locks, too; that their file cannot say who holds them is no reason to end."""
    (tmp_path / "l").write_bytes(b"process 1 on another since then")
    if (child := os.fork()) == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
            with exclusive(tmp_path / "l"):
                pass
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_lock_file_removed_while_it_was_waited_for_is_locked_anew(tmp_path: Path) -> None:
    lock = tmp_path / "l"
    with exclusive(lock):
        lock.unlink()
        with exclusive(lock, wait=False):
            assert lock.exists()
