"""How much a test tries and how long it waits: little in ``make test``, much in ``make test-all``. No other file decides that."""

from __future__ import annotations

import os
from typing import Any, TypeVar

import pytest

# Less than a test may take (pyproject.toml): what did not come in this time is then named, with what came instead.
PATIENCE_S = 300.0
LONG = bool(os.environ.get("BRAINMRI_LONG_TESTS"))
T = TypeVar("T")


def trials(few: T, many: T) -> T:
    """Return what holds for this session."""
    return many if LONG else few


def rest(*values: Any) -> list[Any]:
    """Return further values of a parameter, or tuples of values, each one more of a kind: ``make test`` leaves them out."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.full)
        for value in values
    ]
