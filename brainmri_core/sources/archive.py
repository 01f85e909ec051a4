"""Local archives and folders: the whole listing is checked before a byte is written."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from brainmri_core.config.data import ArchiveLimits
from brainmri_core.errors import SourceError
from brainmri_core.sources.names import (
    LEFT_OUT_FOLDERS,
    RAISE,
    check_collisions,
    is_litter,
    safe_name,
    shown_name,
    too_many,
)
from brainmri_core.storage import storage_error

_CHUNK = 1 << 20
_LOCAL_HEADER = 30
_ENCRYPTED = 0x1 | 0x40
_END = b"PK\5\6"
_LONGEST_ENTRY = 4096
_LONGEST_END = 76 + 22 + (1 << 16)
Progress = Callable[[int, int], None]


def find_archive(dataset: str, explicit: Path | None, archives: Path | None) -> Path | None:
    """Return the local archive or folder to use for a data set, if there is one.

    Parameters
    ----------
    dataset : str
        Key, owner/slug.
    explicit : pathlib.Path or None
        What the configuration names, a file or a folder; it must exist.
    archives : pathlib.Path or None
        Folder that may hold ``<owner>__<slug>.zip`` or ``<slug>.zip``; the first goes before the second.

    Raises
    ------
    SourceError
        If `explicit` or `archives` is named and is not there.
    StorageError
        If the system does not let it be looked at.
    """
    looked_at = explicit or archives
    try:
        if explicit is not None:
            if not (explicit.is_file() or explicit.is_dir()):
                what = "is neither a file nor a folder" if explicit.exists() else "does not exist"
                raise SourceError(
                    f"The archive {shown_name(explicit)} {what}; check fetch.archive or --archive."
                )
            return explicit
        if archives is None:
            return None
        if not archives.is_dir():
            raise SourceError(
                f"BRAINMRI_ARCHIVES names {shown_name(archives)}, which is no folder; correct or unset it."
            )
        owner, _, slug = dataset.partition("/")
        candidates = (archives / f"{owner}__{slug}.zip", archives / f"{slug}.zip")
        return next((path for path in candidates if path.is_file()), None)
    except OSError as error:
        assert looked_at is not None
        raise storage_error(error, looked_at, "read") from error


def extract_archive(
    archive: Path, dest: Path, limits: ArchiveLimits, *, progress: Progress | None = None
) -> list[str]:
    """Unpack a zip archive into an existing empty folder.

    Archives inside the archive stay packed, so that no limit can be got round by nesting; nothing in this project looks
    into them. Files that systems leave behind (``__MACOSX``, ``.DS_Store``, ``Thumbs.db``, ``._*``) are left out.

    Parameters
    ----------
    archive : pathlib.Path
        The zip file, stored or deflated.
    dest : pathlib.Path
        Staging folder.
    limits : ArchiveLimits
        Most entries, bytes and compression ratio accepted.
    progress : callable or None
        Called with the bytes written and their total after every piece.

    Returns
    -------
    list of str
        POSIX paths of the files written, in the archive's order.

    Raises
    ------
    SourceError
        If the file is no whole zip archive, or an entry is encrypted, no plain file, leaves the folder, collides with
        another, breaks a limit, lies about its size, or fails its checksum.
    StorageError
        If the archive cannot be read or the files cannot be written.
    """
    shown = shown_name(archive)
    try:
        if archive.stat().st_size > limits.max_archive_bytes:
            raise SourceError(
                f"{shown} is larger than fetch.limits.max_archive_bytes ({limits.max_archive_bytes}); {RAISE}."
            )
        check_count(archive, limits)
        with zipfile.ZipFile(archive) as opened:
            entries = _checked(opened.infolist(), archive, limits)
            total = sum(info.file_size for info, _ in entries)
            done = 0
            for info, target in entries:
                for written in _extract(opened, info, dest / target, shown):
                    done += written
                    if progress is not None:
                        progress(done, total)
            return [target for _, target in entries]
    except OSError as error:
        raise storage_error(error, archive, "unpack") from error
    except MemoryError as error:  # no fault of the archive's: its listing has a limit
        raise storage_error(OSError(errno.ENOMEM, ""), archive, "unpack") from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OverflowError,
    ) as error:
        if isinstance(error, zipfile.BadZipFile) and not zipfile.is_zipfile(archive):
            raise SourceError(
                f"{shown} is not a zip archive or is cut short; download it again or name another file."
            ) from None
        raise SourceError(f"{shown} is damaged ({shown_name(str(error))}); download it again.") from None


def check_count(archive: Path, limits: ArchiveLimits) -> None:
    """Refuse too many entries before `zipfile` reads all of them into memory; anything else it judges itself."""
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - _LONGEST_END))
        began, tail = file.tell(), file.read()
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
    listing: list[zipfile.ZipInfo], archive: Path, limits: ArchiveLimits
) -> list[tuple[zipfile.ZipInfo, str]]:
    """Check every entry of a listing and return the files to unpack with their paths."""
    shown = shown_name(archive)
    kept: list[tuple[zipfile.ZipInfo, str]] = []
    for info in listing:
        _check_kind(info, shown)
        # zipfile ends a name at a NUL; orig_filename still has it.
        name = safe_name(info.filename, info.orig_filename, shown)
        is_folder = info.filename.endswith(("/", "\\"))
        if not is_folder and not is_litter(name):
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

    No more than the declared size is ever unpacked; an entry that holds more fails its checksum.
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


def list_folder(source: Path, limits: ArchiveLimits) -> list[str]:
    """List the files of a local folder, after the same checks as an archive's listing.

    Returns
    -------
    list of str
        Sorted POSIX paths below `source`.

    Raises
    ------
    SourceError
        If it is empty, breaks a limit, or holds a name that would be refused in an archive, a symbolic link to a
        folder or out of it, or something that is no plain file.
    StorageError
        If it cannot be read.
    """
    base, shown = source.resolve(), f"The folder {shown_name(source)}"
    names: list[str] = []
    total = below = 0
    try:
        for here, folders, files in os.walk(base, onerror=_raise):
            folders[:] = sorted(name for name in folders if name not in LEFT_OUT_FOLDERS)
            inside = set(folders)
            for path in (Path(here) / name for name in folders + sorted(files)):
                name = path.relative_to(base).as_posix()
                if path.is_symlink() and (path.is_dir() or not _leads_below(path, base)):
                    raise SourceError(
                        f"{shown} holds {shown_name(name)!r}, a symbolic link to a folder or out of it; put what it points to "
                        "in its place."
                    )
                if (below := below + 1) > limits.max_files:
                    raise SourceError(too_many(shown, limits))
                if path.name in inside or is_litter(name):
                    continue
                if "\\" in name:
                    raise SourceError(
                        f"{shown} holds {shown_name(name)!r}; a backslash parts folders on other systems: rename it, or "
                        "give fetch.archive the zip that it came from."
                    )
                if not path.is_file():
                    raise SourceError(
                        f"{shown} holds {shown_name(name)!r}, which is no plain file; remove it."
                    )
                size = path.stat().st_size
                total += size
                if size > limits.max_file_bytes or total > limits.max_total_bytes:
                    raise SourceError(
                        f"{shown} is larger than fetch.limits allows at {shown_name(name)!r}; {RAISE}."
                    )
                names.append(safe_name(name, name, shown))
    except OSError as error:
        raise storage_error(error, source, "read") from error
    if not names:
        raise SourceError(f"{shown} is empty; name another one.")
    check_collisions(names, shown, limits)
    return sorted(names)


def _leads_below(path: Path, base: Path) -> bool:
    try:
        return path.resolve().is_relative_to(base)
    except RuntimeError:  # links in a circle
        return False


def _raise(error: OSError) -> None:
    raise error


def copy_tree(source: Path, dest: Path, limits: ArchiveLimits) -> list[str]:
    """Copy a local folder as if it were an unpacked archive; see `list_folder` for what is refused.

    Parameters
    ----------
    source : pathlib.Path
        The folder.
    dest : pathlib.Path
        Staging folder outside `source`; made if need be.
    limits : ArchiveLimits
        Most files and bytes accepted.

    Returns
    -------
    list of str
        POSIX paths of the files written.

    Raises
    ------
    SourceError
        If the folder cannot be taken, or `dest` lies inside it.
    StorageError
        If a file cannot be read or written.
    """
    if dest.resolve().is_relative_to(source.resolve()):
        raise SourceError(
            f"The folder {shown_name(source)} holds the place its copy goes to ({shown_name(dest)}); name the data set's own folder."
        )
    names = list_folder(source, limits)
    for name in names:
        target = dest / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target)
        except OSError as error:
            raise storage_error(error, target) from error
    return names
