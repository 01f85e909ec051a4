from __future__ import annotations

import time
from pathlib import Path

import pytest

from brainmri_core.config import PipelineConfig
from brainmri_core.errors import IntegrityError, StorageError
from brainmri_core.project.bucket_gc import BucketGarbage, collect_in_bucket
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import latest_pointer, write_pointer
from brainmri_core.project.pointers import ValidationPointer
from brainmri_core.system import store as stores
from brainmri_core.system.store import RemoteStore
from tests.counts import trials
from tests.store_operations import Operations, counted

PLACE, PERIOD_S = "owner/slug", 4.0


@pytest.fixture(autouse=True)
def half_a_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "TRUSTED_S", PERIOD_S / 2)


def remote(layout: Layout) -> RemoteStore:
    store = layout.store
    assert isinstance(store, RemoteStore)
    return store


def laid_down(layout: Layout, run_id: str, text: str) -> ValidationPointer:
    """Lay down a result of two files on a machine, without publishing it."""
    folder = layout.validation_dir(PLACE, run_id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(text)
    (folder / "common.txt").write_text("in every result")
    return ValidationPointer(
        dataset=PLACE, run_id=run_id, content_hash=run_id, written_at_utc="", passed=True, severities={},
        report=layout.relative(folder / "report.json"), pack_pointer="",
    )  # fmt: skip


def crashed(layout: Layout, run_id: str, text: str) -> str:
    """Publish a result as a run does that dies before it writes its pointer; return the folder's name."""
    folder = layout.relative(layout.absolute(laid_down(layout, run_id, text).report).parent)
    layout.store.publish_folder(folder)
    return folder


def clear(layout: Layout, *, dry_run: bool = False) -> BucketGarbage:
    return collect_in_bucket(layout, PipelineConfig(), PERIOD_S, dry_run=dry_run)


def names(layout: Layout) -> set[str]:
    """Name the objects that have a content; where gc has moved a manifest, an empty one stays."""
    return {item.name for item in remote(layout).bucket.listed("") if item.size}


def read_elsewhere(url: str, cache: Path) -> str:
    """Read the newest result on a machine that knows nothing."""
    layout = Layout.at(url, str(cache))
    found = latest_pointer(layout, ValidationPointer, PLACE)
    assert found is not None
    report = layout.absolute(found.report)
    assert report.with_name("common.txt").read_text() == "in every result"
    return report.read_text()


def test_what_nothing_refers_to_is_moved_and_a_period_later_freed(store_url: str, tmp_path: Path) -> None:
    layout = Layout.at(store_url, str(tmp_path / "a"))
    write_pointer(layout, laid_down(layout, "good", "good"))
    write_pointer(layout, laid_down(layout, "older", "in the history only"))
    write_pointer(layout, laid_down(layout, "newest", "newest"))
    gone = crashed(layout, "crashed", "of no use")
    elsewhere = layout.root / "my models/best"
    elsewhere.mkdir(parents=True)
    (elsewhere / "best.pth").write_text("a model put elsewhere")
    layout.store.publish_folder("my models/best")
    time.sleep(PERIOD_S + 1)
    crashed(layout, "young", "at work")
    before = names(layout)

    found = clear(layout, dry_run=True)
    assert (found.results, found.contents, found.moved > 0) == ([gone], 1, True)
    assert names(layout) == before, "a dry run changes nothing"

    assert clear(layout) == found
    moved = {name for name in names(layout) if name.startswith("trash/")}
    assert before - names(layout) == {name.removeprefix("trash/") for name in moved} and len(moved) == 2
    assert (
        Layout.at(store_url, str(tmp_path / "b")).absolute(f"{gone}/report.json")
    ).read_text() == "of no use"
    assert clear(layout).freed == 0, "it is too early"
    assert read_elsewhere(store_url, tmp_path / "c") == "newest"

    time.sleep(PERIOD_S + 1)
    write_pointer(layout, laid_down(layout, "young", "at work"))  # its stage has ended
    assert clear(layout).freed > 0
    assert names(layout) >= before - {name.removeprefix("trash/") for name in moved}
    assert names(layout).isdisjoint({*moved, *(name.removeprefix("trash/") for name in moved)})
    fresh = Layout.at(store_url, str(tmp_path / "d"))
    texts = {run: (fresh.absolute(f"outputs/validation/{PLACE}/{run}/report.json")).read_text() for run in ("good", "older", "newest", "young")}  # fmt: skip
    assert texts == {"good": "good", "older": "in the history only", "newest": "newest", "young": "at work"}
    assert fresh.absolute("my models/best/best.pth").read_text() == "a model put elsewhere"


@pytest.mark.full
def test_nothing_is_removed_where_a_pointer_cannot_be_read(store_url: str, tmp_path: Path) -> None:
    layout = Layout.at(store_url, str(tmp_path / "a"))
    stored = write_pointer(layout, laid_down(layout, "good", "good"))
    crashed(layout, "crashed", "of no use")
    remote(layout).bucket.put(str(stored.pointer_path), b"{")
    time.sleep(PERIOD_S + 1)
    before = names(layout)
    with pytest.raises(IntegrityError, match="restore it or run its stage again"):
        clear(Layout.at(store_url, str(tmp_path / "b")))
    assert names(layout) == before


@pytest.mark.full
def test_a_gc_that_takes_too_long_removes_nothing_more(store_url: str, tmp_path: Path) -> None:
    layout = Layout.at(store_url, str(tmp_path / "a"))
    write_pointer(layout, laid_down(layout, "good", "good"))
    gone = crashed(layout, "crashed", "of no use")
    time.sleep(PERIOD_S + 1)
    held_up = Operations(5, lambda: time.sleep(PERIOD_S / 2 + 0.5))
    with counted(held_up), pytest.raises(StorageError, match="run gc again"):
        clear(layout)
    assert set(remote(layout).files_of(gone)) <= names(layout)


@pytest.mark.full
@pytest.mark.parametrize("again", ["another run", "the same folder"])
def test_a_result_published_while_gc_removes_the_same_content_is_kept(
    store_url: str, tmp_path: Path, again: str
) -> None:
    run_id = "crashed" if again == "the same folder" else "again"

    def left_behind(number: int) -> Layout:
        layout = Layout.at(f"{store_url}/{number}", str(tmp_path / f"{number}"))
        crashed(layout, "crashed", "wanted again")
        return layout

    counting, layout = Operations(), left_behind(0)
    with counted(counting):
        write_pointer(layout, laid_down(layout, run_id, "wanted again"))
    moments = range(1, counting.count + 1, trials(3, 1))
    places = {at: left_behind(at) for at in moments}
    time.sleep(PERIOD_S + 1)
    moved = []
    for at, layout in places.items():
        other = Layout.at(str(layout.url), str(tmp_path / f"gc-{at}"))
        with counted(Operations(at, lambda other=other: moved.append(clear(other)))):
            write_pointer(layout, laid_down(layout, run_id, "wanted again"))
        assert read_elsewhere(str(layout.url), tmp_path / f"at-once-{at}") == "wanted again"
    assert any(found.contents == 2 for found in moved), "contents on which the publisher relied were moved"
    time.sleep(PERIOD_S + 1)
    for at, layout in places.items():
        clear(layout)
        assert read_elsewhere(str(layout.url), tmp_path / f"later-{at}") == "wanted again"
        assert not any(name.startswith("trash/") for name in names(layout))
