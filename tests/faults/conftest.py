from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.warm import Warm
from tests.once import once


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """A process that has imported and used everything once."""
    started = Warm()
    yield started
    started.close()


@pytest.fixture(scope="session")
def prepared(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, list[str]]]:
    """A folder with a project for each stage to be disturbed in, and the content hashes allowed in it."""

    def make(folder: Path) -> None:
        hashes = warm.call("tests.faults.trials:prepare", str(folder))
        (folder / "hashes.json").write_text(json.dumps(hashes))

    folder = once(tmp_path_factory, "prepared", make)
    return str(folder), json.loads((folder / "hashes.json").read_text())
