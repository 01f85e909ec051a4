"""How often a test tries: few times in ``make test``, many in ``make test-all``. No other file decides that."""

from __future__ import annotations

import os
from typing import TypeVar

LONG = bool(os.environ.get("BRAINMRI_LONG_TESTS"))
T = TypeVar("T")


def trials(few: T, many: T) -> T:
    """Return what holds for this session."""
    return many if LONG else few
