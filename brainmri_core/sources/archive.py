"""Zip archives: the whole listing is checked before a byte is written."""

from __future__ import annotations

import errno
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from brainmri_core.config.data import ArchiveLimits
from brainmri_core.config.formats import HEAD, foreign_content
from brainmri_core.errors import SourceError
from brainmri_core.project.foreign_names import (
    RAISE,
    check_collisions,
    compared,
    is_litter,
    safe_name,
    shown_name,
    too_many,
)
from brainmri_core.system.storage import storage_error

# What zipfile raises on a damaged archive.
BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)
_CHUNK = 1 << 20
_LOCAL_HEADER = 30
_ENCRYPTED = 0x1 | 0x40
_END = b"PK\5\6"
_LONGEST_ENTRY = 4096
_LONGEST_END = 76 + 22 + (1 << 16)
Progress = Callable[[int, int], None]


def extract_archive(
    archive: Path,
    dest: Path,
    limits: ArchiveLimits,
    *,
    progress: Progress | None = None,
    litter: list[str] | None = None,
    shown: str | None = None,
) -> list[str]:
    """Unpack a zip archive into an existing empty folder.

    Archives inside the archive stay packed; see `unpack_inner`. Files that operating systems leave behind (``__MACOSX``,
    ``.DS_Store``, ``Thumbs.db``, ``._*``) are left out.

    Parameters
    ----------
    archive : pathlib.Path
        The zip file, stored or deflated.
    dest : pathlib.Path
        Staging folder.
    limits : ArchiveLimits
        Upper limits of entries, bytes and compression ratio.
    progress : callable or None
        Called with the bytes written and their total after every piece.
    litter : list of str or None
        The names of the files left out are appended to it.
    shown : str or None
        Name of the archive in error messages; None means its path.

    Returns
    -------
    list of str
        POSIX paths of the files written, in the archive's order.

    Raises
    ------
    SourceError
        If the file is not a complete zip archive, or an entry is encrypted, is not a regular file, leaves the folder,
        collides with another, exceeds a limit, declares a wrong size, or fails its checksum.
    StorageError
        If the archive cannot be read or the files cannot be written.
    """
    with _checked_archive(archive, limits, litter, shown or shown_name(archive)) as (opened, entries):
        total = sum(info.file_size for info, _ in entries)
        done = 0
        for info, target in entries:
            for written in _extract(opened, info, dest / target, shown or shown_name(archive)):
                done += written
                if progress is not None:
                    progress(done, total)
        return [target for _, target in entries]


def list_archive(archive: Path, limits: ArchiveLimits) -> list[str]:
    """List the files of a zip archive after the checks that come before unpacking.

    Returns
    -------
    list of str
        POSIX paths in the archive's order, without the files that systems leave behind.

    Raises
    ------
    SourceError
        If unpacking would refuse the archive for its listing.
    StorageError
        If the archive cannot be read.
    """
    with _checked_archive(archive, limits, None, shown_name(archive)) as (_, entries):
        return [target for _, target in entries]


@contextmanager
def _checked_archive(
    archive: Path, limits: ArchiveLimits, litter: list[str] | None, shown: str
) -> Iterator[tuple[zipfile.ZipFile, list[tuple[zipfile.ZipInfo, str]]]]:
    """Open an archive and check its listing; errors inside the block become one sentence about the archive."""
    try:
        if archive.stat().st_size > limits.max_archive_bytes:
            raise SourceError(
                f"{shown} is larger than fetch.limits.max_archive_bytes ({limits.max_archive_bytes}); {RAISE}."
            )
        check_count(archive, limits)
        with zipfile.ZipFile(archive) as opened:
            yield opened, _checked(opened.infolist(), shown, limits, [] if litter is None else litter)
    except OSError as error:
        raise storage_error(error, archive, "unpack") from error
    except MemoryError as error:  # not the archive's fault: the size of its listing is limited
        raise storage_error(OSError(errno.ENOMEM, ""), archive, "unpack") from error
    except BROKEN_ZIP as error:
        if isinstance(error, zipfile.BadZipFile) and not zipfile.is_zipfile(archive):
            raise SourceError(f"{shown} {_not_a_zip(archive)}.") from None
        raise SourceError(f"{shown} is damaged ({shown_name(str(error))}); download it again.") from None


def _not_a_zip(path: Path) -> str:
    """Describe a file that is not a zip archive, and say what to do."""
    with path.open("rb") as file:
        what = foreign_content(file.read(HEAD))
    if what is not None and what.endswith("archive") and what != "a zip archive":
        return f"is {what}, and only zip archives are opened; unpack it and give fetch.archive (or --archive) the folder"
    return "is not a zip archive or is cut short; download it again or name another file"


def check_count(archive: Path, limits: ArchiveLimits) -> None:
    """Refuse an archive with too many entries before `zipfile` reads the whole listing into memory.

    All other damage is left to `zipfile`.
    """
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - _LONGEST_END))
        began, tail = file.tell(), file.read()
        # The end record is 22 bytes long, plus a comment; with zip64, a locator (20 bytes) and a record (56) precede it.
        bare = tail[-22:-18] == _END and tail.endswith(b"\0\0")
        end = len(tail) - 22 if bare else tail.rfind(_END)
        if end < 0 or len(tail) < end + 22:
            return
        (size,) = struct.unpack_from("<L", tail, end + 12)
        if tail[max(0, end - 20) :].startswith(b"PK\6\7") and tail[max(0, end - 76) :].startswith(b"PK\6\6"):
            end -= 76
            (size,) = struct.unpack_from("<Q", tail, end + 40)
        start = max(0, began + end - size)
        file.seek(start)
        entries = 0
        while file.tell() - start < size:
            header = file.read(46)
            if not header.startswith(b"PK\1\2") or len(header) < 46:
                raise zipfile.BadZipFile("its listing is damaged")
            if (entries := entries + 1) > limits.max_files or size > limits.max_files * _LONGEST_ENTRY:
                raise SourceError(too_many(shown_name(archive), limits))
            file.seek(sum(struct.unpack_from("<HHH", header, 28)), os.SEEK_CUR)


def _checked(
    listing: list[zipfile.ZipInfo], shown: str, limits: ArchiveLimits, litter: list[str]
) -> list[tuple[zipfile.ZipInfo, str]]:
    """Check every entry of a listing and return the files to unpack with their paths."""
    kept: list[tuple[zipfile.ZipInfo, str]] = []
    for info in listing:
        _check_kind(info, shown)
        # zipfile ends a name at a NUL; orig_filename still has it.
        name = safe_name(info.filename, info.orig_filename, shown)
        if info.filename.endswith(("/", "\\")):
            continue
        if is_litter(name):
            litter.append(name)
        else:
            _check_sizes(info, shown, limits)
            kept.append((info, name))
    if not kept:
        raise SourceError(f"{shown} is empty; download it again or name another file.")
    total = sum(info.file_size for info, _ in kept)
    if total > limits.max_total_bytes:
        raise SourceError(
            f"{shown} unpacks to {total} bytes, more than fetch.limits.max_total_bytes ({limits.max_total_bytes}); {RAISE}."
        )
    check_collisions((name for _, name in kept), shown, limits)
    end = 0
    for info in sorted(listing, key=lambda info: info.header_offset):
        if info.header_offset < 0:
            raise zipfile.BadZipFile("its beginning is missing")
        if info.header_offset < end:
            raise SourceError(
                f"{shown} holds entries that share their bytes ({shown_name(info.filename)!r}); it is a zip bomb: do not trust it."
            )
        end = info.header_offset + _LOCAL_HEADER + info.compress_size
    return kept


def _check_kind(info: zipfile.ZipInfo, shown: str) -> None:
    name = shown_name(info.filename)
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise SourceError(
            f"{shown} holds {name!r}, which is a link or a device and not a file; do not trust this archive."
        )
    if info.flag_bits & _ENCRYPTED:
        raise SourceError(
            f"{shown} is encrypted (entry {name!r}); unpack it by hand and give fetch.archive the folder."
        )
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise SourceError(
            f"{shown} packs {name!r} with the uncommon method {info.compress_type}; unpack it by hand and give "
            "fetch.archive the folder."
        )


def _check_sizes(info: zipfile.ZipInfo, shown: str, limits: ArchiveLimits) -> None:
    name = shown_name(info.filename)
    if info.file_size > limits.max_file_bytes:
        raise SourceError(
            f"{shown} holds {name!r} of {info.file_size} bytes, more than fetch.limits.max_file_bytes "
            f"({limits.max_file_bytes}); {RAISE}."
        )
    if info.file_size > limits.max_ratio * max(info.compress_size, 1) and info.file_size > _CHUNK:
        raise SourceError(
            f"{shown} holds {name!r}, which unpacks to more than {limits.max_ratio:g} times its size; it looks like a zip "
            "bomb: do not trust it, or raise fetch.limits.max_ratio."
        )


def _extract(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, shown: str) -> Iterator[int]:
    """Write one entry and yield the sizes of its pieces.

    zipfile unpacks no more than the declared size; an entry that holds more fails its checksum.
    """
    left = info.file_size
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(info) as source, target.open("xb") as sink:
            while chunk := source.read(_CHUNK):
                left -= len(chunk)
                sink.write(chunk)
                yield len(chunk)
    except OSError as error:
        raise storage_error(error, target) from error
    if left:
        raise SourceError(
            f"{shown} holds less of {shown_name(info.filename)!r} than it declares; download it again."
        )


def unpack_inner(folder: Path, packed: int, limits: ArchiveLimits, litter: list[str]) -> None:
    """Replace each zip archive in an unpacked folder by a folder of its name with its content, one level deep.

    Parameters
    ----------
    folder : pathlib.Path
        Folder that a data set was unpacked or copied to.
    packed : int
        Bytes of the outer archive, or of the folder.
    limits : ArchiveLimits
        Upper limits for the whole folder, the content of all inner archives included.
    litter : list of str
        The names of the files left out are appended to it, relative to `folder`.

    Raises
    ------
    SourceError, StorageError
        As in `extract_archive`.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path: path.stat().st_size for path in files}
    inner = [path for path in files if path.suffix.lower() == ".zip" and zipfile.is_zipfile(path)]
    left = min(limits.max_total_bytes, int(limits.max_ratio * max(packed, _CHUNK))) - sum(sizes.values())
    count = len(files)
    for path in inner:
        name = path.relative_to(folder).as_posix()
        target = path.with_suffix("")
        if any(compared(other.name) == compared(target.name) for other in path.parent.iterdir()):
            target = path.with_name(f"{path.stem} (unpacked)")
        rest = limits.model_copy(
            update={"max_total_bytes": max(1, left), "max_files": max(1, limits.max_files - count)}
        )
        inside: list[str] = []
        target.mkdir()
        written = extract_archive(
            path, target, rest, litter=inside, shown=f"The inner archive {shown_name(name)}"
        )
        path.unlink()
        below = target.relative_to(folder).as_posix()
        litter += [f"{below}/{item}" for item in inside]
        left -= sum((target / item).stat().st_size for item in written)
        count += len(written)
    if inner:
        names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        check_collisions(names, shown_name(folder.name), limits)
