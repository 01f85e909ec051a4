from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from brainmri_core.config.data import FetchConfig
from brainmri_core.fetch import fetch
from brainmri_core.project.catalogue import DatasetEntry
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import Record, StageLog
from brainmri_core.project.pointers import FetchPointer
from tests.core.fetch_case import OFFICIAL, make_tree, make_zip
from tests.counts import PATIENCE_S
from tests.faults.tiny import configuration, run_stage
from tests.kaggle_server import DATASET, SETTINGS, Fault, KaggleServer, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KaggleServer]:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    archive = make_zip(make_tree(tmp_path / "tree", OFFICIAL), tmp_path / "official.zip")
    with serving({2: archive.read_bytes()}) as state:
        for name, value in state.settings().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield state


@dataclass
class Fetching:
    """A machine that fetches a data set from Kaggle in a thread."""

    url: str
    cache: Path
    log: list[Record] = field(default_factory=list)
    waits: threading.Event = field(default_factory=threading.Event)
    result: list[FetchPointer] = field(default_factory=list)

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self._fetch)
        thread.start()
        return thread

    def _fetch(self) -> None:
        layout = Layout.at(self.url, str(self.cache))
        entry = DatasetEntry(key=DATASET, source="kaggle")
        log = StageLog("fetch", self.cache.name, DATASET, [self._note])
        self.result.append(fetch(FetchConfig(), Job(layout, self.cache.name, entry, log)))

    def _note(self, record: Record) -> None:
        self.log.append(record)
        if "waiting for it" in record["event"]:
            self.waits.set()


def test_of_two_machines_that_fetch_at_once_one_downloads(
    store_url: str, server: KaggleServer, tmp_path: Path
) -> None:
    first, second = Fetching(store_url, tmp_path / "first"), Fetching(store_url, tmp_path / "second")
    asked = threading.Event()

    def until_the_second_waits() -> None:
        asked.set()
        second.waits.wait(60)

    server.fail("storage", Fault(before=until_the_second_waits))
    threads = [first.start()]
    assert asked.wait(60)
    threads.append(second.start())
    for thread in threads:
        thread.join(PATIENCE_S)
    assert second.waits.is_set() and len(server.asked("storage")) == 1
    (one,), (other,) = first.result, second.result
    assert (one.run_id, other.run_id) == ("first", "second")
    assert one.content_hash == other.content_hash and one.archive_sha256 == other.archive_sha256
    assert (other.version, other.licence, other.n_images) == (2, "CC0: Public Domain", len(OFFICIAL))
    root = Layout.at(store_url, str(tmp_path / "second")).absolute(other.dataset_root)
    assert root.is_relative_to(tmp_path / "second")
    assert len([path for path in root.rglob("*") if path.is_file()]) == len(OFFICIAL)


@pytest.mark.training
@pytest.mark.full
def test_a_machine_with_a_part_of_a_data_set_fetches_the_rest(store_url: str, tmp_path: Path) -> None:
    config = configuration("old")
    made = run_stage(tmp_path / "a", "fetch", "a-fetch", config, store_url)
    run_stage(tmp_path / "b", "split", "b-split", config, store_url)
    again = run_stage(tmp_path / "b", "fetch", "b-fetch", config, store_url)
    assert again.content_hash == made.content_hash
