"""Resuming: where a stopped training keeps its state, which training may continue it, and by which process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from brainmri_core.config.base import without_later
from brainmri_core.config.training import TrainConfig
from brainmri_core.errors import BusyError, IntegrityError, StorageError
from brainmri_core.learning.device import arithmetic
from brainmri_core.learning.pretrained import weights_path
from brainmri_core.learning.shared_state import SharedState
from brainmri_core.learning.state import Loop, State, difference, load_state, state_bytes
from brainmri_core.learning.team import Team
from brainmri_core.project.job import Job
from brainmri_core.project.layout import RESUME_FOLDER
from brainmri_core.project.pointers import PackPointer
from brainmri_core.project.work_locks import work_lock
from brainmri_core.system.checksums import sha256_file, sha256_json
from brainmri_core.system.json_files import read_json, write_json
from brainmri_core.system.locks import exclusive
from brainmri_core.system.storage import in_scratch, make_dirs, remove_stale


def decisive(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that the result of a training depends on, without output folders and the reading of batches.

    Of the distributed settings only the total number of processes matters, not their distribution over machines.
    """
    settings = config.model_dump(
        mode="json",
        exclude={
            "io": True,
            "tracking": True,
            "loop": {"resume", "resume_from"},
            "data": {"num_workers", "train_in", "mapping_pointer"},
            "distributed": True,
        },
    )
    return settings | {"distributed": {"nproc": config.distributed.processes}}


def identity_of(config: TrainConfig, loop: Loop, pack: PackPointer, job: Job) -> dict[str, Any]:
    """Return what a training must have in common with a stored state to continue it: settings, data and arithmetic."""
    file = weights_path(config.model)
    return {
        "train": without_later(TrainConfig, decisive(config)),
        "data_hash": pack.content_hash,
        "device": loop.device.type,
        "precision": loop.precision,
        "arithmetic": arithmetic(loop.device, job.env),
        # The path does not tell whether the file has changed.
        "weights_sha256": None if file is None else sha256_file(file),
    }


def resume_file(models: Path, dataset: str, identity: dict[str, Any]) -> Path:
    """Return the file in which a training with this identity keeps its state, the same for all its runs."""
    config = {key: value for key, value in identity.items() if key != "data_hash"}
    name = f"{sha256_json(config)[:12]}-{identity['data_hash'][:12]}"
    return models / dataset / RESUME_FOLDER / name / "last.pth"


def _lock_of(resume: Path, job: Job) -> Path:
    return job.layout.lock("train", resume.parent.name)


def _is_running(resume: Path, job: Job) -> bool:
    try:
        with exclusive(_lock_of(resume, job), wait=False):
            return False
    except BusyError:
        return True


@contextlib.contextmanager
def owned(resume: Path, identity: dict[str, Any], team: Team, job: Job) -> Iterator[None]:
    """Lock this training during the block, for all processes of the team.

    Raises
    ------
    BusyError
        If another run has locked it, here or on another machine.
    """
    with contextlib.ExitStack() as held:
        if team.leads:

            def say_who(owner: str) -> None:
                job.log.info("another machine may be at work on this training; waiting to see", owner=owner)

            lock, busy = _lock_of(resume, job), "the same training is running"
            held.enter_context(
                exclusive(lock, wait=False, busy=busy)
                if in_scratch(resume)
                else work_lock(job.layout, lock, wait=False, busy=busy, on_wait=say_who)
            )
            make_dirs(resume.parent)
            for folder in (resume.parent.parent, resume.parent):
                remove_stale(folder)
            write_json(resume.parent / "training.json", identity)
        team.from_leader(bytes)  # the other processes wait here until the first one has the lock
        yield


def continue_from(
    config: TrainConfig, resume: Path, state: State, identity: dict[str, Any], team: Team, job: Job
) -> None:
    """Load the state of an interrupted training, here or on another machine; warn of unfinished ones that do not match.

    Raises
    ------
    ModelError
        If ``train.loop.resume_from`` names a state that is missing, damaged or of another training.
    """
    explicit = config.loop.resume_from
    path = resume if explicit is None else job.layout.configured(explicit)
    if team.leads and (config.loop.resume or explicit) and path.is_relative_to(job.layout.root):
        SharedState(path, job).take_in()
    begun, content = explicit is not None or (config.loop.resume and resume.is_file()), None
    if team.size > 1:  # the other processes may be on machines without the file
        content = team.from_leader(lambda: state_bytes(path) if begun else b"")
        begun = bool(content)
    if begun:
        load_state(path, state, identity, content)
    elif config.loop.resume and team.leads:
        for other in sorted(resume.parent.parent.glob("*/last.pth")):
            if not _is_running(other, job):
                job.log.warning(
                    f"An unfinished training is not continued: it was made with {_unlike(other, identity)}; run it with "
                    f"what it was made with to continue it, or delete {other.parent}."
                )
    if state.epoch or state.batch:
        job.log.info("resumed", epoch=state.epoch + 1, batch=state.batch)


def _unlike(other: Path, identity: dict[str, Any]) -> str:
    """Say how another training's state differs; its folder may be damaged, or be removed while it is read."""
    try:
        found = read_json(other.parent / "training.json")
    except (IntegrityError, StorageError):
        found = None
    return (
        difference(found, identity) if isinstance(found, dict) else "something that its folder does not say"
    )
