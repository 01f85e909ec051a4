"""Interruptions that arrive between steps, never inside one."""

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
    """Hold SIGINT and SIGTERM back until the block ends, so that what it does is whole or not begun."""
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
    """Turn SIGTERM into SystemExit(143) inside the block where it would otherwise end the process at once.

    A handler that somebody has set, Dagster's for one, is left alone: it raises already.
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
