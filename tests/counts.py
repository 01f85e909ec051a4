"""How much each test tries and how long it waits: few trials in ``make test``, many in ``make test-all``."""

from __future__ import annotations

import os
from typing import Any, TypeVar

import pytest

# Shorter than the time limit of a test (pyproject.toml), so that a wait which fails can say what it waited for.
PATIENCE_S = 300.0
LONG = bool(os.environ.get("BRAINMRI_LONG_TESTS"))
T = TypeVar("T")


def trials(few: T, many: T) -> T:
    """Return the value for this session."""
    return many if LONG else few


def rest(*values: Any) -> list[Any]:
    """Return values of a parameter, or tuples of values, marked `full`: more of a kind, which ``make test`` leaves out."""
    return [_marked(value, pytest.mark.full) for value in values]


def long(*values: Any) -> list[Any]:
    """Return the same marked `slow` as well: ``make test-rest`` leaves them out, too."""
    return [_marked(value, pytest.mark.full, pytest.mark.slow) for value in values]


def _marked(value: Any, *marks: pytest.MarkDecorator) -> Any:
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=marks)
