"""The copies of an object store's folders on this machine: which of them are in use, and which go when they are too many."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from brainmri_core.errors import BusyError
from brainmri_core.system.folder_manifest import FolderManifest, read_folder_manifest
from brainmri_core.system.locks import exclusive
from brainmri_core.system.storage import make_dirs, storage_error, write_bytes

_OWN_FOLDER = ".store"


class Copies:
    """The folders below a root that have a manifest, which says that an object store has them, too.

    A process notes each folder that it uses, in a file that it holds a lock on as long as it lives. What no living process
    has noted can go, the longest unused first. Files that are in no manifest are never touched.

    Parameters
    ----------
    root : pathlib.Path
        Folder of the copies.
    limit : int or None
        Bytes that they may take; what is in use may take more.
    """

    def __init__(self, root: Path, limit: int | None) -> None:
        self._root, self._limit = root, limit
        self._manifests = root / _OWN_FOLDER / "manifests"
        self._in_use = root / _OWN_FOLDER / "in_use"
        self._noted: set[str] = set()
        self._process = 0
        self._notes = self._in_use
        self._held = contextlib.ExitStack()

    def manifest(self, folder: str) -> bytes | None:
        """Return the manifest of a folder, None where this machine has none."""
        path = self._manifest_file(folder)
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise storage_error(error, path, "read") from error

    def keep_manifest(self, folder: str, text: bytes) -> None:
        """Note that the object store has a folder."""
        write_bytes(self._manifest_file(folder), text)

    def use(self, folder: str) -> bool:
        """Note that this process uses a folder: it stays until the process ends. Return False if that is noted already."""
        if self._process != os.getpid():
            self._begin()
        if folder in self._noted:
            return False
        with self._locked():
            with self._notes.open("a") as notes:
                notes.write(f"{folder}\n")
            with contextlib.suppress(FileNotFoundError):
                os.utime(self._manifest_file(folder))
        self._noted.add(folder)
        return True

    def make_room(self, size: int) -> list[str]:
        """Let folders go until `size` more bytes are within the limit, or none is left that can; return their names."""
        if self._limit is None:
            return []
        gone: list[str] = []
        with self._locked():
            known = {folder: self._here(folder, manifest) for folder, manifest in self._known()}
            sizes = {
                folder: sum(path.stat().st_size for path in files) for folder, files in known.items() if files
            }
            over = sum(sizes.values()) + size - self._limit
            used = self._used() if over > 0 else set()
            for folder in sorted(set(sizes) - used, key=self._last_use):
                if over <= 0:
                    break
                self._remove(known[folder])
                over -= sizes[folder]
                gone.append(folder)
        return gone

    def _remove(self, files: list[Path]) -> None:
        """Remove files, and the folders that are empty then. The manifest stays: it says what the folder lacks."""
        for path in files:
            path.unlink(missing_ok=True)
        above = {parent for path in files for parent in path.parents if parent.is_relative_to(self._root)}
        for parent in sorted(above - {self._root}, key=lambda path: len(path.parts), reverse=True):
            with contextlib.suppress(OSError):  # something else lies there
                parent.rmdir()

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return exclusive(self._root / _OWN_FOLDER / "copies.lock")

    def _begin(self) -> None:
        """Begin this process's notes; in a fork, the parent's stay the parent's."""
        self._held.pop_all()
        self._process, self._noted = os.getpid(), set()
        name = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._notes = make_dirs(self._in_use) / f"{name}.txt"
        self._held.enter_context(exclusive(self._notes.with_suffix(".lock")))

    def _used(self) -> set[str]:
        """Return what living processes have noted, and clear away the notes of dead ones."""
        used = set(self._noted) if self._process == os.getpid() else set()
        for lock in sorted(self._in_use.glob("*.lock")):
            notes = lock.with_suffix(".txt")
            if notes == self._notes:
                continue
            try:
                with exclusive(lock, wait=False):
                    notes.unlink(missing_ok=True)
                    lock.unlink(missing_ok=True)
            except BusyError:
                used |= set(notes.read_text().splitlines()) if notes.is_file() else set()
        return used

    def _known(self) -> Iterator[tuple[str, FolderManifest]]:
        for path in sorted(self._manifests.rglob("*.json")):
            folder = path.relative_to(self._manifests).as_posix().removesuffix(".json")
            yield folder, read_folder_manifest(path.read_bytes(), str(path), folder)

    def _here(self, folder: str, manifest: FolderManifest) -> list[Path]:
        paths = (self._root / folder / path for path in manifest.files)
        return [path for path in paths if path.is_file()]

    def _last_use(self, folder: str) -> float:
        return self._manifest_file(folder).stat().st_mtime

    def _manifest_file(self, folder: str) -> Path:
        return self._manifests / f"{folder}.json"
