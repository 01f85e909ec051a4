from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from brainmri_core.classifier.search import default_checkpoint
from brainmri_core.errors import ConfigError, MissingUpstreamError, StorageError
from brainmri_core.evaluation.test_ledger import record_look
from brainmri_core.project import pointer_store
from brainmri_core.project.layout import Layout, projects_above
from brainmri_core.project.pointer_store import (
    follow,
    history,
    latest_pointer,
    places,
    pointer_files,
    write_pointer,
)
from brainmri_core.project.pointers import FetchPointer, MappingPointer, PackPointer, ValidationPointer
from brainmri_core.project.pseudonyms import project_key
from brainmri_core.system.checksums import sha256_file
from brainmri_core.system.clock import utc_now
from brainmri_core.system.object_store import PATIENCE_VARIABLE, Bucket, LostRaceError
from brainmri_core.system.storage import TEMPORARY_PREFIX
from brainmri_core.system.store import RemoteStore
from brainmri_core.verify import verify
from tests.faults.tiny import PHANTOM, POINTERS, configuration, run_stage
from tests.object_store import StoreServer, running_proxy

PLACE = "a/b"


def machines(url: str, tmp_path: Path) -> tuple[Layout, Layout]:
    return Layout.at(url, str(tmp_path / "a")), Layout.at(url, str(tmp_path / "b"))


def result(layout: Layout, run_id: str) -> ValidationPointer:
    """A result of a run, with its file."""
    folder = layout.validation_dir(PLACE, run_id)
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(f'"{run_id}"')
    return ValidationPointer(
        dataset=PLACE,
        run_id=run_id,
        content_hash=run_id,
        written_at_utc="",
        report=layout.relative(folder / "report.json"),
        passed=True,
        severities={},
        pack_pointer="",
    )


def runs(layout: Layout) -> list[str]:
    return [pointer.run_id for pointer in history(layout, ValidationPointer, PLACE)]


def latest(layout: Layout) -> str | None:
    found = latest_pointer(layout, ValidationPointer, PLACE)
    return found and found.run_id


def test_a_pointer_and_its_files_are_there_for_another_machine(store_url: str, tmp_path: Path) -> None:
    here, there = machines(store_url, tmp_path)
    assert (latest(there), places(there, ValidationPointer)) == (None, [])
    stored = write_pointer(here, result(here, "one"))
    write_pointer(here, result(here, "two"))
    found = latest_pointer(there, ValidationPointer, PLACE)
    assert found is not None and found.run_id == "two"
    assert there.absolute(found.report).read_text() == '"two"'
    assert there.absolute(found.report).is_relative_to(tmp_path / "b")
    assert follow(there, ValidationPointer, str(stored.pointer_path)) == stored
    assert (runs(there), places(there, ValidationPointer)) == (["two", "one"], [PLACE])
    assert [path.name == "latest.json" for _, path in pointer_files(there)] == [True, False, False]
    write_pointer(there, result(there, "three"))
    assert (latest(here), runs(here)) == ("three", ["three", "two", "one"])


def test_an_older_result_does_not_replace_a_newer_one(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = machines(store_url, tmp_path)
    update = RemoteStore.update

    def held_up(store: RemoteStore, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        monkeypatch.setattr(RemoteStore, "update", update)
        write_pointer(there, result(there, "newer"))
        update(store, name, change)

    monkeypatch.setattr(RemoteStore, "update", held_up)
    write_pointer(here, result(here, "older"))
    assert (latest(here), latest(there)) == ("newer", "newer")
    assert runs(here) == runs(there) == ["newer", "older"]


def test_a_lost_race_is_run_again(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = machines(store_url, tmp_path)
    write_pointer(here, result(here, "first"))
    compare_and_put = Bucket.compare_and_put
    races = []

    def overtaken(bucket: Bucket, name: str, data: bytes, tag: object) -> None:
        monkeypatch.setattr(Bucket, "compare_and_put", compare_and_put)
        there.store.update(name, lambda present: (present or b"") + b" ")
        try:
            compare_and_put(bucket, name, data, tag)
        except LostRaceError:
            races.append(name)
            raise

    monkeypatch.setattr(Bucket, "compare_and_put", overtaken)
    write_pointer(here, result(here, "last"))
    assert len(races) == 1
    assert (latest(there), runs(there)) == ("last", ["last", "first"])


def test_a_machine_whose_clock_is_behind_still_has_the_newest_result(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = machines(store_url, tmp_path)
    write_pointer(here, result(here, "first"))

    def behind() -> datetime:
        return utc_now() - timedelta(hours=2)

    monkeypatch.setattr(pointer_store, "utc_now", behind)
    write_pointer(there, result(there, "second"))
    assert (latest(here), runs(here)) == ("second", ["second", "first"])


@pytest.mark.parametrize("where", ["/blobs/", "/manifests/", "/history/", "latest.json"])
def test_a_store_that_goes_away_leaves_the_pointer_as_it_was(
    store_url: str, object_store: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    with running_proxy(object_store.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv(PATIENCE_VARIABLE, "0.5")
        here, there = machines(store_url, tmp_path)
        write_pointer(here, result(here, "old"))
        pointer = result(here, "new")
        proxy.fault = lambda method, path: "reset" if method == "PUT" and where in path else None
        with pytest.raises(StorageError, match=f"Cannot write {store_url}: the store does not answer"):
            write_pointer(here, pointer)
        assert (latest(here), latest(there)) == ("old", "old")
        proxy.fault = lambda method, path: None
        write_pointer(here, pointer)
        assert latest(there) == "new"
        assert there.absolute(pointer.report).read_text() == '"new"'


def test_machines_share_the_ledger_and_the_key_for_names(store_url: str, tmp_path: Path) -> None:
    here, there = machines(store_url, tmp_path)
    for number, layout in enumerate((here, there, here)):
        found = record_look(
            layout, PLACE, f"r{number}", "evaluation", paths=["x"], checkpoint=f"c{number}", experiment=None
        )
        assert (found.looks, found.checkpoints) == (number + 1, number + 1)
    assert project_key(here) == project_key(there)
    assert there.patient_key.stat().st_mode & 0o777 == 0o600


def test_a_folder_of_copies_says_which_project_it_is_of(store_url: str, tmp_path: Path) -> None:
    here, there = machines(store_url, tmp_path)
    write_pointer(here, result(here, "one"))
    latest(there)
    assert list(projects_above(there.outputs / "x")) == [there]
    with pytest.raises(MissingUpstreamError, match=f"There is no model in {store_url} yet"):
        default_checkpoint(there, "models")


def test_what_needs_a_folder_says_so(store_url: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=f"brainmri gc needs a project in a folder, and this one is {store_url}"
    ):
        Layout.at(store_url, str(tmp_path)).require_folder("brainmri gc")
    Layout(root=tmp_path).require_folder("brainmri gc")


@pytest.mark.training
@pytest.mark.full
def test_damage_in_the_bucket_is_named_whatever_copies_are_here(store_url: str, tmp_path: Path) -> None:
    config = configuration("old")
    for stage in ("fetch", "split", "resize"):
        run_stage(tmp_path / "a", stage, f"a-{stage}", config, store_url)
    layout, bucket = Layout.at(store_url, str(tmp_path / "a")), Bucket(store_url)
    found = verify(layout)
    assert (found.problems, found.pointers, found.runs) == ([], 6, 3)
    assert [path for path in layout.root.iterdir() if path.name.startswith(TEMPORARY_PREFIX)] == []

    pack = latest_pointer(layout, PackPointer, PHANTOM)
    fetched = latest_pointer(layout, POINTERS["fetch"], PHANTOM)
    assert pack is not None and isinstance(fetched, FetchPointer)
    image = next(path for path in layout.absolute(fetched.dataset_root).rglob("*.jpg"))
    blobs = {name.rpartition("/")[2]: name for name in bucket.list("blobs/")}
    bucket.put(blobs[pack.pack_sha256], b"x" * (bucket.size(blobs[pack.pack_sha256]) or 0))
    bucket.remove(blobs[sha256_file(image)])
    named = {problem.path for problem in verify(layout).problems}
    assert layout.relative(image) in named
    assert pack.pointer_path in named
    assert bucket.get("outputs/pointers/pack/brainmri/phantom/latest.json")


@pytest.mark.training
def test_another_machine_goes_on_from_the_images_of_the_first(store_url: str, tmp_path: Path) -> None:
    config, made = configuration("old"), {}
    for stage in ("fetch", "split", "resize"):
        made[stage] = run_stage(tmp_path / "a", stage, f"a-{stage}", config, store_url)
    for stage in ("split", "resize"):
        again = run_stage(tmp_path / "b", stage, f"b-{stage}", config, store_url)
        assert again.content_hash == made[stage].content_hash
    third = Layout.at(store_url, str(tmp_path / "c"))
    packs = list(history(third, PackPointer, PHANTOM))
    assert [pack.run_id for pack in packs] == ["b-resize", "a-resize"]
    assert third.absolute(packs[0].pack).read_bytes() == third.absolute(packs[1].pack).read_bytes()
    assert follow(third, MappingPointer, packs[1].mapping_pointer).run_id == "a-split"
    assert not (third.root / "data/raw").exists(), "images that nobody asked for stay where they are"
    assert latest_pointer(third, POINTERS["fetch"], PHANTOM) == made["fetch"]
