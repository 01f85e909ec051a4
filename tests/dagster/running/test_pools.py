from __future__ import annotations

import os
import signal
import time

import dagster as dg
import pytest

from brainmri_core.project.layout import Layout
from brainmri_dagster.commands.launch import open_instance
from brainmri_dagster.definitions import defs
from brainmri_dagster.running.pools import PatientClaims
from tests.counts import PATIENCE_S

pytestmark = pytest.mark.training


def claims_of(instance: dg.DagsterInstance) -> PatientClaims:
    return PatientClaims(instance, instance.create_run_for_job(defs.resolve_job_def("retrain")))


@pytest.fixture
def instance(tmp_path, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with open_instance(Layout(root=tmp_path)) as opened:
        yield opened


def test_a_slot_given_back_while_a_step_is_queued_is_not_lost(instance, monkeypatch):
    first, second = claims_of(instance), claims_of(instance)
    storage = instance.event_log_storage
    assert first.claim("dataset", "raw_dataset")
    add = type(storage).add_pending_step

    def add_after_the_slot_is_free(self, *args, **kwargs):
        monkeypatch.undo()
        first.free_step("raw_dataset")
        add(self, *args, **kwargs)

    monkeypatch.setattr(type(storage), "add_pending_step", add_after_the_slot_is_free)
    assert not second.claim("dataset", "raw_dataset")
    assert storage.has_unassigned_slots("dataset"), "the slot is free, and the waiting step was not woken"
    deadline = time.monotonic() + PATIENCE_S
    while not second.claim("dataset", "raw_dataset"):
        assert time.monotonic() < deadline, "the step waits for ever"
        time.sleep(second.interval_to_next_pending_claim_check())


def after_pauses(count, act, monkeypatch):
    """Do something once a step has asked `count` times how long to pause; return the pauses it was given."""
    pauses = []
    asked = PatientClaims.interval_to_next_pending_claim_check

    def asks(self):
        pauses.append(asked(self))
        if len(pauses) == count:
            act()
        return pauses[-1]

    monkeypatch.setattr(PatientClaims, "interval_to_next_pending_claim_check", asks)
    return pauses


def test_a_step_that_waits_leaves_the_cores_to_others(instance, monkeypatch):
    @dg.asset(pool="dataset")
    def waits() -> None:
        pass

    holder = claims_of(instance)
    assert holder.claim("dataset", "other")
    pauses = after_pauses(6, lambda: holder.free_step("other"), monkeypatch)
    assert dg.materialize([waits], instance=instance).success
    assert len(pauses) >= 6, "it did not wait"
    assert sum(pause > 0 for pause in pauses[:6]) >= 3, "it kept a core busy with waiting"


def test_a_step_that_waits_can_be_interrupted(instance, monkeypatch):
    @dg.asset(pool="dataset")
    def waits() -> None:
        raise AssertionError("it got a slot")

    assert claims_of(instance).claim("dataset", "other")
    after_pauses(2, lambda: os.kill(os.getpid(), signal.SIGINT), monkeypatch)
    result = dg.materialize([waits], instance=instance, raise_on_error=False)
    assert not result.success
    (ended,) = [event.job_failure_data for event in result.all_events if event.is_job_failure]
    assert ended.failure_reason.value == "UNEXPECTED_TERMINATION"
