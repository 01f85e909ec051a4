"""The numbered operations of the object store's client, at one of which something happens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("get", "put", "head", "list", "copy", "delete")


class Operations:
    """Counts the operations of this process, and calls `action` before or after the one with the number `at`."""

    def __init__(self, at: int = 0, action: Callable[[], object] = lambda: None, *, after: bool = False):
        self.count, self._at, self._action, self._after = 0, at, action, after
        self._lock = threading.Lock()

    def wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """Return the counted form of an operation."""

        def call(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                self.count += 1
                is_it = self.count == self._at
            if is_it and not self._after:
                self._action()
            answer = real(*arguments, **options)
            if is_it and self._after:
                self._action()
            return answer

        return call


@contextmanager
def counted(operations: Operations) -> Iterator[None]:
    """Count within a ``with`` block."""
    import obstore

    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.setattr(obstore, name, operations.wrap(getattr(obstore, name)))
        yield
