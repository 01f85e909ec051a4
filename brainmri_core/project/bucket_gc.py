"""Garbage collection in an object store.

Deletion has two steps, because another machine may start to use an object at any time, and no store deletes an object on the
condition that nobody refers to it. First, unreferenced objects are copied to ``trash/``, where they can still be read, and removed from
their place. A manifest, which may change, leaves an empty object there, on the condition that it is the one that was copied. A
later call, at least one period later, restores the objects that are referenced again and deletes the rest.

A machine trusts a listing for less than half a period (see `RemoteStore.publish_folder`), and so does a call of
`collect_in_bucket`. So whoever saw an object before it was moved has published its reference before the object is deleted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress

from pydantic import BaseModel, ConfigDict

from brainmri_core.config import PipelineConfig
from brainmri_core.errors import StorageError
from brainmri_core.project.layout import FOLDS_FOLDER, RESERVED_NAMES, Layout
from brainmri_core.project.references import References, referenced, result_folders
from brainmri_core.project.run_sharing import remote_store, take_in_runs
from brainmri_core.system.object_store import Bucket, Listed, LostRaceError
from brainmri_core.system.store import CONTENTS, MANIFESTS, MOVED, TRASH, RemoteStore
from brainmri_core.system.threads import threads

_CONNECTIONS = 8


class BucketGarbage(BaseModel):
    """What a call of `collect_in_bucket` moved and freed, or would move and free.

    Attributes
    ----------
    results : list of str
        Result folders that nothing refers to, moved out of sight.
    contents : int
        Number of contents that no folder has, moved out of sight.
    moved : int
        Bytes of these contents.
    freed : int
        Bytes that were moved out of sight by an earlier call, and are now freed.
    restored : int
        Number of objects that were referred to again since they were moved, and were put back.
    """

    model_config = ConfigDict(frozen=True)

    results: list[str]
    contents: int
    moved: int
    freed: int
    restored: int


def collect_in_bucket(
    layout: Layout, config: PipelineConfig, period_s: float, *, dry_run: bool = True
) -> BucketGarbage:
    """Find what nothing refers to in a project's object store; move it out of sight, and free what was moved long ago.

    Parameters
    ----------
    layout : Layout
        A project in an object store.
    config : PipelineConfig
        Names the output folders, which are those that results are removed from.
    period_s : float
        What is younger stays, because a stage may be at work with it; in seconds by the clock of the store, at least twice
        `TRUSTED_S` of the store.
    dry_run : bool
        If true, change nothing.

    Raises
    ------
    IntegrityError
        If a pointer or manifest cannot be read: what it refers to is unknown, so nothing is removed.
    StorageError
        If the store fails, or this takes longer than half a period.
    """
    store = remote_store(layout)
    assert store is not None, "a project in an object store"
    began = time.monotonic()
    bucket = store.bucket
    now = time.time() if dry_run else bucket.now()
    # In this order: a reference that is written meanwhile is seen, or the object is too young to be removed.
    trash = bucket.listed(f"{TRASH}/")
    listed = [*bucket.listed(f"{CONTENTS}/"), *(item for item in bucket.listed(f"{MANIFESTS}/") if item.size)]
    here = {item.name: item for item in listed}
    take_in_runs(layout)
    references = referenced(layout, layout.configured(config.fetch.cache_dir) / "raw")
    wanted = _wanted(store, layout, config, references, here, trash, now - period_s)
    unwanted = [item for item in here.values() if item.name not in wanted and item.modified < now - period_s]
    unwanted.sort(key=lambda item: (not item.name.startswith(f"{MANIFESTS}/"), item.name))
    put_back = [item for item in trash if _origin(item) in wanted.difference(here)]
    moved_again = {item.name for item in unwanted}
    freed = [item for item in trash if item.modified < now - period_s and _origin(item) not in moved_again]
    if not dry_run:
        for item in put_back:
            _put_back(bucket, item)
        _remove(bucket, [item.name for item in freed], began, period_s)
        _move(bucket, unwanted, began, period_s)
    folders = [item for item in unwanted if item.name.startswith(f"{MANIFESTS}/")]
    return BucketGarbage(
        results=sorted(_folder(item.name) for item in folders),
        contents=len(unwanted) - len(folders),
        moved=sum(item.size for item in unwanted),
        freed=sum(item.size for item in freed if _origin(item) not in wanted),
        restored=len(put_back),
    )


def _wanted(
    store: RemoteStore,
    layout: Layout,
    config: PipelineConfig,
    references: References,
    here: dict[str, Listed],
    trash: Iterable[Listed],
    old: float,
) -> set[str]:
    """Return the manifests of the folders that stay, the contents they name, and those of the files that machines share."""
    root = layout.root.resolve()
    bases = [base.resolve().relative_to(root).parts for base in result_folders(layout, config)]

    def stays(name: str) -> bool:
        folder = _folder(name)
        is_young = name in here and here[name].modified >= old
        return is_young or not _is_result(folder, bases) or references.holds(layout.root / folder)

    known = {*here, *map(_origin, trash)}
    manifests = [name for name in known if name.startswith(f"{MANIFESTS}/") and stays(name)]
    with threads(_CONNECTIONS) as pool:
        files = list(pool.map(store.files_of, map(_folder, manifests)))
    contents = {item for found in files for item in found}
    return {*manifests, *contents, *store.shared_contents()}


def _is_result(folder: str, bases: Iterable[tuple[str, ...]]) -> bool:
    """Say whether a folder is one that a stage makes for a run; other folders are not ours to remove, as in a local project."""
    parts = tuple(folder.split("/"))
    below = [parts[len(base) :] for base in bases if parts[: len(base)] == base]
    return any(
        (len(rest) == 3 or (len(rest) == 4 and rest[2] == FOLDS_FOLDER)) and rest[-1] not in RESERVED_NAMES
        for rest in below
    )


def _folder(manifest: str) -> str:
    return manifest.removeprefix(f"{MANIFESTS}/").removesuffix(".json")


def _origin(item: Listed) -> str:
    return item.name.removeprefix(f"{TRASH}/")


def _put_back(bucket: Bucket, item: Listed) -> None:
    """Put an object back in its place; a manifest only where no machine has written another in between."""
    name = _origin(item)
    if not name.startswith(f"{MANIFESTS}/"):
        bucket.copy(item.name, name, item.size)
        return
    data, found = bucket.get(item.name), bucket.get_tagged(name)
    if data is not None and found is None:
        bucket.put_new(name, data)
    elif data is not None and found is not None and found[0] == MOVED:
        with suppress(LostRaceError):
            bucket.compare_and_put(name, data, found[1])


def _move(bucket: Bucket, items: Iterable[Listed], began: float, period_s: float) -> None:
    def move(item: Listed) -> None:
        target = f"{TRASH}/{item.name}"
        if not item.name.startswith(f"{MANIFESTS}/"):
            if bucket.copy(item.name, target, item.size):
                _remove(bucket, [item.name], began, period_s)
            return
        found = bucket.get_tagged(item.name)
        if found is not None and found[0] != MOVED:
            bucket.put(target, found[0])
            with suppress(LostRaceError):
                bucket.compare_and_put(item.name, MOVED, found[1])

    with threads(_CONNECTIONS) as pool:
        list(pool.map(move, items))


def _remove(bucket: Bucket, names: Iterable[str], began: float, period_s: float) -> None:
    for name in names:
        if time.monotonic() - began > period_s / 2:
            raise StorageError(
                f"Clearing up {bucket.url} took so long that what was looked at may have changed; run gc again."
            )
        bucket.remove(name)
