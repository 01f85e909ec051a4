"""Garbage collection: find results that nothing refers to any more, and remove them on request.

A result is kept if one of these refers to it: a pointer (``latest.json`` or a history copy), the manifest of a run,
successful or not, the champion, ``best.pth`` (a copy of a training's checkpoint), or a stage that is running now. So only
what crashed, failed or interrupted runs left is removed. A result in the history stays until its history copy and the
folder of its run are deleted by hand. Whatever a run could resume from also stays: the state of a training, and the
trials of a study for as long as a pointer to its data exists.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from brainmri_core.config import PipelineConfig
from brainmri_core.errors import BusyError
from brainmri_core.project.layout import FOLDS_FOLDER, RESERVED_NAMES, Layout
from brainmri_core.project.references import referenced, result_folders
from brainmri_core.studies.record import OUTCOMES_FOLDER, REPORT_FILE, data_of
from brainmri_core.system.checksums import sha256_file
from brainmri_core.system.locks import exclusive
from brainmri_core.system.storage import TEMPORARY_PREFIX, remove_folder, remove_stale, stale_temporaries

_MARKS = (
    "source.json",
    "samples.parquet",
    "report.json",
    "history.parquet",
    "metrics.json",
    "leaderboard.csv",
    "generalisation.csv",
    "record.json",
    REPORT_FILE,
    "best.pth",
    "last.pth",
)


class Garbage(BaseModel):
    """Files and folders that nothing refers to.

    Attributes
    ----------
    results : list of pathlib.Path
        Result folders of runs that left no pointer, and studies that nothing refers to and no run can resume.
    temporaries : list of pathlib.Path
        Half-written files and folders of dead processes.
    size : int
        Total size of both in bytes.
    """

    model_config = ConfigDict(frozen=True)

    results: list[Path]
    temporaries: list[Path]
    size: int


def collect_garbage(layout: Layout, config: PipelineConfig | None = None, *, dry_run: bool = True) -> Garbage:
    """Find what nothing refers to; remove it unless this is a dry run.

    Parameters
    ----------
    layout : Layout
        The project.
    config : PipelineConfig or None
        Names the output folders; the defaults where None. Folders outside the project root are left alone.
    dry_run : bool
        If true, change nothing.

    Returns
    -------
    Garbage
        What was, or would be, removed.

    Raises
    ------
    IntegrityError
        If a pointer or manifest cannot be read: what it refers to is unknown, so nothing is removed.
    """
    config = config or PipelineConfig()
    raw = layout.configured(config.fetch.cache_dir) / "raw"
    with contextlib.ExitStack() as locks:
        # A fetch may use an unpacked folder without writing to it: none may begin between listing and removal.
        fetching = [folder for folder in sorted(raw.glob("*/*")) if not _locked(layout, folder, locks)]
        # The folders are listed before the pointers are read, so that a result that appears later is not on the list.
        candidates = [path for base in result_folders(layout, config) for path in _results(base)]
        studies = list(_studies(layout))
        candidates += [path for study in studies for path in _with_marks(study / OUTCOMES_FOLDER)]
        keep = referenced(layout, raw)
        for folder in fetching:
            keep.add(folder)
        newest = layout.configured(config.train.io.out_models) / "best.pth"
        for path in candidates:
            if _same(newest, path / "best.pth"):
                keep.add(path)
        ended = [study for study in studies if data_of(study) not in (None, *keep.data)]
        unused = {path for path in [*candidates, *ended] if not keep.holds(path)}
        results = sorted(path for path in unused if unused.isdisjoint(path.parents))
        temporaries = [
            path for folder in _shared_folders(layout, config) for path in stale_temporaries(folder)
        ]
        outside = [path for path in temporaries if not set(results) & set(path.parents)]
        size = sum(map(_size, [*results, *outside]))
        found = Garbage(results=results, temporaries=temporaries, size=size)
        if not dry_run:
            remove_leftovers(layout, config)
            for path in results:
                remove_folder(path)
    return found


def _locked(layout: Layout, folder: Path, locks: contextlib.ExitStack) -> bool:
    """Take the lock of a data set's fetch, so that none begins until `locks` is closed; return False if one is running."""
    path = layout.lock("fetch", f"{folder.parent.name}/{folder.name}")
    try:
        locks.enter_context(exclusive(path, wait=False))
    except BusyError:
        return False
    return True


def remove_leftovers(layout: Layout, config: PipelineConfig | None = None) -> list[Path]:
    """Remove the temporaries that dead processes left in a project; those of live processes stay.

    Parameters
    ----------
    layout : Layout
        The project.
    config : PipelineConfig or None
        Names the output folders; the defaults where None.

    Returns
    -------
    list of pathlib.Path
        What was removed.
    """
    folders = _shared_folders(layout, config or PipelineConfig())
    return [path for folder in folders for path in remove_stale(folder)]


def _results(base: Path) -> Iterator[Path]:
    """Yield the result folders below a folder: ``owner/slug/<run id>``, and those of the folds of a cross-validation.

    Other folders are not ours to remove, and a staging folder is not a result yet, whatever it holds.
    """
    for dataset in _datasets(base):
        yield from (*_with_marks(dataset), *_with_marks(dataset / FOLDS_FOLDER))


def _studies(layout: Layout) -> Iterator[Path]:
    for dataset in _datasets(layout.studies):
        yield from _folders(dataset)


def _datasets(base: Path) -> Iterator[Path]:
    for owner in _folders(base):
        yield from _folders(owner)


def _with_marks(folder: Path) -> Iterator[Path]:
    for path in _folders(folder):
        if path.name not in RESERVED_NAMES and any((path / name).is_file() for name in _MARKS):
            yield path


def _folders(folder: Path) -> list[Path]:
    """List the folders in a folder, without hidden and linked ones; the list is empty if the folder is gone."""
    try:
        with os.scandir(folder) as entries:
            names = [item.name for item in entries if item.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in sorted(names) if not name.startswith(".")]


def _shared_folders(layout: Layout, config: PipelineConfig) -> Iterator[Path]:
    """Yield the folders in which stages write temporaries: every folder of outputs and models, and the parents of results."""
    raw = layout.configured(config.fetch.cache_dir) / "raw"
    downloads = layout.downloads(config.fetch.cache_dir)
    exports = [
        layout.configured(name).parent for name in (config.split.dest, config.resize.export_tree) if name
    ]
    once = dict.fromkeys((downloads, *exports, *sorted(raw.glob("*/*"))))
    yield from (path for path in once if path.is_dir())
    bases = [layout.outputs, *(base for base in result_folders(layout, config) if base != raw)]
    seen: set[Path] = set()
    for base in bases:
        # os.walk skips folders that another run removes meanwhile.
        for here, folders, _ in os.walk(base):
            folders[:] = sorted(name for name in folders if not name.startswith(TEMPORARY_PREFIX))
            path, real = Path(here), Path(here).resolve()
            if real not in seen:
                seen.add(real)
                yield path


def _same(first: Path, second: Path) -> bool:
    return (
        second.is_file()
        and first.is_file()
        and first.stat().st_size == second.stat().st_size
        and sha256_file(first) == sha256_file(second)
    )


def _size(path: Path) -> int:
    inside = [Path(here) / name for here, _, files in os.walk(path) for name in files]
    total = 0
    for file in inside or [path]:
        with contextlib.suppress(FileNotFoundError):  # another process has removed it meanwhile
            status = file.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total
