"""Durable files: atomic writes, and folders that appear in one rename.

The only module that renames or fsyncs. A reader sees the old complete state or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from brainmri_core.errors import StorageError

TEMPORARY_PREFIX = ".tmp-"
_REMOVALS = 10
_TEMPORARY = re.compile(r"\.tmp-\d+-[0-9a-f]{12}(\.lock|-.*)?", re.DOTALL)
_REMEDIES = {
    errno.ENOSPC: "there is no space left on the device; free some and run again",
    errno.EDQUOT: "the disk quota is used up; free some space and run again",
    errno.EACCES: "permission is denied; make the folder writable or choose another root",
    errno.EPERM: "permission is denied; make the folder writable or choose another root",
    errno.EROFS: "the file system is read-only; choose a root on a writable one",
    errno.ENOMEM: "there is no memory for it; free some and run again",
    errno.EIO: "the device reported an input/output error; check the disk",
}


def storage_error(error: OSError, path: Path, action: str = "write") -> StorageError:
    """Turn an operating-system error into one sentence with the path and the remedy."""
    remedy = _REMEDIES.get(error.errno or 0, f"the system says {error.strerror or repr(error)}")
    return StorageError(f"Cannot {action} {path}: {remedy}.")


@contextlib.contextmanager
def as_storage_errors(path: Path, action: str = "write") -> Iterator[None]:
    """Turn every operating-system error of the block into a `storage_error`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path, action) from error


def fsync_dir(folder: Path) -> None:
    """Make the entries of a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_dirs(folder: Path) -> Path:
    """Create a folder and its parents, durably.

    Raises
    ------
    StorageError
        If it cannot be created.
    """
    with as_storage_errors(folder, "create"):
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing or [folder]):
            path.mkdir(exist_ok=True)
        for path in missing:
            fsync_dir(path.parent)
    return folder


def _temporary(folder: Path, label: str = "") -> Path:
    return folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}{label}"


@contextlib.contextmanager
def _held(path: Path) -> Iterator[BinaryIO]:
    """Create a file and hold a lock on it, which the kernel releases however the process ends.

    Another process may take the file for a dead writer's and remove it before it is locked; then a new one is
    created.
    """
    while True:
        with path.open("xb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle.fileno()).st_nlink:
                yield handle
                return


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file for writing that replaces `path` only when the block ends without an error.

    The content is written beside the target under a temporary name, fsynced and renamed, and the folder is
    fsynced. On an error the temporary is removed and the previous content stays.

    Raises
    ------
    StorageError
        On any operating-system error while writing.
    """
    make_dirs(path.parent)
    temporary = _temporary(path.parent, f"-{path.name[:60]}")
    with as_storage_errors(path):
        try:
            with _held(temporary) as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
                os.replace(temporary, path)
            fsync_dir(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def publish_file(temporary: Path, target: Path) -> None:
    """Make a file that was filled over several tries durable and visible under its name.

    Raises
    ------
    StorageError
        On any operating-system error.
    """
    with as_storage_errors(target):
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, target)
        fsync_dir(target.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_file(path) as handle:
        handle.write(data)


def write_new(path: Path, data: bytes) -> bool:
    """Write a file that must not exist yet; return False, changing nothing, when it does."""
    make_dirs(path.parent)
    temporary = _temporary(path.parent)
    with as_storage_errors(path):
        try:
            with _held(temporary) as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
                os.link(temporary, path)  # unlike a rename, refuses an existing target atomically
            fsync_dir(path.parent)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
    return True


def write_by_content(folder: Path, prefix: str, fill: Callable[[BinaryIO], object]) -> str:
    """Write a file named after the SHA-256 of its content, completely or not at all, and return the name.

    It may be lost in a crash of the system: use it for files that can be made again. Several processes may write the same
    content at the same time.

    Parameters
    ----------
    folder : pathlib.Path
        Folder of the file; it must exist.
    prefix : str
        Beginning of the name.
    fill : callable
        Writes the content into the open file that it gets.

    Raises
    ------
    StorageError
        If it cannot be written, or the folder is not there.
    """
    temporary = _temporary(folder)
    with as_storage_errors(folder):
        try:
            with temporary.open("xb+") as handle:
                fill(handle)
                handle.seek(0)
                name = prefix + hashlib.file_digest(handle, "sha256").hexdigest()
            os.replace(temporary, folder / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return name


@contextlib.contextmanager
def staging_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a folder that becomes `target` in one rename when the block ends without an error.

    Parameters
    ----------
    target : pathlib.Path
        The finished folder.
    replace : bool
        Replace an earlier `target`; by default it is an error that there is one.

    Yields
    ------
    pathlib.Path
        An empty folder beside `target`; on an error it is removed and `target` is untouched.

    Raises
    ------
    StorageError
        On an operating-system error, or when `target` exists already and may not be replaced.
    """
    if target.is_symlink():
        raise StorageError(
            f"Cannot write {target}: it is a symbolic link; name the folder that it points to."
        )
    make_dirs(target.parent)
    folder = _temporary(target.parent)
    guard = folder.with_name(f"{folder.name}.lock")
    with as_storage_errors(target), _held(guard):
        try:
            folder.mkdir()
            yield folder
            _fsync_tree(folder)
            if target.exists() and not replace:
                raise StorageError(
                    f"Cannot write {target}: it exists already; a finished result is never overwritten."
                )
            if target.exists():
                _exchange(folder, target)
                shutil.rmtree(folder)
            else:
                os.rename(folder, target)
            fsync_dir(target.parent)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            guard.unlink(missing_ok=True)


def in_scratch(path: Path) -> bool:
    """Say whether a path is below a temporary folder, which ends with its process."""
    return any(part.startswith(TEMPORARY_PREFIX) for part in path.parts)


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield an empty folder that is removed when the block ends.

    Where the process dies first, `remove_stale` removes it later.

    Raises
    ------
    StorageError
        If it cannot be made.
    """
    make_dirs(parent)
    folder = _temporary(parent)
    guard = folder.with_name(f"{folder.name}.lock")
    with as_storage_errors(guard), contextlib.ExitStack() as held:
        held.callback(guard.unlink, missing_ok=True)
        held.enter_context(_held(guard))
        folder.mkdir()
        held.callback(_remove_busy, folder)
        yield folder


def _remove_busy(folder: Path) -> None:
    """Remove a folder into which others may still be writing what they had begun."""
    for _ in range(_REMOVALS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return


def _fsync_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for file in files:
            descriptor = os.open(Path(parent) / file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_dir(Path(parent))


def _exchange(first: Path, second: Path) -> None:
    """Swap two folders in one step; where the system cannot, `second` is missing for a moment."""
    at_cwd, exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except AttributeError:
        done = False
    else:
        done = renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange) == 0
    if not done:
        aside = _temporary(second.parent)
        os.rename(second, aside)
        os.rename(first, second)
        os.rename(aside, first)


def stale_temporaries(folder: Path) -> list[Path]:
    """List the temporaries in `folder` whose writer is dead; a live writer holds a lock.

    Subfolders are not searched, as they may hold other people's files. Temporaries of another user are left out.
    """
    found = []
    for path in _temporaries(folder):
        with _claimed(path) as dead:
            if dead:
                found.append(path)
    return found


def remove_stale(folder: Path) -> list[Path]:
    """Remove the `stale_temporaries` of a folder.

    Returns
    -------
    list of pathlib.Path
        What was removed.

    Raises
    ------
    StorageError
        If one cannot be removed.
    """
    removed = []
    for path in _temporaries(folder):
        with as_storage_errors(path, "remove"), _claimed(path) as dead:
            if dead:
                _remove(path)
                _guard(path).unlink(missing_ok=True)
                removed.append(path)
    return removed


def _temporaries(folder: Path) -> list[Path]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        names = []
    return [folder / name for name in sorted(names) if _TEMPORARY.fullmatch(name)]


def _guard(path: Path) -> Path:
    """Return the file whose lock a temporary's writer holds: the file itself, or the one beside a folder."""
    return path.with_name(f"{path.name}.lock") if path.is_dir() else path


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Lock a temporary and yield True if its writer is dead; a folder without its lock file has no writer."""
    with contextlib.ExitStack() as stack:
        try:
            handle = stack.enter_context(_guard(path).open("rb"))
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            dead = True
        except FileNotFoundError:
            dead = path.exists()
        except (BlockingIOError, PermissionError):
            dead = False
        yield dead


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=_unless_missing)
    else:
        path.unlink(missing_ok=True)


def _unless_missing(_: object, __: str, found: tuple[Any, BaseException, Any]) -> None:
    """Raise an error of rmtree, unless it is that another process has removed the file first."""
    if not isinstance(found[1], FileNotFoundError):
        raise found[1]


def remove_folder(folder: Path) -> None:
    """Remove a folder: one rename takes it away, and what a crash then leaves is a stale temporary.

    Raises
    ------
    StorageError
        On any operating-system error.
    """
    doomed = _temporary(folder.parent)
    guard = doomed.with_name(f"{doomed.name}.lock")
    with as_storage_errors(folder, "remove"), _held(guard):
        try:
            os.rename(folder, doomed)
            fsync_dir(folder.parent)
            _remove(doomed)
        finally:
            guard.unlink(missing_ok=True)
