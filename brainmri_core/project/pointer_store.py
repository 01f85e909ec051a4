"""The store of pointers: how they are written with their history, read, followed and listed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from brainmri_core.errors import IntegrityError, MissingUpstreamError
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointers import POINTER_TYPES, MappingPointer, Pointer
from brainmri_core.system.clock import timestamp, utc_now
from brainmri_core.system.json_files import json_text
from brainmri_core.system.json_models import read_model
from brainmri_core.system.locks import exclusive
from brainmri_core.system.storage import TEMPORARY_PREFIX, write_bytes, write_new

P = TypeVar("P", bound=Pointer)

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


def read_mapping(layout: Layout, path: Path) -> MappingPointer:
    """Read the mapping pointer at a file or folder, or the newest one that names an ``index_remap.json``.

    Raises
    ------
    IntegrityError
        If the file is not a mapping pointer.
    MissingUpstreamError
        If no mapping pointer names the ``index_remap.json``.
    """
    if path.name != "index_remap.json":
        return read_pointer(layout, MappingPointer, path)
    for mapping in history(layout, MappingPointer):
        if layout.absolute(mapping.path).resolve() == path.resolve():
            return mapping
    raise MissingUpstreamError(
        f"No mapping pointer names {path}; give the mapping pointer of the split instead."
    )


def write_pointer(layout: Layout, pointer: P, *, update_latest: bool = True) -> P:
    """Write a pointer: first its history copy, under a unique name, then ``latest.json``.

    Returns
    -------
    Pointer
        The pointer with `pointer_path` set.
    """
    folder = layout.pointer_dir(pointer.kind, pointer.place)
    with exclusive(layout.lock("pointer", pointer.kind, pointer.place)):
        stem = f"{timestamp(utc_now()).replace(':', '')}-{pointer.run_id}"
        attempt = 0
        while True:
            path = folder / "history" / f"{stem}{f'-{attempt}' if attempt else ''}.json"
            stored = pointer.model_copy(update={"pointer_path": layout.relative(path)})
            text = json_text(stored.model_dump(mode="json")).encode()
            if write_new(path, text):
                break
            attempt += 1
        if update_latest:
            write_bytes(folder / "latest.json", text)
    return stored


def read_pointer(layout: Layout, pointer_type: type[P], path: Path) -> P:
    """Read a pointer from a file, or from the ``latest.json`` of a folder.

    Raises
    ------
    IntegrityError
        If the file is no such pointer, or names a path outside the project root.
    """
    file = path / "latest.json" if path.is_dir() else path
    problem = f"is not a {pointer_type.kind} pointer"
    pointer = read_model(file, pointer_type, problem, "restore it or run its stage again")
    for value in _paths(pointer):
        layout.absolute(value)
    return pointer


def latest_pointer(layout: Layout, pointer_type: type[P], place: str) -> P | None:
    """Return a data set's newest pointer of a kind (for a pair of data sets see `pair_place`), or None."""
    path = layout.pointer_dir(pointer_type.kind, place) / "latest.json"
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
    files = layout.pointers(pointer_type.kind).glob(f"{place}/history/*.json")
    for file in sorted(files, key=lambda file: file.name, reverse=True):
        yield read_pointer(layout, pointer_type, file)


def places(layout: Layout, pointer_type: type[P]) -> list[str]:
    """List the data sets, or pairs of them (`pair_place`), that have a pointer of a kind."""
    kind = layout.pointers(pointer_type.kind)
    return sorted(file.parent.relative_to(kind).as_posix() for file in kind.glob("*/*/latest.json"))


def pointer_files(layout: Layout) -> Iterator[tuple[type[Pointer], Path]]:
    """Yield every pointer file of the project with its type, ``latest.json`` before its history."""
    for kind, pointer_type in POINTER_TYPES.items():
        for folder in sorted(layout.pointers(kind).glob("*/*")):
            if (folder / "latest.json").is_file():
                yield pointer_type, folder / "latest.json"
            for path in sorted((folder / "history").glob("*.json")):
                yield pointer_type, path


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


def _paths(pointer: Pointer) -> list[str]:
    values: dict[str, Any] = pointer.model_dump()
    return [value for name, value in values.items() if name in PATH_FIELDS and value is not None]
