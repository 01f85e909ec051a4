"""Projects that the whole session shares: the first process that asks makes one, and every test copies it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from brainmri_core.system.locks import exclusive


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder that `make` filled once in this session; copy it before changing anything."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # the workers' folders lie beside each other
    folder = base / name
    with exclusive(base / f"{name}.lock"):
        if not folder.exists():
            begun = base / f"{name}-begun"
            shutil.rmtree(begun, ignore_errors=True)
            begun.mkdir()
            make(begun)
            begun.rename(folder)
    return folder
