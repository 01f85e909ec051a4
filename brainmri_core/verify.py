"""Verify a project's stored state: check every pointer, file, hash, manifest, pack and checkpoint, and name the damaged ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from brainmri_core.config.base import parse_yaml
from brainmri_core.errors import BrainMRIError, IntegrityError
from brainmri_core.escaping import printable
from brainmri_core.evaluation.test_ledger import identity, read_looks
from brainmri_core.images.pack import check_pack, open_pack
from brainmri_core.project.layout import RESUME_FOLDER, Layout
from brainmri_core.project.pointer_store import PATH_FIELDS, follow, pointer_files, read_pointer
from brainmri_core.project.pointers import (
    ChampionPointer,
    CheckpointPointer,
    CrossValidationPointer,
    EvaluationPointer,
    FetchPointer,
    MappingPointer,
    PackPointer,
    Pointer,
)
from brainmri_core.project.run_schema import (
    Plan,
    StageEntry,
    overall_status,
    read_manifest,
    read_plan,
)
from brainmri_core.project.run_sharing import remote_store, take_in_runs
from brainmri_core.project.sample_table import FETCH_COLUMNS, content_hash, read_samples
from brainmri_core.system.checksums import sha256_file, sha256_json
from brainmri_core.system.json_files import read_json
from brainmri_core.system.storage import remove_stale, scratch_folder, storage_error


class Problem(BaseModel):
    """A damaged or missing file, and what is wrong with it."""

    model_config = ConfigDict(frozen=True)

    path: str
    message: str


class Verification(BaseModel):
    """The numbers of pointers, runs and files checked, and the problems found."""

    model_config = ConfigDict(frozen=True)

    pointers: int
    runs: int
    files: int
    problems: list[Problem]


def verify(layout: Layout, progress: Callable[[], object] = lambda: None) -> Verification:
    """Check all records of a project against the files on the disk, or in the object store whatever copies are here.

    A file that seems damaged is checked a second time, because a run may have changed it during the first check.

    Parameters
    ----------
    layout : Layout
        The project.
    progress : callable
        Called after each pointer and run.

    Returns
    -------
    Verification
        Names each damaged or missing file once, with the record that it contradicts and what to do.
    """
    if layout.url is not None:
        remove_stale(layout.root)
        with scratch_folder(layout.root) as empty:
            return _verified(Layout(root=empty, url=layout.url), progress)
    return _verified(layout, progress)


def _verified(layout: Layout, progress: Callable[[], object]) -> Verification:
    found = _look(layout, progress)
    if not found.problems:
        return found
    again = {problem.path for problem in _look(layout, progress).problems}
    problems = [problem for problem in found.problems if problem.path in again]
    return found.model_copy(update={"problems": problems})


def _look(layout: Layout, progress: Callable[[], object]) -> Verification:
    check = _Check(layout)
    pointers = runs = 0
    for pointer_type, path in pointer_files(layout):
        pointers += 1
        with _reported(check, path):
            _verify_pointer(check, read_pointer(layout, pointer_type, path), path)
        progress()
    with _reported(check, layout.runs):
        take_in_runs(layout)
    for folder in sorted(layout.runs.glob("*/")):
        runs += 1
        _verify_run(check, folder)
        progress()
    _verify_weights(check)
    _verify_ledgers(check)
    problems = [check.problems[path] for path in sorted(check.problems)]
    return Verification(pointers=pointers, runs=runs, files=len(check.digests), problems=problems)


class _Check:
    """Collects problems; hashes every file once."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.problems: dict[str, Problem] = {}
        self.digests: dict[str, str] = {}
        self.seen: set[str] = set()

    def report(self, stored: str, message: str) -> None:
        self.problems.setdefault(stored, Problem(path=printable(stored), message=printable(message)))

    def exists(self, stored: str, named_by: str) -> bool:
        found = self.layout.absolute(stored).exists()
        if not found:
            self.report(stored, f"{stored} is missing; {named_by} names it.")
        return found

    def digest(self, stored: str) -> str:
        if stored not in self.digests:
            self.digests[stored] = sha256_file(self.layout.absolute(stored))
        return self.digests[stored]

    def content(self, stored: str, expected: str, named_by: str, remedy: str) -> None:
        """Compare a file's SHA-256 with the recorded one."""
        if self.exists(stored, named_by) and self.digest(stored) != expected:
            self.report(stored, f"{stored} was changed after {named_by} recorded it; {remedy}.")


@contextmanager
def _reported(check: _Check, path: Path) -> Iterator[None]:
    """Report an error of this package or of the system that is raised in the block as a problem of a file."""
    try:
        yield
    except BrainMRIError as error:
        check.report(check.layout.relative(path), str(error))
    except OSError as error:
        check.report(check.layout.relative(path), str(storage_error(error, path, "read")))


def _verify_pointer(check: _Check, pointer: Pointer, path: Path) -> None:
    stored, name = check.layout.relative(path), f"the pointer {check.layout.relative(path)}"
    own = pointer.pointer_path
    if own is None or (path.name != "latest.json" and own != stored):
        check.report(stored, f"{stored} says that it lies at {own}; it was moved or edited, restore it.")
    elif path.name == "latest.json" and check.exists(own, name):
        if check.layout.absolute(own).read_bytes() != path.read_bytes():
            check.report(
                stored, f"{stored} differs from its history copy {own}; copy that over it if it is whole."
            )
    elif own != stored:
        return
    values: dict[str, Any] = pointer.model_dump()
    for field, value in values.items():
        if field in PATH_FIELDS and value:
            check.exists(value, name)
        elif isinstance(pointer, PackPointer) and pointer.shard_bytes and field == "pack_sha256":
            with _reported(check, check.layout.absolute(pointer.pack)):
                check_pack(check.layout, pointer)
        elif field.endswith("_sha256") and values.get(field.removesuffix("_sha256")):
            remedy = "run the stage that makes it again"
            check.content(values[field.removesuffix("_sha256")], value, name, remedy)
    if isinstance(pointer, FetchPointer):
        _verify_images(check, pointer)
    elif isinstance(pointer, MappingPointer):
        with _reported(check, check.layout.absolute(pointer.path)):
            if read_json(check.layout.absolute(pointer.path)) != pointer.index_remap:
                check.report(pointer.path, f"{pointer.path} maps classes otherwise than {name}; split again.")
    elif isinstance(pointer, PackPointer) and check.layout.absolute(pointer.pack).exists():
        with _reported(check, check.layout.absolute(pointer.pack)):
            open_pack(check.layout, pointer)


def _verify_images(check: _Check, pointer: FetchPointer) -> None:
    """Check the hash of every image of a data set, once even where several pointers name it."""
    if pointer.samples in check.seen:
        return
    check.seen.add(pointer.samples)
    with _reported(check, check.layout.absolute(pointer.samples)):
        table = read_samples(check.layout.absolute(pointer.samples), FETCH_COLUMNS)
        if content_hash(table, ["path", "label", "origin", "file_sha256"]) != pointer.content_hash:
            raise IntegrityError(f"{pointer.samples} was changed after it was written; fetch again.")
        read_json(check.layout.absolute(pointer.samples).with_name("source.json"))
        name = f"the sample table {pointer.samples}"
        for path, digest in zip(table["path"], table["file_sha256"], strict=True):
            remedy = "delete the folder of this version and fetch again"
            check.content(f"{pointer.dataset_root}/{path}", digest, name, remedy)


def _verify_run(check: _Check, folder: Path) -> None:
    plan_file, manifest_file = folder / "plan.json", folder / "run_manifest.json"
    if plan_file.exists():
        with _reported(check, plan_file):
            _verify_plan(check, read_plan(plan_file), plan_file)
    if not manifest_file.is_file():
        return
    with _reported(check, manifest_file):
        manifest = read_manifest(manifest_file)
        status = overall_status([entry.status for entry in manifest.stages.values()])
        if (manifest.run_id, manifest.status) != (folder.name, status):
            raise IntegrityError(
                f"{manifest_file} contradicts itself: its run id or its status is not what its stages and its folder "
                "say; restore it."
            )
        for entry in manifest.stages.values():
            _verify_entry(check, entry, f"the manifest of run {folder.name}")


def _verify_plan(check: _Check, plan: Plan, path: Path) -> None:
    configs = {item.stage: item.config for item in plan.stages}
    if sha256_json({"env": plan.env, "stages": configs}) != plan.config_hash:
        raise IntegrityError(
            f"{path} was changed after it was written: its config hash does not fit; restore it."
        )
    for stage, config in configs.items():
        copy = path.with_name(f"{stage}.yaml")
        if copy.exists():
            with _reported(check, copy):
                if parse_yaml(copy.read_bytes().decode(errors="replace"), str(copy))[0] != config:
                    raise IntegrityError(f"{copy} differs from the plan beside it; restore it.")


def _verify_entry(check: _Check, entry: StageEntry, name: str) -> None:
    for stored in entry.output_paths:
        check.exists(stored, name)
    for stored, digest in entry.output_hashes.items():
        check.content(stored, digest, name, "run the stage that makes it again")
    own = entry.pointer and entry.pointer.pointer_path
    if entry.pointer and own and check.exists(own, name):
        with _reported(check, check.layout.absolute(own)):
            if read_json(check.layout.absolute(own)) != entry.pointer.model_dump():
                check.report(own, f"{own} differs from what {name} recorded; restore it.")


def _verify_weights(check: _Check) -> None:
    """Check the files whose hash is in no pointer: the champion, the newest ``best.pth``, and states to resume from."""
    layout = check.layout
    store = remote_store(layout)
    for shared in store.shared_files() if store else []:
        with _reported(check, shared.path):
            shared.take(None)
    known: dict[Path, str] = {}
    models: set[Path] = set()
    for pointer_type, path in pointer_files(layout):
        with _reported(check, path):
            pointer = read_pointer(layout, pointer_type, path)
            if isinstance(pointer, CheckpointPointer):
                known[layout.absolute(pointer.checkpoint)] = pointer.checkpoint_sha256
                models.add(_models_of(layout, pointer))
            elif isinstance(pointer, ChampionPointer) and path.name == "latest.json":
                _verify_champion(check, pointer)
    for folder in sorted(models):
        newest = folder / "best.pth"
        # A run that was killed before it wrote its pointer leaves a checkpoint that no pointer names.
        unknown = {sha256_file(path) for path in folder.glob("*/*/*/best.pth") if path not in known}
        if newest.is_file() and sha256_file(newest) not in {*known.values(), *unknown}:
            stored = layout.relative(newest)
            check.report(stored, f"{stored} is a copy of no checkpoint of this project; train again.")
        for state in sorted(folder.glob(f"*/*/{RESUME_FOLDER}/*/last.pth")):
            with _reported(check, state):
                _load_state(state)


def _verify_ledgers(check: _Check) -> None:
    """Check that the ledgers of the test splits can be read, and hold every evaluation that must be in one.

    A ledger may hold more lines: those of runs that ended before their result, or whose result was deleted.
    """
    layout = check.layout
    entered: dict[str, set[tuple[str, str, str]]] = {}
    for name in layout.store.list(f"{layout.relative(layout.test_ledgers)}/*/*.jsonl"):
        path = layout.store.newest(name)
        with _reported(check, path):
            dataset = f"{path.parent.name}/{path.stem}"
            looks = read_looks(path)
            entered[dataset] = set(map(identity, looks))
            if len(looks) != len(entered[dataset]):
                raise IntegrityError(f"{path} holds a look twice; delete the second line.")
    for pointer_type, file in pointer_files(layout):
        with _reported(check, file):
            pointer = read_pointer(layout, pointer_type, file)
            if (
                not isinstance(pointer, EvaluationPointer | CrossValidationPointer)
                or pointer.test_split is None
            ):
                continue
            ledger = layout.test_ledger(pointer.dataset)
            if ledger.is_file() and pointer.dataset not in entered:
                continue  # the ledger cannot be read, which was reported above
            if (pointer.test_split, pointer.run_id, pointer.kind) not in entered.get(pointer.dataset, set()):
                check.report(
                    layout.relative(ledger),
                    f"{layout.relative(ledger)} lacks the {pointer.kind} of run {pointer.run_id}; restore it, or move it "
                    "away so that the next evaluation begins it anew from the evaluations on record.",
                )


def _models_of(layout: Layout, pointer: CheckpointPointer) -> Path:
    """Return ``<models>`` of a checkpoint that lies in ``<models>/<owner>/<slug>/<run>/best.pth``."""
    return layout.absolute(pointer.checkpoint).parents[3]


def _verify_champion(check: _Check, pointer: ChampionPointer) -> None:
    holder = follow(check.layout, CheckpointPointer, pointer.champion_checkpoint)
    name = f"the champion pointer of {pointer.dataset}"
    check.content(pointer.weights, holder.checkpoint_sha256, name, "crown the champion again")


def _load_state(path: Path) -> None:
    from brainmri_core.learning.state import read_state

    read_state(path)
