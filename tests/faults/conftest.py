from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.warm import Warm


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """A process that has imported and used everything once."""
    started = Warm()
    yield started
    started.close()


@pytest.fixture(scope="session")
def prepared(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, list[str]]]:
    folder = str(tmp_path_factory.mktemp("crash"))
    return folder, warm.call("tests.faults.trials:prepare", folder)
