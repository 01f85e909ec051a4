"""Locks of work that is costly to do twice: a lock file on this machine, and for a project in an object store a lease."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from brainmri_core.errors import BusyError
from brainmri_core.project.layout import Layout
from brainmri_core.project.run_sharing import remote_store
from brainmri_core.system.leases import is_held, leased
from brainmri_core.system.locks import exclusive


@contextlib.contextmanager
def work_lock(
    layout: Layout,
    lock: Path,
    *,
    wait: bool = True,
    busy: str = "another run holds it",
    on_wait: Callable[[str], object] = lambda owner: None,
) -> Iterator[bool]:
    """Hold a lock on this machine and a lease among all machines that share the project.

    Parameters
    ----------
    layout : Layout
        The project.
    lock : pathlib.Path
        The lock file, from `Layout.lock`.
    wait : bool
        Wait until it is free; otherwise it is an error if another process, here or elsewhere, is at work.
    busy : str
        What the error says.
    on_wait : callable
        Called with the owner if a process on another machine is waited for.

    Yields
    ------
    bool
        Whether a process on another machine was waited for.

    Raises
    ------
    BusyError
        If `wait` is False and the work is being done.
    """
    store = remote_store(layout)
    with exclusive(lock, wait=wait, busy=busy):
        if store is None:
            yield False
            return
        with leased(store.bucket, lock.stem, wait=wait, busy=busy, on_wait=on_wait) as waited:
            yield waited


def is_at_work(layout: Layout, lock: Path) -> bool:
    """Say whether a process, here or on another machine, holds a lock. The lock of a dead one is removed.

    Only one process of this machine may ask at a time.
    """
    was_here = lock.is_file()
    try:
        with exclusive(lock, wait=False):
            lock.unlink(missing_ok=True)
    except BusyError:
        return True
    store = remote_store(layout)
    return store is not None and not was_here and is_held(store.bucket, lock.stem)
