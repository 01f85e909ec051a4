"""The number of processors, and pools of threads."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from brainmri_core.errors import StorageError

# A stack is 8 MiB; the rest is for what a thread allocates before its first line runs.
_THREAD_BYTES = 32 << 20
_LOOK_S = 0.5
T = TypeVar("T")


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads; on an error or interruption, tasks that have not started are cancelled.

    Raises
    ------
    StorageError
        If there is no memory for the threads. Without this check, Python would wait for ever for a thread that fails to
        allocate memory before its first line.
    """
    try:
        mmap.mmap(-1, workers * _THREAD_BYTES).close()
    except OSError:
        raise StorageError(
            f"There is no memory for {workers} threads; free memory, or raise the limit of this process, and run again."
        ) from None
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def outcome(future: Future[T]) -> T:
    """Wait for the result of work in another thread, and end at a signal such as Ctrl-C at once.

    `Future.result` may miss a signal: Python looks for one before it waits for a lock, and a signal that comes in between
    is noticed only when the wait ends. So the wait is made of short ones.
    """
    while not wait([future], _LOOK_S).done:
        pass
    return future.result()
