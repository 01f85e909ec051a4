"""Find the archive or folder of a data set on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from brainmri_core.config.data import FetchConfig
from brainmri_core.errors import SourceError
from brainmri_core.project.catalogue import DatasetEntry, load_catalogue
from brainmri_core.project.foreign_names import compared, shown_name
from brainmri_core.project.job import Job
from brainmri_core.project.layout import ARCHIVES_VARIABLE
from brainmri_core.system.storage import storage_error

# Only zip archives and folders are read; the other archives are found so that the error can say what to do.
_ENDINGS = (".zip", "", ".tar", ".tar.gz", ".tgz", ".7z", ".rar")
_AGAIN = re.compile(r" ?\(\d+\)(?=(\.\w+)*$)")  # what browsers add to the name of a second download
_BROWSER = re.compile(r"archive ?(\(\d+\))?\.zip")


def find_archive(
    dataset: str, explicit: Path | None, archives: Path | None, further: Sequence[str] = ()
) -> Path | None:
    """Return the local archive or folder to use for a data set, if there is one.

    Parameters
    ----------
    dataset : str
        Key, owner/slug.
    explicit : pathlib.Path or None
        File or folder that the configuration names; it must exist.
    archives : pathlib.Path or None
        Folder that may hold ``<owner>__<slug>.zip`` or ``<slug>.zip``, or a folder of one of these names. The name with
        the owner comes first, and a zip comes before a folder.
    further : sequence of str
        Other names of the data set's archive, from its catalogue entry.

    Raises
    ------
    SourceError
        If `explicit` or `archives` is given and does not exist.
    StorageError
        If the operating system refuses to read them.
    """
    searched = explicit or archives
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
                f"BRAINMRI_ARCHIVES names {shown_name(archives)}, which is not a folder; correct or unset it."
            )
        there = {compared(path.name): path for path in sorted(archives.iterdir(), reverse=True)}
        candidates = [there.get(compared(name)) for name in names_looked_for(dataset, further)]
        return next(
            (path for path in candidates if path is not None and (path.is_file() or path.is_dir())), None
        )
    except OSError as error:
        assert searched is not None
        raise storage_error(error, searched, "read") from error


def archives_folder(entry: DatasetEntry) -> Path | None:
    """Return the folder of archives that ``BRAINMRI_ARCHIVES`` names; generated data has none."""
    folder = os.environ.get(ARCHIVES_VARIABLE)
    return Path(folder).expanduser() if folder and entry.source != "phantom" else None


def local_archive(config: FetchConfig, entry: DatasetEntry) -> Path | None:
    """Return the local archive or folder that `fetch` takes a data set from, if any; errors as in `find_archive`."""
    named = Path(config.archive).expanduser() if config.archive else None
    return find_archive(entry.key, named, archives_folder(entry), entry.archives)


def choose_archive(config: FetchConfig, job: Job) -> Path | None:
    """Return the local archive or folder that `fetch` uses, if any; errors as in `find_archive`.

    It warns where the archive may be of another data set, and where the folder of archives does not hold the data set, before
    the network is used.
    """
    path, archives = local_archive(config, job.entry), archives_folder(job.entry)
    if path is not None and config.archive:
        _warn_of_anothers(path, job)
    if path is not None or archives is None:
        return path
    names = ", ".join(names_looked_for(job.dataset, job.entry.archives))
    path = saved_by_browser(archives)
    if path is None:
        job.log.warning(
            f"{ARCHIVES_VARIABLE} names a folder that holds no copy of the data set",
            folder=shown_name(archives),
            looked_for=names,
        )
    else:
        job.log.warning(
            f"using {path.name}, the name that browsers give any data set; rename it so that no other takes it",
            folder=shown_name(archives),
            looked_for=names,
        )
    return path


def _warn_of_anothers(path: Path, job: Job) -> None:
    """Warn where an archive that the user names may be of another data set."""
    others = _others_of_this_name(path, job.entry)
    if others:
        job.log.warning(
            f"{path.name} has the name of {' and '.join(others)}, but its images are taken as those of {job.dataset}; "
            f"if that is wrong, give --dataset {others[0]}"
        )
    elif job.entry.source == "phantom":
        job.log.warning(
            f"{job.dataset} is a built-in synthetic data set, but its images are taken from {path.name}; if that is wrong, "
            "name the archive's data set with --dataset OWNER/SLUG"
        )


def names_looked_for(dataset: str, further: Sequence[str] = ()) -> list[str]:
    """Return the names that a data set's archive or folder may have, in order of preference."""
    owner, _, slug = dataset.partition("/")
    return [*(f"{stem}{ending}" for ending in _ENDINGS for stem in (f"{owner}__{slug}", slug)), *further]


def _others_of_this_name(path: Path, entry: DatasetEntry) -> list[str]:
    """Return the other data sets of the catalogue whose archive has this name, if it is not one of the entry's own."""
    name = _AGAIN.sub("", compared(path.name))

    def named(item: DatasetEntry) -> bool:
        return name in map(compared, names_looked_for(item.key, item.archives))

    return [] if named(entry) else [key for key, item in load_catalogue().items() if named(item)]


def is_browser_name(path: Path) -> bool:
    """Say whether a file has the name under which a browser saves any data set, ``archive.zip``."""
    return _BROWSER.fullmatch(compared(path.name)) is not None


def saved_by_browser(archives: Path) -> Path | None:
    """Return the file with such a name in a folder, if there is exactly one."""
    try:
        found = [path for path in archives.iterdir() if is_browser_name(path) and path.is_file()]
    except OSError as error:
        raise storage_error(error, archives, "read") from error
    return found[0] if len(found) == 1 else None
