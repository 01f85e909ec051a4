"""Durable files: atomic writes, folders that appear in one rename, and checksums.

The only module that renames or fsyncs. A reader sees the old complete state or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from brainmri_core.errors import IntegrityError, StorageError

TEMPORARY_PREFIX = ".tmp-"
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
def _naming(path: Path, action: str = "write") -> Iterator[None]:
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
    with _naming(folder, "create"):
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
    """Create a file under a lock that the kernel releases when the process dies, however it dies.

    Whoever clears away dead processes' files may come between creating and locking; then it is created anew.
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
    with _naming(path):
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
    with _naming(target):
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


def json_text(value: Any) -> str:
    """Serialise to indented JSON; NaN and infinity are an error, since they are not JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document atomically."""
    write_bytes(path, json_text(value).encode())


def write_new(path: Path, data: bytes) -> bool:
    """Write a file that must not exist yet; return False, changing nothing, when it does."""
    make_dirs(path.parent)
    temporary = _temporary(path.parent)
    with _naming(path):
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


def read_json(path: Path) -> Any:
    """Read a JSON document.

    Raises
    ------
    IntegrityError
        If the file is not UTF-8 JSON.
    StorageError
        If it cannot be read.
    """
    try:
        with _naming(path, "read"):
            text = path.read_bytes().decode()
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
        if "\\ud" in text.lower():  # half a character, which nobody could write again, may be escaped in it
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"The file {path} is not valid JSON ({error}); restore it or run its stage again."
        ) from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number of JSON")
    return value


@contextlib.contextmanager
def staging_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a folder that becomes `target` in one rename when the block ends without an error.

    Parameters
    ----------
    target : pathlib.Path
        Folder to be.
    replace : bool
        Take the place of an earlier `target`, which is then removed.

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
    with _naming(target), _held(guard):
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


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield an empty folder for what nobody keeps; it goes when the block ends, that of a dead process with `remove_stale`.

    Raises
    ------
    StorageError
        If it cannot be made.
    """
    make_dirs(parent)
    folder = _temporary(parent)
    guard = folder.with_name(f"{folder.name}.lock")
    with _naming(guard), contextlib.ExitStack() as held:
        held.callback(guard.unlink, missing_ok=True)
        held.enter_context(_held(guard))
        folder.mkdir()
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


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
    """Swap two folders in one step; where the system cannot, the second is away for a moment."""
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
    """List temporaries in `folder` whose writer is dead; live ones hold a lock.

    Folders below are not looked into: they may hold anybody's files. What another user owns is left out.
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
        with _naming(path, "remove"), _claimed(path) as dead:
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
    """Take a temporary over if its writer is dead; a folder without its guard belongs to nobody."""
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
    """Let an error of rmtree pass on, unless somebody else has removed the file first."""
    if not isinstance(found[1], FileNotFoundError):
        raise found[1]


def remove_folder(folder: Path) -> None:
    """Remove a result: it disappears in one rename, and what a crash leaves of it is a stale temporary.

    Raises
    ------
    StorageError
        On any operating-system error.
    """
    doomed = _temporary(folder.parent)
    guard = doomed.with_name(f"{doomed.name}.lock")
    with _naming(folder, "remove"), _held(guard):
        try:
            os.rename(folder, doomed)
            fsync_dir(folder.parent)
            _remove(doomed)
        finally:
            guard.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal text."""
    digest = hashlib.sha256()
    with _naming(path, "read"), open(path, "rb", buffering=0) as handle:
        while part := handle.read(
            1 << 20
        ):  # hashlib.file_digest clears 256 KiB first, whatever the file's size
            digest.update(part)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def check_sha256(path: Path, expected: str, what: str) -> None:
    """Raise IntegrityError unless a file's SHA-256 is the recorded one."""
    if not path.is_file():
        raise IntegrityError(f"The {what} {path} is missing; run the stage that makes it again.")
    if sha256_file(path) != expected:
        raise IntegrityError(
            f"The {what} {path} was changed after it was recorded; run the stage that makes it again."
        )
