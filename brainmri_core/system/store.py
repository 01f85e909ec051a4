"""The storage of a project: a local folder, or a bucket of an object store with a cache folder on this machine.

Stages read and write the folder in both cases. Names are paths relative to the project root, in POSIX form.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from brainmri_core.errors import IntegrityError
from brainmri_core.system.copies import Copies
from brainmri_core.system.folder_manifest import (
    FolderManifest,
    ManifestFile,
    folder_manifest,
    read_folder_manifest,
)
from brainmri_core.system.object_store import Bucket, LostRaceError, blob
from brainmri_core.system.shared_file import SHARED, SharedFile
from brainmri_core.system.storage import write_bytes, write_new
from brainmri_core.system.threads import threads

_CONNECTIONS = 8
MANIFESTS, CONTENTS, TRASH = "manifests", "blobs", "trash"
"""Prefixes of the objects that hold a folder's manifest or a content, and of those that gc has moved out of sight."""
MOVED = b""
"""Content of a manifest that gc has moved: it is never removed, because a machine may be about to replace it."""
TRUSTED_S = 12 * 3600.0
"""For how long a machine relies on what it has seen in the store while it publishes."""
_CHECKED = ".store/heeds-conditions"


class Store(Protocol):
    """The operations that a project needs from its storage."""

    def fetch_to_cache(self, name: str) -> Path:
        """Return the path on this machine of a result's file or folder; nothing exists there if the store has none."""

    def newest(self, name: str) -> Path:
        """Return the path of a file that may change, after its newest content was fetched."""

    def list(self, pattern: str) -> list[str]:
        """Name the files that match a pattern of path parts, such as ``outputs/pointers/fetch/*/*/latest.json``."""

    def put_new(self, name: str, data: bytes) -> bool:
        """Write a file that must not exist yet; return False, changing nothing, when it does."""

    def update(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Replace the content of a file by ``change(content)``; the content is None where the file is missing.

        If `change` returns None, the file is left as it is. `change` may be called several times, until no other process
        has written in between. It must recognise its own change in the content that it gets, because the answer of the
        store may be lost after it has written. The caller holds a lock on this machine.
        """

    def publish_folder(self, name: str) -> None:
        """Make a finished folder of this machine available to others, all of it or nothing."""


class LocalStore:
    """A local folder, where every file is durable and visible as soon as it is written."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def fetch_to_cache(self, name: str) -> Path:
        """Return the path; nothing has to be fetched."""
        return self._root / name

    newest = fetch_to_cache

    def list(self, pattern: str) -> list[str]:
        """Name the files that match a pattern."""
        return sorted(path.relative_to(self._root).as_posix() for path in self._root.glob(pattern))

    def put_new(self, name: str, data: bytes) -> bool:
        """Write a file that must not exist yet."""
        return write_new(self._root / name, data)

    def update(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Replace a file; the caller's lock keeps other writers away."""
        path = self._root / name
        data = change(path.read_bytes() if path.is_file() else None)
        if data is not None:
            write_bytes(path, data)

    def publish_folder(self, name: str) -> None:
        """Do nothing: the rename at the end of the stage has already published the folder."""


class RemoteStore:
    """A bucket, with a cache folder on this machine for the files that are used here.

    Files below the prefixes `plain` are objects of the same name. All other files belong to folders: each file is an object
    named by its SHA-256, and a manifest of the folder, written last, maps paths to contents. A content is downloaded once
    and checked against its SHA-256.

    Parameters
    ----------
    bucket : Bucket
        The project's place in the object store.
    root : pathlib.Path
        The cache folder.
    plain : tuple of str
        Prefixes, each with a slash at its end.
    limit : int or None
        Most bytes that the cache folder may hold; see `Copies`.
    """

    def __init__(self, bucket: Bucket, root: Path, plain: tuple[str, ...], limit: int | None = None) -> None:
        self._bucket, self._root, self._plain = bucket, root, plain
        self._copies = Copies(root, limit)
        self._read: dict[str, dict[str, ManifestFile]] = {}  # of folders that this process uses

    def fetch_to_cache(self, name: str) -> Path:
        """Return the path of a file or folder, after it was downloaded; a file comes with the others of its folder."""
        path = self._root / name
        if name.startswith(self._plain):
            return path if path.is_file() else self.newest(name)
        known = self._known(name)
        if known is not None and self._copies.use(known[0]):
            self._read.pop(known[0], None)
            known = self._known(name)  # until now it could go
        if known is not None:
            self._read[known[0]] = known[1]
        if path.is_file():
            return path
        if known is None and path.is_dir():
            return path  # made on this machine, and not published yet
        if known is None or not self._bring(name, *known):
            found = self._published(name)
            if found is not None:
                self._bring(name, *found)
        return path

    def newest(self, name: str) -> Path:
        """Return the path of an object below a plain prefix, after its newest content was downloaded."""
        path, data = self._root / name, self._bucket.get(name)
        if data is None:
            path.unlink(missing_ok=True)
        elif not path.is_file() or path.read_bytes() != data:
            write_bytes(path, data)
        return path

    def list(self, pattern: str) -> list[str]:
        """Name the objects that match a pattern; those cached here are added, because a listing may be out of date."""
        fixed = pattern[: pattern.index("*")].rpartition("/")[0]
        parts = pattern.split("/")
        listed = {*self._bucket.list(f"{fixed}/"), *LocalStore(self._root).list(pattern)}
        return sorted(
            name
            for name in listed
            if len(found := name.split("/")) == len(parts) and all(map(fnmatch.fnmatchcase, found, parts))
        )

    def put_new(self, name: str, data: bytes) -> bool:
        """Create an object; of several writers only one succeeds."""
        self._check_conditions()
        if not self._bucket.put_new(name, data):
            return False
        write_bytes(self._root / name, data)
        return True

    def _check_conditions(self) -> None:
        """Before this machine's first conditional write, see whether the store heeds conditions."""
        checked = self._root / _CHECKED
        if not checked.is_file():
            self._bucket.check_conditions()
            write_bytes(checked, b"")

    def get(self, name: str) -> bytes | None:
        """Return the newest content of an object, None where there is none; it is not cached."""
        return self._bucket.get(name)

    def put(self, name: str, data: bytes) -> None:
        """Write an object of which this process is the only writer."""
        self._bucket.put(name, data)

    def update(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Replace an object by compare-and-put, and try again where another process has written in between."""
        self._check_conditions()
        while True:
            found = self._bucket.get_tagged(name)
            data = change(None if found is None else found[0])
            if data is None or (found is not None and data == found[0]):
                return
            if self._replaced(name, data, found):
                write_bytes(self._root / name, data)
                return

    def _replaced(self, name: str, data: bytes, found: tuple[bytes, Any] | None) -> bool:
        """Write an object that must still be as it was found; return False where another process has written in between."""
        if found is None:
            return self._bucket.put_new(name, data)
        if found[0] != data:
            try:
                self._bucket.compare_and_put(name, data, found[1])
            except LostRaceError:
                return False
        return True

    def shared_file(self, name: str) -> SharedFile:
        """Return a file of the cache folder whose newest content other machines can go on from."""
        return SharedFile(self._bucket, name, self._root / name)

    def shared_files(self) -> Iterator[SharedFile]:
        """Yield the files that have a newest content in the bucket."""
        for name in self._bucket.list(f"{SHARED}/"):
            yield self.shared_file(name.removeprefix(f"{SHARED}/").removesuffix(".json"))

    def publish_folder(self, name: str) -> None:
        """Upload the files of a folder that the bucket lacks, then the manifest, which keeps what it named before.

        So it does not matter how many of the folder's files are on this machine: all, those that it has made or opened, or none.
        What the bucket has is relied on for a limited time only, because gc removes it if nothing refers to it.
        """
        own, key = folder_manifest(self._root / name).files, f"{MANIFESTS}/{name}.json"
        while True:
            began, found = time.monotonic(), self._bucket.get_tagged(key)
            data = found[0] if found and found[0] != MOVED else self._bucket.get(f"{TRASH}/{key}")
            before = {} if data is None else self._files_before(data, name)
            lacking = {
                item.sha256: (self._root / name / path, item)
                for path, item in own.items()
                if before.get(path) != item
            }
            with threads(_CONNECTIONS) as pool:
                list(pool.map(lambda item: self._upload(*item), lacking.values()))
            text = FolderManifest(files=dict(sorted((before | own).items()))).text()
            if time.monotonic() - began < TRUSTED_S and self._replaced(key, text, found):
                break
        self._copies.use(name)
        self._copies.keep_manifest(name, text)
        self._read.pop(name, None)
        self._copies.make_room(0)

    def _files_before(self, manifest: bytes, name: str) -> dict[str, ManifestFile]:
        try:
            return read_folder_manifest(manifest, self._bucket.url, name).files
        except IntegrityError:
            return {}  # what is damaged is replaced by what the stage has made again

    def _upload(self, path: Path, item: ManifestFile) -> None:
        key = blob(item.sha256)
        if self._bucket.size(key) != item.size:
            self._bucket.upload(key, path)

    @property
    def bucket(self) -> Bucket:
        """The bucket."""
        return self._bucket

    def files_of(self, folder: str) -> Sequence[str]:
        """Name the objects that hold the contents of a folder; none where it has no manifest.

        Raises
        ------
        IntegrityError
            If the manifest is damaged.
        """
        data = self._manifest(folder)
        files = {} if data is None else read_folder_manifest(data, self._bucket.url, folder).files
        return [blob(item.sha256) for item in files.values()]

    def shared_contents(self) -> Sequence[str]:
        """Name the objects that hold the contents of shared files."""
        newest = (shared.newest() for shared in self.shared_files())
        return [blob(version.sha256) for version in newest if version is not None]

    def _manifest(self, folder: str) -> bytes | None:
        """Return the manifest of a folder, also where gc has just moved it out of sight, or put it back."""
        key = f"{MANIFESTS}/{folder}.json"
        for place in (key, f"{TRASH}/{key}", key):
            found = self._bucket.get(place)
            if found is not None and found != MOVED:
                return found
        return None

    def _known(self, name: str) -> tuple[str, dict[str, ManifestFile]] | None:
        """Return the folder that holds a name, and its files, if its manifest is cached here."""
        for folder in _folders(name):
            if folder in self._read:
                return folder, self._read[folder]
            data = self._copies.manifest(folder)
            if data is not None:
                return folder, read_folder_manifest(data, self._bucket.url, folder).files
        return None

    def _published(self, name: str) -> tuple[str, dict[str, ManifestFile]] | None:
        """Return the folder that holds a name, and its files, from the manifest in the bucket."""
        for folder in _folders(name):
            data = self._manifest(folder)
            if data is not None:
                found = read_folder_manifest(data, self._bucket.url, folder).files
                self._copies.use(folder)
                self._copies.keep_manifest(folder, data)
                self._read.pop(folder, None)
                return folder, found
        return None

    def _bring(self, name: str, folder: str, files: dict[str, ManifestFile]) -> bool:
        """Download the files of a folder that a name stands for; return False if there are none."""
        inside = PurePosixPath(name).relative_to(folder).as_posix()
        if inside in files:
            place = PurePosixPath(inside).parent
            wanted = [path for path in files if PurePosixPath(path).parent == place]
        else:
            below = "" if inside == "." else f"{inside}/"
            wanted = [path for path in files if path.startswith(below)]
        lacking = [path for path in wanted if not (self._root / folder / path).is_file()]
        if lacking:
            self._copies.make_room(sum(files[path].size for path in lacking))
            with threads(_CONNECTIONS) as pool:
                list(pool.map(lambda path: self._download(folder, path, files[path]), lacking))
        return bool(wanted)

    def _download(self, folder: str, path: str, item: ManifestFile) -> None:
        key, target = blob(item.sha256), self._root / folder / path
        for place in (key, f"{TRASH}/{key}", key):  # gc may put it back in between
            if self._bucket.download(place, target, item.sha256):
                return


def _folders(name: str) -> list[str]:
    """Return a name and the folders above it."""
    path = PurePosixPath(name)
    return [folder.as_posix() for folder in (path, *path.parents) if folder.parts]


@cache
def open_store(root: Path, url: str | None, plain: tuple[str, ...], limit: int | None) -> Store:
    """Return the store of a project, the same object for every caller in this process."""
    return LocalStore(root) if url is None else RemoteStore(Bucket(url), root, plain, limit)
