from __future__ import annotations

from pathlib import Path

import pytest

from brainmri_core.errors import IntegrityError
from brainmri_core.system.object_store import Bucket, LostRaceError
from brainmri_core.system.shared_file import SharedFile

NAME = "models/a/b/resume/x/last.pth"


class Machine:
    """A machine that works on a file which others may go on from."""

    def __init__(self, url: str, folder: Path) -> None:
        folder.mkdir()
        self.path = folder / "last.pth"
        self.bucket = Bucket(url)
        self.shared = SharedFile(self.bucket, NAME, self.path)

    def save(self, *progress: int) -> int:
        self.path.write_text(f"content {progress}")
        return self.shared.replace(progress)

    def contents(self) -> int:
        return len(self.bucket.list("blobs/"))


@pytest.fixture
def here(store_url: str, tmp_path: Path) -> Machine:
    return Machine(store_url, tmp_path / "a")


@pytest.fixture
def there(store_url: str, tmp_path: Path) -> Machine:
    return Machine(store_url, tmp_path / "b")


def test_another_machine_takes_the_newest_content_and_no_older_one_stays(
    here: Machine, there: Machine
) -> None:
    assert not there.shared.take(None) and not there.path.exists()
    assert here.save(1, 0) == len("content (1, 0)")
    here.save(2, 5)
    assert not there.shared.take((2, 5)), "it is as far itself"
    assert there.shared.take((2, 4)) and there.path.read_text() == "content (2, 5)"
    assert there.contents() == 1
    there.save(10, 0)
    assert here.shared.take((2, 5)) and here.path.read_text() == "content (10, 0)"
    there.shared.remove()
    assert not here.shared.take(None)
    assert here.bucket.list("") == []


def test_who_is_behind_replaces_nothing(here: Machine, there: Machine) -> None:
    here.save(3, 0)
    assert there.save(2, 9) == 0
    assert there.shared.take((2, 9)) and there.path.read_text() == "content (3, 0)"


@pytest.mark.parametrize("other", [(2, 0), (4, 0)])
def test_of_two_that_replace_at_once_the_one_that_is_further_stays(
    here: Machine, there: Machine, monkeypatch: pytest.MonkeyPatch, other: tuple[int, int]
) -> None:
    here.save(1, 0)
    compare_and_put, races = Bucket.compare_and_put, []

    def overtaken(bucket: Bucket, name: str, data: bytes, tag: object) -> None:
        monkeypatch.setattr(Bucket, "compare_and_put", compare_and_put)
        there.save(*other)
        try:
            compare_and_put(bucket, name, data, tag)
        except LostRaceError:
            races.append(name)
            raise

    monkeypatch.setattr(Bucket, "compare_and_put", overtaken)
    here.save(3, 0)
    assert len(races) == 1
    newest = here.shared.newest()
    assert newest is not None and newest.progress == max(other, (3, 0))
    assert there.shared.take(None) and there.path.read_text() == f"content {max(other, (3, 0))}"


def test_a_content_that_goes_while_it_is_taken_is_followed_to_the_next(
    here: Machine, there: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.save(1, 0)
    download = Bucket.download

    def late(bucket: Bucket, name: str, target: Path, sha256: str) -> bool:
        monkeypatch.setattr(Bucket, "download", download)
        here.save(2, 0)
        return download(bucket, name, target, sha256)

    monkeypatch.setattr(Bucket, "download", late)
    assert there.shared.take(None) and there.path.read_text() == "content (2, 0)"
    for name in here.bucket.list("blobs/"):
        here.bucket.remove(name)
    assert not there.shared.take(None), "a content that is gone for good counts as none"


def test_what_was_changed_in_the_bucket_is_refused(here: Machine, there: Machine) -> None:
    here.save(1, 0)
    for damage in (b"{", b'{"sha256": "../x", "size": 1, "progress": [1, 0]}', b"[]"):
        here.bucket.put(f"shared/{NAME}.json", damage)
        with pytest.raises(IntegrityError, match="is damaged; delete it to begin the work on it again"):
            there.shared.take(None)
