"""Signals: interruptions are held back until a step is complete."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_TERMINATED = 128 + signal.SIGTERM


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the block ends, so that they never interrupt it halfway.

    Outside the main thread it does nothing: Python delivers signals to the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []
    try:
        with signals_noted(noted.append):
            yield
    finally:
        for held in noted:
            os.kill(os.getpid(), held)


@contextlib.contextmanager
def signals_noted(note: Callable[[int], object]) -> Iterator[None]:
    """Pass SIGINT and SIGTERM to `note` inside the block instead of acting on them; in the main thread only."""
    ends = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: note(number)) for number in ends}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def termination_raises() -> Iterator[None]:
    """Turn SIGTERM into SystemExit(143) inside the block, so that the process cleans up before it ends.

    A handler that is already set, such as Dagster's, stays: it raises an exception, too.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def leave(_: int, __: FrameType | None) -> None:
        raise SystemExit(_TERMINATED)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
