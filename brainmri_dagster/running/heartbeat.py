"""Signs of life of runs on several machines: nobody can look up the process of another machine.

They lie in the storage of runs, not in tags: two writers of one run's tags can lose one another's. On one machine, whose
storage is SQLite, `processes` knows what died, and no sign is given.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType

import dagster as dg
from pydantic import BaseModel, ConfigDict

from brainmri_dagster.running.dagster_internals import SqliteRunStorage

BEAT_S = 10.0
SILENCE_S = 120.0
"""A run that has given no sign for so long is dead; by the clock of who looks, as two machines' clocks differ."""
LOOKS = 4
"""How many looks must have found the same sign: after an outage of the storage the first look may come before the next sign."""
_KEY = "brainmri/heartbeat/{}"


class LastSign(BaseModel):
    """The newest sign of life of a run as somebody has seen it."""

    model_config = ConfigDict(frozen=True)

    sign: str
    since: float
    looks: int

    @property
    def is_silence(self) -> bool:
        """Whether the sign is so old that the run is dead."""
        return self.looks >= LOOKS and time.time() - self.since > SILENCE_S


class Heartbeat:
    """Gives signs of life of a run from a thread of its process, while a ``with`` block lasts."""

    def __init__(self, instance: dg.DagsterInstance, run_id: str):
        self._instance, self._run_id = instance, run_id
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        if instance.is_persistent and not isinstance(instance.run_storage, SqliteRunStorage):
            self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        """Start."""
        if self._thread is not None:
            self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, before the instance is closed."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _beat(self) -> None:
        while True:
            with suppress(Exception):  # the storage is away, however it says so: the next sign is the retry
                give_sign(self._instance, self._run_id)
            if self._ended.wait(BEAT_S):
                return


def give_sign(instance: dg.DagsterInstance, run_id: str) -> None:
    """Put down that a run is alive."""
    instance.run_storage.set_cursor_values({_KEY.format(run_id): str(time.time_ns())})


def last_signs(instance: dg.DagsterInstance, seen: Mapping[str, LastSign]) -> dict[str, LastSign]:
    """Look at the signs of all runs at work, given what the look before has seen.

    Returns
    -------
    dict of str to LastSign
        By Dagster run id. A run that never gave one, because its code gives none or has not begun, is left out.
    """
    statuses = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    keys = {
        _KEY.format(run.run_id): run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=statuses))
    }
    signs = instance.run_storage.get_cursor_values(set(keys)) if keys else {}
    now: dict[str, LastSign] = {}
    for key, sign in signs.items():
        before = seen.get(keys[key])
        if before is None or before.sign != sign:
            before = LastSign(sign=sign, since=time.time(), looks=0)
        now[keys[key]] = before.model_copy(update={"looks": before.looks + 1})
    return now
