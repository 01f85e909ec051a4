from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from brainmri_core.errors import IntegrityError, StorageError
from brainmri_core.system.object_store import Bucket
from brainmri_core.system.storage import TEMPORARY_PREFIX
from brainmri_core.system.store import LocalStore, RemoteStore, Store
from tests.counts import rest
from tests.object_store import Proxy

PLAIN = ("small/",)
FILES = {
    "table": b"rows",
    "table.copy": b"rows",
    "report.html": b"<p>",
    "images/a": b"A" * 9000,
    "images/b": b"B",
}


def machine(url: str, root: Path) -> RemoteStore:
    """A store as a machine of its own sees it."""
    root.mkdir(exist_ok=True)
    return RemoteStore(Bucket(url), root, PLAIN)


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_another_machine_gets_a_published_folder_file_by_file(store_url: str, tmp_path: Path) -> None:
    first, second = machine(store_url, tmp_path / "a"), machine(store_url, tmp_path / "b")
    fill(tmp_path / "a/results/run", FILES)
    fill(tmp_path / "a/results/run", {f"{TEMPORARY_PREFIX}1-000000000000-x": b"half"})
    first.publish_folder("results/run")

    table = second.fetch_to_cache("results/run/table")
    assert table.read_bytes() == b"rows"
    beside = {name: data for name, data in FILES.items() if "/" not in name}
    assert content(tmp_path / "b/results/run") == beside, "those beside it come along, no folder does"
    assert content(second.fetch_to_cache("results/run/images")) == {"a": b"A" * 9000, "b": b"B"}
    assert content(second.fetch_to_cache("results/run")) == FILES
    assert not second.fetch_to_cache("results/run/other").exists()
    assert not second.fetch_to_cache("results/other").exists()


def test_content_that_is_there_is_not_sent_again(store_url: str, proxy: Proxy, tmp_path: Path) -> None:
    first, second = machine(store_url, tmp_path / "a"), machine(store_url, tmp_path / "b")
    fill(tmp_path / "a/one", FILES)
    first.publish_folder("one")
    blobs = [path for method, path in proxy.seen if method == "PUT" and "/blobs/" in path]
    assert len(blobs) == len(set(FILES.values()))
    proxy.seen.clear()
    first.publish_folder("one")
    assert [method for method, _ in proxy.seen] == ["GET"], "the manifest says that all is there"
    fill(tmp_path / "b/two", {**FILES, "more": b"new"})
    proxy.seen.clear()
    second.publish_folder("two")
    sent = [path for method, path in proxy.seen if method == "PUT"]
    assert len(sent) == 2 and "/blobs/" in sent[0] and "/manifests/two.json" in sent[1]


def test_a_folder_keeps_the_files_that_a_machine_does_not_have(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (machine(store_url, tmp_path / name) for name in "abc")
    fill(tmp_path / "a/run", FILES)
    first.publish_folder("run")
    second.publish_folder("run")  # it has none of them
    second.fetch_to_cache("run/table")
    fill(tmp_path / "b/run", {"decision": b"yes", "images/b": b"drawn again"})
    fill(tmp_path / "a/run", {"by the first": b"too"})
    compare_and_put = Bucket.compare_and_put

    def overtaken(bucket: Bucket, name: str, data: bytes, tag: object) -> None:
        monkeypatch.setattr(Bucket, "compare_and_put", compare_and_put)
        first.publish_folder("run")
        compare_and_put(bucket, name, data, tag)

    monkeypatch.setattr(Bucket, "compare_and_put", overtaken)
    second.publish_folder("run")
    wanted = {**FILES, "decision": b"yes", "images/b": b"drawn again", "by the first": b"too"}
    assert content(third.fetch_to_cache("run")) == wanted


def test_copies_go_when_there_are_too_many_and_come_again(store_url: str, tmp_path: Path) -> None:
    first = machine(store_url, tmp_path / "a")
    for name in ("one", "two", "three"):
        fill(tmp_path / "a" / name, FILES)
        first.publish_folder(name)
    (tmp_path / "b").mkdir()
    size = sum(map(len, FILES.values()))

    def machine_with_room() -> RemoteStore:
        return RemoteStore(Bucket(store_url), tmp_path / "b", PLAIN, 2 * size)

    for name in ("one", "two"):
        assert content(machine_with_room().fetch_to_cache(name)) == FILES
    (tmp_path / "b/one/exported").write_bytes(b"made here")
    second = machine_with_room()
    assert content(second.fetch_to_cache("three/images")) == {"a": b"A" * 9000, "b": b"B"}
    assert content(tmp_path / "b/one") == {"exported": b"made here"}
    assert content(tmp_path / "b/two") == FILES
    assert content(second.fetch_to_cache("one")) == {**FILES, "exported": b"made here"}
    assert not (tmp_path / "b/two").exists()
    assert content(second.fetch_to_cache("two")) == FILES, "what is in use may take more than the limit"
    assert content(tmp_path / "b/one") == {**FILES, "exported": b"made here"}


@pytest.mark.parametrize("fault", ["short", *rest("cut")])
def test_content_of_the_wrong_length_is_asked_for_again(
    store_url: str, proxy: Proxy, tmp_path: Path, fault: str
) -> None:
    fill(tmp_path / "a/run", FILES)
    machine(store_url, tmp_path / "a").publish_folder("run")
    left = 4

    def some(method: str, path: str) -> str | None:
        nonlocal left
        left -= "/blobs/" in path
        return fault if "/blobs/" in path and left >= 0 else None

    proxy.fault = some
    assert content(machine(store_url, tmp_path / "b").fetch_to_cache("run")) == FILES
    assert len(proxy.hit) == 4


def test_content_that_is_damaged_in_the_store_is_never_taken(
    store_url: str, proxy: Proxy, tmp_path: Path
) -> None:
    fill(tmp_path / "a/run", {"table": b"rows"})
    machine(store_url, tmp_path / "a").publish_folder("run")
    proxy.fault = lambda method, path: "cut" if "/blobs/" in path else None
    with pytest.raises(StorageError, match="what comes is not what was stored"):
        machine(store_url, tmp_path / "b").fetch_to_cache("run")
    assert content(tmp_path / "b/run") == {}


def test_a_store_that_agrees_to_everything_is_refused(store_url: str, proxy: Proxy, tmp_path: Path) -> None:
    proxy.fault = lambda method, path: "agreed" if method == "PUT" else None
    store = machine(store_url, tmp_path / "a")
    for _ in range(2):
        with pytest.raises(StorageError, match="the store does not heed the conditions of a write"):
            store.put_new("small/new.json", b"1")
        with pytest.raises(StorageError, match="the store does not heed the conditions of a write"):
            store.update("small/new.json", lambda present: b"1")
    proxy.fault = lambda method, path: None
    assert store.put_new("small/new.json", b"1")
    proxy.seen.clear()
    assert machine(store_url, tmp_path / "a").put_new("small/other.json", b"1")
    assert len(proxy.seen) == 1, "once on each machine is enough"
    assert Bucket(store_url).list("") == ["small/new.json", "small/other.json"]


@pytest.mark.parametrize("path", ["../out", "/out", "a/../../out", "a//b", ""])
def test_a_manifest_that_names_a_path_outside_its_folder_is_refused(
    store_url: str, tmp_path: Path, path: str
) -> None:
    files = {path: {"sha256": "0" * 64, "size": 1}}
    Bucket(store_url).put("manifests/run.json", json.dumps({"files": files}).encode())
    with pytest.raises(IntegrityError, match=r"The manifest of run in s3://.* is damaged"):
        machine(store_url, tmp_path / "a").fetch_to_cache("run/table")


@pytest.mark.full
def test_no_update_of_many_writers_is_lost(store_url: str, tmp_path: Path) -> None:
    def write(number: int) -> None:
        store = machine(store_url, tmp_path / str(number))
        for turn in range(5):
            store.update("small/lines", partial(with_line, b"%d.%d\n" % (number, turn)))

    def with_line(line: bytes, present: bytes | None) -> bytes | None:
        return None if line in (present or b"") else (present or b"") + line

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    lines = (Bucket(store_url).get("small/lines") or b"").splitlines()
    assert sorted(lines) == sorted(b"%d.%d" % (number, turn) for number in range(4) for turn in range(5))


def test_what_a_stale_listing_leaves_out_is_listed_where_it_was_seen(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = machine(store_url, tmp_path / "a"), machine(store_url, tmp_path / "b")
    for name in ("small/x/1.json", "small/x/2.json", "small/x/y/3.json"):
        assert store.put_new(name, b"{}")
    assert (
        store.list("small/*/*.json") == other.list("small/*/*.json") == ["small/x/1.json", "small/x/2.json"]
    )
    monkeypatch.setattr(Bucket, "list", lambda self, prefix: ["small/x/1.json"])
    assert store.list("small/*/*.json") == ["small/x/1.json", "small/x/2.json"]


def test_a_folder_and_a_bucket_behave_alike(store_url: str, tmp_path: Path) -> None:
    stores: list[Store] = [LocalStore(tmp_path / "local"), machine(store_url, tmp_path / "a")]
    (tmp_path / "local").mkdir()
    for store in stores:
        assert store.put_new("small/new.json", b"1")
        assert not store.put_new("small/new.json", b"2")
        store.update("small/new.json", lambda present: present + b"3" if present else None)
        store.update("small/new.json", lambda present: None)
        assert store.newest("small/new.json").read_bytes() == b"13"
        assert store.fetch_to_cache("small/new.json").read_bytes() == b"13"
        assert store.list("small/*.json") == ["small/new.json"]
        assert not store.newest("small/none.json").exists()
        assert not store.fetch_to_cache("run/none").exists()
