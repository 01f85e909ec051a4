from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import finished_project
from tests.faults.warm import Warm
from tests.once import once


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """A process that has imported and used everything once."""
    started = Warm()
    yield started
    started.close()


@pytest.fixture(scope="session")
def _prepared(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    finished = finished_project(tmp_path_factory)

    def make(folder: Path) -> None:
        found = warm.call("tests.faults.trials:prepare", str(finished), str(folder))
        (folder / "found.json").write_text(json.dumps(found))

    folder = once(tmp_path_factory, "prepared", make)
    return str(folder), json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="session")
def prepared(_prepared: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, list[str]]]:
    """A folder with a project for each stage to be disturbed in, and the content hashes allowed in it."""
    return _prepared[0], {stage: hashes for stage, (_, hashes) in _prepared[1].items()}


@pytest.fixture(scope="session")
def operations(_prepared: tuple[str, dict[str, Any]]) -> dict[str, int]:
    """How many file operations each stage takes there."""
    return {stage: total for stage, (total, _) in _prepared[1].items()}
