"""Waiting for a slot of a pool, without losing a slot, using a core or missing a signal.

Dagster (seen in 1.13) looks for a free slot and queues a step in two transactions. A slot given back between them is
assigned to no step, and the step waits for ever. While it waits, its executor pauses for min(0, time until the next look),
that is, not at all, so that it keeps a core busy; and it does not check for interrupts. `PatientClaims` corrects this in the
process that waits.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import dagster as dg

from brainmri_dagster.running.dagster_internals import (
    InstanceConcurrencyContext,
    SqlEventLogStorage,
    in_process,
    pop_captured_interrupt,
)
from brainmri_dagster.running.heartbeat import Heartbeat

LONGEST_PAUSE_S = 0.5
"""A signal is noticed only after a pause, so the pause is short."""


class PatientClaims(InstanceConcurrencyContext):
    """The slots of pools that a run's executor holds or waits for; while it exists, the run sends its heartbeat."""

    def __init__(self, instance: dg.DagsterInstance, dagster_run: dg.DagsterRun):
        super().__init__(instance, dagster_run)
        self._heartbeat = Heartbeat(instance, dagster_run.run_id)

    def __enter__(self) -> Self:
        """Start the heartbeat."""
        self._heartbeat.__enter__()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the heartbeat, then give back the slots."""
        self._heartbeat.__exit__(kind, value, trace)
        super().__exit__(kind, value, trace)

    def claim(self, concurrency_key: str, step_key: str, step_priority: int = 0) -> bool:
        """Claim a slot; first assign free slots that Dagster has lost to the steps that have waited longest.

        Raises
        ------
        dagster.DagsterExecutionInterruptedError
            If a signal came while the step waited.
        """
        if step_key in self._pending_claims and pop_captured_interrupt():
            raise dg.DagsterExecutionInterruptedError
        storage = self._instance.event_log_storage
        due = step_key in self._pending_claims and time.time() > self._pending_timeouts[step_key]
        if due and isinstance(storage, SqlEventLogStorage) and storage.has_unassigned_slots(concurrency_key):
            storage.assign_pending_steps([concurrency_key])
        return super().claim(concurrency_key, step_key, step_priority)

    def interval_to_next_pending_claim_check(self) -> float:
        """Return the seconds until a waiting step may look again."""
        now = time.time()
        waits: list[float] = [max(0.0, moment - now) for moment in self._pending_timeouts.values()]
        return min([LONGEST_PAUSE_S, *waits])


def install() -> None:
    """Let every in-process executor of this process use `PatientClaims`."""
    in_process.InstanceConcurrencyContext = PatientClaims  # type: ignore[attr-defined]
