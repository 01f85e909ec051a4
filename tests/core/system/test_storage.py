from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from brainmri_core.errors import StorageError
from brainmri_core.system import storage
from brainmri_core.system.checksums import sha256_file
from brainmri_core.system.json_files import read_json


def test_a_failed_write_leaves_the_previous_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    storage.write_bytes(path, b"old")
    with pytest.raises(RuntimeError), storage.atomic_file(path) as handle:
        handle.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("number", "part"), [(errno.ENOSPC, "no space"), (errno.EIO, "input/output"), (errno.EROFS, "read-only")]
)
def test_system_errors_become_one_sentence_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, part: str
) -> None:
    storage.write_bytes(tmp_path / "a", b"old")

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(storage.os, "fsync", fail)
    with pytest.raises(StorageError, match=part):
        storage.write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_write_new_never_overwrites(tmp_path: Path) -> None:
    assert storage.write_new(tmp_path / "a", b"1")
    assert not storage.write_new(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert len(list(tmp_path.iterdir())) == 1


def test_staging_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "result"
    with pytest.raises(RuntimeError), storage.staging_folder(target) as staging:
        (staging / "x").write_text("1")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with storage.staging_folder(target) as staging:
        (staging / "x").write_text("1")
        assert not target.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["result"]
    with pytest.raises(StorageError, match="exists already"), storage.staging_folder(target):
        pass
    assert (target / "x").read_text() == "1"


def _stage_and_hang(target: Path, ready: Path) -> None:
    with storage.staging_folder(target) as staging:
        (staging / "x").write_text("1")
        ready.touch()
        signal.pause()


def test_stale_temporaries_of_a_killed_writer_go_and_live_ones_stay(tmp_path: Path) -> None:
    ready = tmp_path.parent / f"{tmp_path.name}-ready"
    process = multiprocessing.get_context("fork").Process(
        target=_stage_and_hang, args=(tmp_path / "result", ready)
    )
    process.start()
    while not ready.exists():
        assert process.is_alive()
    assert storage.remove_stale(tmp_path) == []
    assert list(tmp_path.glob(f"{storage.TEMPORARY_PREFIX}*"))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert storage.remove_stale(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_link_is_not_replaced_by_a_folder_and_blocks_nobody(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with (
        pytest.raises(StorageError, match="symbolic link"),
        storage.staging_folder(tmp_path / "link", replace=True),
    ):
        pass
    (tmp_path / f".tmp-{os.getpid()}-{'0' * 12}").symlink_to("real")
    assert storage.remove_stale(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_a_folder_is_replaced_in_one_step_and_the_old_one_goes(tmp_path: Path) -> None:
    target = tmp_path / "export"
    for content in ("old", "new"):
        with storage.staging_folder(target, replace=True) as staging:
            (staging / content).write_text(content)
            assert (target / "old").exists() == (content == "new"), "complete until the step"
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_where_folders_cannot_be_exchanged_the_old_one_steps_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.ctypes, "CDLL", lambda *_, **__: object())
    test_a_folder_is_replaced_in_one_step_and_the_old_one_goes(tmp_path)


def test_new_folders_are_made_durable_up_to_the_first_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(storage, "fsync_dir", synced.append)
    storage.make_dirs(tmp_path / "a" / "b" / "c")
    assert sorted(synced) == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    storage.make_dirs(tmp_path / "a" / "b" / "c")
    assert len(synced) == 3


def test_a_temporary_taken_away_before_it_was_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, calls = storage.fcntl.flock, 0

    def late(handle: Any, operation: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:  # another process comes between creating and locking
            assert len(storage.remove_stale(tmp_path)) == 1
        lock(handle, operation)

    monkeypatch.setattr(storage.fcntl, "flock", late)
    storage.write_bytes(tmp_path / "a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_name_that_only_looks_like_a_temporary_stays(tmp_path: Path) -> None:
    names = [".tmp-notes", ".tmp-1-abc.jpg", "x.tmp-1-000000000000"]
    for name in names:
        (tmp_path / name).write_text("kept")
    assert storage.remove_stale(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_result_is_removed_by_a_rename_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = tmp_path / "run"
    result.mkdir()
    (result / "x").write_text("1")

    def die(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_remove", die)
        with pytest.raises(KeyboardInterrupt):
            storage.remove_folder(result)
    assert not result.exists()
    assert len(storage.remove_stale(tmp_path)) == 1
    assert not list(tmp_path.iterdir())


def test_an_error_says_what_could_not_be_done_to_which_path(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    below, gone = file / "below", tmp_path / "gone"
    attempts = {
        f"Cannot create {below}: the system says Not a directory.": lambda: storage.make_dirs(below),
        f"Cannot read {gone}: the system says No such file or directory.": lambda: read_json(gone),
        f"Cannot read {tmp_path}: the system says Is a directory.": lambda: sha256_file(tmp_path),
        f"Cannot remove {gone}: the system says No such file": lambda: storage.remove_folder(gone),
        f"Cannot write {below}: the system says Not a directory.": lambda: storage.publish_file(file, below),
    }
    for words, attempt in attempts.items():
        with pytest.raises(StorageError) as caught:
            attempt()
        assert str(caught.value).startswith(words)
    assert "the system says OSError('odd')" in str(storage.storage_error(OSError("odd"), file))


def test_a_file_filled_over_several_tries_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, target = tmp_path / "part", tmp_path / "whole"
    part.write_bytes(b"all of it")
    synced: list[tuple[str, bool]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, target.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    storage.publish_file(part, target)
    assert synced == [("part", False), (tmp_path.name, True)]
    assert target.read_bytes() == b"all of it" and not part.exists()


def test_folders_change_places_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()

    def refuse(*_: object) -> None:
        raise AssertionError("between two renames a reader finds nothing")

    monkeypatch.setattr(os, "rename", refuse)
    storage._exchange(tmp_path / "first", tmp_path / "second")
    assert (tmp_path / "first/second").exists() and (tmp_path / "second/first").exists()
    monkeypatch.chdir(tmp_path)
    storage._exchange(Path("first"), Path("second"))
    assert (tmp_path / "first/first").exists(), "relative paths are those of the working folder"


def test_stale_temporaries_are_listed_and_removed_by_name(tmp_path: Path) -> None:
    names = [f"{storage.TEMPORARY_PREFIX}1-{digit * 12}" for digit in "ab"]
    (tmp_path / names[0]).write_bytes(b"")
    (tmp_path / names[1] / "deep").mkdir(parents=True)
    wanted = [tmp_path / name for name in names]
    assert storage.stale_temporaries(tmp_path) == wanted
    assert storage.remove_stale(tmp_path) == wanted
    assert storage.stale_temporaries(tmp_path / "nowhere") == [] and not list(tmp_path.iterdir())


def test_a_removed_result_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "result/deep").mkdir(parents=True)
    (tmp_path / "result/deep/file").write_bytes(b"x")
    storage.remove_folder(tmp_path / "result")
    assert not list(tmp_path.iterdir())


def test_what_somebody_else_removes_first_is_no_error_and_what_cannot_go_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = tmp_path / f"{storage.TEMPORARY_PREFIX}1-0123456789ab"
    stale.mkdir()
    (stale / "file").touch()
    real = os.unlink

    def vanish(name: Any, **where: Any) -> None:
        real(name, **where)
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", name)

    def refuse(name: Any, **_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error", name)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        with pytest.raises(StorageError, match=f"Cannot remove {stale}: the device reported"):
            storage.remove_stale(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", vanish)
        assert storage.remove_stale(tmp_path) == [stale]
    assert not list(tmp_path.iterdir())


def test_a_scratch_folder_goes_though_somebody_still_writes_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, late = os.rmdir, ["a", "b"]

    with storage.scratch_folder(tmp_path) as folder:

        def rmdir(path: Any, **where: Any) -> None:
            if folder.exists() and late:
                (folder / late.pop()).write_bytes(b"what was begun before")
            remove(path, **where)

        monkeypatch.setattr(os, "rmdir", rmdir)
    assert not late and not any(tmp_path.iterdir())
