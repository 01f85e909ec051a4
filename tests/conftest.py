from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import ARCHIVES_VARIABLE, ROOT_VARIABLE, Layout
from brainmri_core.project.logs import Record, StageLog
from tests.counts import LONG
from tests.once import once

REAL = "sartajbhuvaji/brain-tumor-classification-mri"
# A test must not fail because the machine is busy.
settings.register_profile("brainmri", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("brainmri")
# Beside each other, the folders whose files take longest come first, so that no worker is left with one at the end.
FOLDERS = ("e2e", "faults", "dagster")
_ARCHIVES = os.environ.get(ARCHIVES_VARIABLE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the long tests to ``make test-all``; begin with what takes long."""
    for item in items:
        if not LONG and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="a long test: make test-all runs it"))
    if os.environ.get("PYTEST_XDIST_WORKER"):
        items.sort(key=lambda item: [item.path.parent.name != name for name in FOLDERS])


def pytest_configure() -> None:
    """Let SIGINT reach the programs that tests start: a shell's background jobs inherit that it is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_outside_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ROOT_VARIABLE, ARCHIVES_VARIABLE, "BRAINMRI_CONFIG", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def real_archive() -> Path:
    """The real Kaggle archive; tests that need it are skipped where it is absent."""
    path = Path(_ARCHIVES or "/nonexistent") / "brain-tumor-classification-mri.zip"
    if not path.is_file():
        pytest.skip(
            f"the real data set is absent: set {ARCHIVES_VARIABLE} to the folder that holds {path.name}"
        )
    return path


@pytest.fixture
def records() -> list[Record]:
    """What the job's stages logged."""
    return []


@pytest.fixture
def job(tmp_path: Path, records: list[Record]) -> Iterator[Job]:
    """A job on the phantom data set in an empty project."""
    entry = load_catalogue()["brainmri/phantom"]
    log = StageLog("test", "r1", entry.key, [records.append], "DEBUG")
    yield Job(layout=Layout(root=tmp_path / "project"), run_id="r1", entry=entry, log=log)


@pytest.fixture
def finished(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A copy of a project in which all six stages have run."""
    from tests.faults.tiny import run_all

    made = once(tmp_path_factory, "finished", lambda folder: run_all(folder / "project", "old", "old"))
    return Layout(root=shutil.copytree(made / "project", tmp_path / "project"))
