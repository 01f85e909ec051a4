"""The last saved state of a training in an object store, from which another machine can continue it."""

from __future__ import annotations

import time
from pathlib import Path

from brainmri_core.errors import StorageError
from brainmri_core.learning.state import State, read_state
from brainmri_core.project.job import Job
from brainmri_core.project.run_sharing import remote_store
from brainmri_core.system.storage import in_scratch

_PAUSE_S = 600.0
"""After a failed upload the store is left alone for this long, because waiting for it holds up the training."""


class SharedState:
    """Keeps the state of a training in the project's object store up to date.

    It does nothing for a project in a folder, and for a training in a scratch folder, which nobody goes on with.

    Parameters
    ----------
    file : pathlib.Path
        The file of the state.
    job : Job
        The run.
    """

    def __init__(self, file: Path, job: Job) -> None:
        store = None if in_scratch(file) else remote_store(job.layout)
        self._shared = None if store is None else store.shared_file(job.layout.relative(file))
        self._file, self._job = file, job
        self._told, self._not_before = False, 0.0

    def take_in(self) -> None:
        """Download the state if another machine's is further along than what is here.

        Raises
        ------
        ModelError
            If the state that is here is damaged.
        StorageError
            If the store cannot be read.
        """
        if self._shared is not None:
            here = read_state(self._file)["position"][:2] if self._file.is_file() else None
            if self._shared.take(None if here is None else tuple(here)):
                self._job.log.info("the state of another machine is continued")

    def pass_on(self, state: State) -> None:
        """Upload the state that was just saved. If that fails, training goes on, and the log has a warning."""
        if self._shared is None or time.monotonic() < self._not_before:
            return
        started = time.monotonic()
        try:
            size = self._shared.replace((state.epoch, state.batch))
        except StorageError as error:
            self._not_before = time.monotonic() + _PAUSE_S
            self._job.log.warning(f"Until the state can be uploaded, only this machine can continue: {error}")
            return
        if size and not self._told:
            self._told = True
            seconds = round(time.monotonic() - started, 3)
            self._job.log.info("each saved state is uploaded", bytes=size, seconds=seconds)

    def remove(self) -> None:
        """Remove the state from the store. A training that is done leaves none."""
        if self._shared is not None:
            self._shared.remove()
