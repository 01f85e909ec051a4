"""Local folders as data sets: they are checked like the listing of an archive before a byte is copied."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from brainmri_core.config.data import ArchiveLimits
from brainmri_core.errors import SourceError
from brainmri_core.project.foreign_names import (
    LEFT_OUT_FOLDERS,
    RAISE,
    check_collisions,
    is_litter,
    safe_name,
    shown_name,
    too_many,
)
from brainmri_core.system.storage import storage_error


def list_folder(
    source: Path,
    limits: ArchiveLimits,
    litter: list[str] | None = None,
    *,
    modified_before: float | None = None,
    too_new: list[str] | None = None,
) -> list[str]:
    """List the files of a local folder, after the same checks as an archive's listing.

    Parameters
    ----------
    source : pathlib.Path
        The folder.
    limits : ArchiveLimits
        Upper limits of files and bytes.
    litter : list of str or None
        The names of files that operating systems leave behind are appended to it; they are not listed.
    modified_before : float or None
        List only files last changed at this time (seconds since 1970) or before; None lists all.
    too_new : list of str or None
        The names of files changed later are appended to it.

    Returns
    -------
    list of str
        Sorted POSIX paths below `source`.

    Raises
    ------
    SourceError
        If the folder is empty, exceeds a limit, or holds a name that would be refused in an archive, a symbolic link to a
        folder or out of it, or something that is not a regular file.
    StorageError
        If it cannot be read.
    """
    base, shown = source.resolve(), f"The folder {shown_name(source)}"
    names: list[str] = []
    left = [] if litter is None else litter
    late = [] if too_new is None else too_new
    total = below = 0
    try:
        for here, folders, files in os.walk(base, onerror=_raise):
            for name in LEFT_OUT_FOLDERS & set(folders):
                left += _files_below(Path(here) / name, base)
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
                if path.name in inside:
                    continue
                if is_litter(name):
                    left.append(name)
                    continue
                if "\\" in name:
                    raise SourceError(
                        f"{shown} holds {shown_name(name)!r}; a backslash separates folders on other systems: rename it, or "
                        "give fetch.archive the zip that it came from."
                    )
                if not path.is_file():
                    raise SourceError(
                        f"{shown} holds {shown_name(name)!r}, which is not a regular file; remove it."
                    )
                status = path.stat()
                if modified_before is not None and status.st_mtime > modified_before:
                    late.append(name)
                    continue
                size = status.st_size
                total += size
                if size > limits.max_file_bytes or total > limits.max_total_bytes:
                    raise SourceError(
                        f"{shown} is larger than fetch.limits allows at {shown_name(name)!r}; {RAISE}."
                    )
                names.append(safe_name(name, name, shown))
    except OSError as error:
        raise storage_error(error, source, "read") from error
    if not names:
        why = f"holds nothing but {len(late)} files that are still being written" if late else "is empty"
        raise SourceError(f"{shown} {why}; {'wait for them' if late else 'name another one'}.")
    check_collisions(names, shown, limits)
    return sorted(names)


def _files_below(folder: Path, base: Path) -> list[str]:
    return [
        (Path(here) / name).relative_to(base).as_posix()
        for here, _, files in os.walk(folder)
        for name in files
    ]


def _leads_below(path: Path, base: Path) -> bool:
    try:
        return path.resolve().is_relative_to(base)
    except RuntimeError:  # links in a circle
        return False


def _raise(error: OSError) -> None:
    raise error


def copy_tree(
    source: Path,
    dest: Path,
    limits: ArchiveLimits,
    litter: list[str] | None = None,
    *,
    modified_before: float | None = None,
) -> list[str]:
    """Copy a local folder as if it were an unpacked archive; see `list_folder` for what is refused.

    Parameters
    ----------
    source : pathlib.Path
        The folder.
    dest : pathlib.Path
        Staging folder outside `source`; made if need be.
    limits : ArchiveLimits
        Upper limits of files and bytes.
    litter : list of str or None
        The names of the files left out are appended to it.
    modified_before : float or None
        As in `list_folder`.

    Returns
    -------
    list of str
        POSIX paths of the files written.

    Raises
    ------
    SourceError
        If the folder is refused, or `dest` lies inside it.
    StorageError
        If a file cannot be read or written.
    """
    if dest.resolve().is_relative_to(source.resolve()):
        raise SourceError(
            f"The folder {shown_name(source)} contains the folder that it would be copied to ({shown_name(dest)}); name the data "
            "set's own folder."
        )
    names = list_folder(source, limits, litter, modified_before=modified_before)
    for name in names:
        target = dest / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target)
        except OSError as error:
            raise storage_error(error, target) from error
    return names
