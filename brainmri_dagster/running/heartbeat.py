"""Heartbeats of runs on several machines, because the process of another machine cannot be looked up.

They are stored as cursor values of the run storage, not as tags: two writers of one run's tags can overwrite each other. On
one machine, whose run storage is SQLite, there are no heartbeats; `processes` can tell which run died.
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
"""A run without a sign for this long counts as dead, by the clock of the observer, because machines' clocks differ."""
LOOKS = 4
"""How many looks must have found the same sign: after an outage of the storage, the observer may look before the run signs again."""
_KEY = "brainmri/heartbeat/{}"


class LastSign(BaseModel):
    """The newest sign of life of a run, since when an observer has seen it, and in how many looks."""

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
            with suppress(
                Exception
            ):  # the storage cannot be reached, with whatever error: the next sign is the retry
                give_sign(self._instance, self._run_id)
            if self._ended.wait(BEAT_S):
                return


def give_sign(instance: dg.DagsterInstance, run_id: str) -> None:
    """Record that a run is alive."""
    instance.run_storage.set_cursor_values({_KEY.format(run_id): str(time.time_ns())})


def last_signs(instance: dg.DagsterInstance, seen: Mapping[str, LastSign]) -> dict[str, LastSign]:
    """Look at the signs of all started runs, given what the previous look has seen.

    Returns
    -------
    dict of str to LastSign
        By Dagster run id. A run that has given no sign yet is left out.
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
