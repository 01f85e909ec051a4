from __future__ import annotations

import os
import signal
import threading
import time

import dagster as dg
import pytest

from brainmri_core.layout import Layout
from brainmri_dagster.definitions import defs
from brainmri_dagster.launch import open_instance
from brainmri_dagster.pools import PatientClaims


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
    assert storage.has_unassigned_slots("dataset"), "the slot is free, and the waiting step was not told"
    deadline = time.monotonic() + 30
    while not second.claim("dataset", "raw_dataset"):
        assert time.monotonic() < deadline, "the step waits for ever"
        time.sleep(second.interval_to_next_pending_claim_check())


def test_a_step_that_waits_leaves_the_cores_to_others(instance, tmp_path):
    @dg.asset(pool="dataset")
    def waits() -> None:
        pass

    holder = claims_of(instance)
    assert holder.claim("dataset", "other")
    threading.Timer(3, holder.free_step, ["other"]).start()
    wall, busy = time.monotonic(), time.process_time()
    assert dg.materialize([waits], instance=instance).success
    wall, busy = time.monotonic() - wall, time.process_time() - busy
    assert wall > 2.5, "it did not wait"
    assert busy < 0.5 * wall, "it kept a core busy with waiting"


def test_a_step_that_waits_can_be_interrupted(instance):
    @dg.asset(pool="dataset")
    def waits() -> None:
        raise AssertionError("it got a slot")

    assert claims_of(instance).claim("dataset", "other")
    threading.Timer(3, os.kill, [os.getpid(), signal.SIGINT]).start()
    result = dg.materialize([waits], instance=instance, raise_on_error=False)
    assert not result.success
    (ended,) = [event.job_failure_data for event in result.all_events if event.is_job_failure]
    assert ended.failure_reason.value == "UNEXPECTED_TERMINATION"
