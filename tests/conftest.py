from __future__ import annotations

import os
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import ARCHIVES_VARIABLE, ROOT_VARIABLE, Layout
from brainmri_core.project.logs import Record, StageLog
from brainmri_core.system.object_store import PATIENCE_VARIABLE
from tests.counts import LONG
from tests.object_store import BUCKET, OWNER, Proxy, StoreServer, environment, running_proxy, running_store
from tests.once import once

REAL = "sartajbhuvaji/brain-tumor-classification-mri"
# No deadline: a test must not fail because the machine is busy.
settings.register_profile("brainmri", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("brainmri")
# Tests that stay on one worker, because they share a warm process, a server, a browser or what takes seconds to build; every other
# file is a part of its own.
PARTS = {
    **({} if LONG else {"tests/faults/": "the warm process"}),
    "tests/core/system/test_object_store.py": "the object store",
    "tests/core/system/test_store.py": "the object store",
    "tests/core/system/test_shared_file.py": "the object store",
    "tests/core/learning/test_shared_state.py": "the object store",
    "tests/core/project/test_run_sharing.py": "the object store",
    "tests/core/project/test_shared_project.py": "the object store",
    "tests/core/project/test_bucket_gc.py": "the object store",
    "tests/core/project/test_work_locks.py": "the object store",
    "tests/core/studies/test_bucket_journal.py": "the object store",
    "tests/core/system/test_leases.py": "the object store",
    "tests/core/learning/test_weights": "all architectures",
    "tests/e2e/test_app.py": "the browser",
    "tests/e2e/test_ui.py": "the browser",
}
# With many trials each function of these is a part of its own: a warm process for each worker costs less than waiting.
BY_FUNCTION = ("tests/faults/",) if LONG else ()
# These start first, in this order, so that no worker is left with a long part at the end.
FIRST = (
    *("tests/deploy/test_celery.py", "tests/e2e/test_docs.py", "tests/e2e/test_daemon.py", "tests/faults/"),
    *("tests/deploy/", "tests/dagster/test_on_a_bucket.py", "tests/e2e/test_app.py"),
    *("tests/e2e/test_ui.py", "tests/e2e/test_wheel.py", "tests/security/", "tests/e2e/"),
    *("tests/dagster/training/", "tests/core/test_train.py", "tests/dagster/", "tests/core/learning/"),
)
_ARCHIVES = os.environ.get(ARCHIVES_VARIABLE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the long tests unless ``make test-all`` runs; start with the files that take longest."""
    for item in items:
        if "object_store" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.e2e)
        if not LONG and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="a long test: make test-all runs it"))
    if os.environ.get("PYTEST_XDIST_WORKER"):
        items.sort(key=lambda item: [not item.nodeid.startswith(start) for start in FIRST])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give the workers whole parts, the long ones first."""
    from xdist.scheduler import LoadScopeScheduling

    class Parts(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if nodeid.startswith(BY_FUNCTION):
                return nodeid.partition("[")[0]
            return next((part for start, part in PARTS.items() if file.startswith(start)), file)

    config.option.loadscopereorder = False
    return Parts(config, log)


def pytest_configure() -> None:
    """Let SIGINT reach the programs that tests start: background jobs of a shell inherit that it is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each sleep that this process asks for; it sleeps as long as it asked."""
    asked: list[float] = []
    sleep = time.sleep

    def noted(seconds: float) -> None:
        asked.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", noted)
    monkeypatch.setattr("kombu.utils.functional.sleep", noted)
    return asked


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


def finished_project(factory: pytest.TempPathFactory) -> Path:
    """Return a project in which all six stages have run, to be copied."""
    from tests.faults.tiny import run_all

    return once(factory, "finished", lambda folder: run_all(folder / "project", "old", "old")) / "project"


@pytest.fixture(scope="session")
def object_store() -> Iterator[StoreServer]:
    """A real object store on loopback, the same for the whole session."""
    with running_store() as server:
        yield server


@pytest.fixture
def store_url(object_store: StoreServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place in the object store, which the environment leads to."""
    for name in OWNER | environment(0):
        monkeypatch.delenv(name, raising=False)
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def proxy(object_store: StoreServer, store_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that can do harm between this process and the object store."""
    with running_proxy(object_store.port) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{running.port}")
        monkeypatch.setenv(PATIENCE_VARIABLE, "20")
        yield running


@pytest.fixture
def finished(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A copy of a project in which all six stages have run."""
    return Layout(root=shutil.copytree(finished_project(tmp_path_factory), tmp_path / "project"))
