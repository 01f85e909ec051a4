"""The store of pointers: how they are written with their history, read, followed and listed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from brainmri_core.errors import IntegrityError, MissingUpstreamError
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointers import POINTER_TYPES, MappingPointer, Pointer
from brainmri_core.system.clock import timestamp, utc_now
from brainmri_core.system.json_files import json_text
from brainmri_core.system.json_models import read_model
from brainmri_core.system.locks import exclusive
from brainmri_core.system.storage import TEMPORARY_PREFIX

P = TypeVar("P", bound=Pointer)
_LATEST = "latest.json"
_MOMENT = "%Y-%m-%dT%H%M%S.%fZ"

PATH_FIELDS = frozenset(
    "dataset_root training_dir testing_dir validation_dir samples path split_json pack report checkpoint history curves folder "
    "metrics predictions features record table plot experiment_file weights decision champion_checkpoint challenger_checkpoint "
    "fetch_pointer mapping_pointer pack_pointer checkpoint_pointer evaluation_pointer pointer_path".split()
)
"""The fields of pointers that hold a path below the project root."""
# Of these, the ones that name an input, or a file that a later run replaces.
_NOT_RESULTS = frozenset(
    "dataset_root training_dir testing_dir validation_dir weights champion_checkpoint challenger_checkpoint "
    "fetch_pointer mapping_pointer pack_pointer checkpoint_pointer evaluation_pointer pointer_path".split()
)


def find_mapping(layout: Layout, value: str) -> MappingPointer | None:
    """Return the mapping pointer that a setting means: a file or folder, or the newest that names an ``index_remap.json``.

    Returns
    -------
    MappingPointer or None
        None where nothing lies at the path.

    Raises
    ------
    IntegrityError
        If the file is not a mapping pointer.
    MissingUpstreamError
        If no mapping pointer names the ``index_remap.json``.
    """
    path = layout.configured(value)
    if path.name != "index_remap.json":
        return read_pointer(layout, MappingPointer, path) if _file_at(layout, path).is_file() else None
    if not layout.given(value).is_file():
        return None
    for mapping in history(layout, MappingPointer):
        if layout.inside(mapping.path).resolve() == path.resolve():
            return mapping
    raise MissingUpstreamError(
        f"No mapping pointer names {path}; give the mapping pointer of the split instead."
    )


def write_pointer(layout: Layout, pointer: P, *, update_latest: bool = True) -> P:
    """Write a pointer: first its history copy, under a unique name, then ``latest.json``.

    What it names is published before. In an object store ``latest.json`` is left alone where somebody else has written a
    newer pointer in between.

    Returns
    -------
    Pointer
        The pointer with `pointer_path` set.
    """
    store = layout.store
    for folder in _result_folders(layout, pointer):
        store.publish_folder(folder)
    place = layout.relative(layout.pointer_dir(pointer.kind, pointer.place))
    latest = f"{place}/{_LATEST}"
    with exclusive(layout.lock("pointer", pointer.kind, pointer.place)):
        stem = f"{_later_than(store.newest(latest))}-{pointer.run_id}"
        attempt = 0
        while True:
            path = f"{place}/history/{stem}{f'-{attempt}' if attempt else ''}.json"
            stored = pointer.model_copy(update={"pointer_path": path})
            text = json_text(stored.model_dump(mode="json")).encode()
            if store.put_new(path, text):
                break
            attempt += 1
        if update_latest:
            store.update(latest, lambda present: None if _history_name(present) > path else text)
    return stored


def _later_than(latest: Path) -> str:
    """Return the time for a pointer's name: now, or just after the newest pointer where this machine's clock is behind."""
    newest = _history_name(latest.read_bytes() if latest.is_file() else None).rpartition("/")[2]
    now = utc_now()
    with suppress(ValueError):
        before = datetime.strptime(newest[: len(_moment(now))], _MOMENT).replace(tzinfo=UTC)
        now = max(now, before + timedelta(microseconds=1))
    return _moment(now)


def _moment(time: datetime) -> str:
    return timestamp(time).replace(":", "")


def _history_name(latest: bytes | None) -> str:
    """Return the name of the history copy in the content of a ``latest.json``; empty where it holds none."""
    with suppress(ValueError, AttributeError):
        return str(json.loads(latest or b"{}").get("pointer_path") or "")
    return ""


def read_pointer(layout: Layout, pointer_type: type[P], path: Path) -> P:
    """Read a pointer from a file, or from the ``latest.json`` of a folder.

    Raises
    ------
    IntegrityError
        If the file is no such pointer, or names a path outside the project root.
    """
    file = _file_at(layout, path)
    problem = f"is not a {pointer_type.kind} pointer"
    pointer = read_model(file, pointer_type, problem, "restore it or run its stage again")
    for value in _paths(pointer):
        layout.inside(value)
    return pointer


def _file_at(layout: Layout, path: Path) -> Path:
    """Return the pointer's file that a file or folder means, after it was downloaded if it is in an object store."""
    file = path / _LATEST if path.is_dir() or (layout.url and not path.suffix) else path
    if layout.url and file.is_relative_to(layout.outputs):
        bring = layout.store.newest if file.name == _LATEST else layout.store.fetch_to_cache
        file = bring(layout.relative(file))
    return file


def latest_pointer(layout: Layout, pointer_type: type[P], place: str) -> P | None:
    """Return a data set's newest pointer of a kind (for a pair of data sets see `pair_place`), or None."""
    latest = layout.pointer_dir(pointer_type.kind, place) / _LATEST
    path = layout.store.newest(layout.relative(latest)) if layout.url else latest
    return read_pointer(layout, pointer_type, path) if path.is_file() else None


def follow(layout: Layout, pointer_type: type[P], stored: str) -> P:
    """Read the pointer that another pointer refers to by its stored path.

    Raises
    ------
    IntegrityError
        If the file is missing or is not such a pointer.
    """
    path = layout.absolute(stored)
    if not path.is_file():
        raise IntegrityError(f"The {pointer_type.kind} pointer {stored} is missing; run its stage again.")
    return read_pointer(layout, pointer_type, path)


def history(layout: Layout, pointer_type: type[P], place: str = "*/*") -> Iterator[P]:
    """Yield every pointer of a kind, of one data set or of all, newest first."""
    files = _files(layout, f"{pointer_type.kind}/{place}/history/*.json")
    for file in sorted(files, key=lambda file: file.name, reverse=True):
        yield read_pointer(layout, pointer_type, file)


def _files(layout: Layout, pattern: str) -> list[Path]:
    pointers = layout.relative(layout.outputs / "pointers")
    return [layout.root / name for name in layout.store.list(f"{pointers}/{pattern}")]


def places(layout: Layout, pointer_type: type[P]) -> list[str]:
    """List the data sets, or pairs of them (`pair_place`), that have a pointer of a kind."""
    kind = layout.pointers(pointer_type.kind)
    files = _files(layout, f"{pointer_type.kind}/*/*/{_LATEST}")
    return sorted(file.parent.relative_to(kind).as_posix() for file in files)


def pointer_files(layout: Layout) -> Iterator[tuple[type[Pointer], Path]]:
    """Yield every pointer file of the project with its type, ``latest.json`` before its history."""
    for kind, pointer_type in POINTER_TYPES.items():
        newest = {file.parent: file for file in _files(layout, f"{kind}/*/*/{_LATEST}")}
        copies: dict[Path, list[Path]] = {folder: [] for folder in newest}
        for file in _files(layout, f"{kind}/*/*/history/*.json"):
            copies.setdefault(file.parent.parent, []).append(file)
        for folder in sorted(copies):
            yield from ((pointer_type, file) for file in (newest.get(folder), *copies[folder]) if file)


def result_files(layout: Layout, pointer: Pointer) -> list[Path]:
    """List the files of a pointer's result: those that the pointer names, and the files beside them.

    The images of a data set are left out, since its sample table holds their hashes; so is the champion's file, which a
    later champion replaces.
    """
    found: set[Path] = set()
    for name, stored in pointer.model_dump().items():
        if name in PATH_FIELDS - _NOT_RESULTS and stored:
            path = layout.absolute(stored)
            inside = path.rglob("*") if path.is_dir() else path.parent.iterdir()
            found.update(
                file for file in inside if file.is_file() and not file.name.startswith(TEMPORARY_PREFIX)
            )
    return sorted(found)


def _result_folders(layout: Layout, pointer: Pointer) -> list[str]:
    """Return the folders that hold the result of a pointer; none is inside another."""
    found: set[Path] = set()
    for name, stored in pointer.model_dump().items():
        if name in PATH_FIELDS - _NOT_RESULTS and stored:
            path = layout.root / stored
            found.add(path if path.is_dir() else path.parent)
    return sorted(layout.relative(folder) for folder in found if found.isdisjoint(folder.parents))


def _paths(pointer: Pointer) -> list[str]:
    values: dict[str, Any] = pointer.model_dump()
    return [value for name, value in values.items() if name in PATH_FIELDS and value is not None]
