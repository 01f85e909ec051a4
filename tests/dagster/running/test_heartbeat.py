from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from brainmri_core.project.layout import ROOT_VARIABLE, Layout
from brainmri_dagster.commands.launch import open_instance
from brainmri_dagster.definitions import defs
from brainmri_dagster.defs.sensors import dead_runs
from brainmri_dagster.graph.asset_table import PROCESS_TAG
from brainmri_dagster.running import heartbeat
from brainmri_dagster.running.dagster_internals import WILL_RETRY_TAG
from brainmri_dagster.running.dead_runs import close_dead_runs
from brainmri_dagster.running.heartbeat import LOOKS, LastSign, give_sign, last_signs
from brainmri_dagster.running.pools import PatientClaims
from tests.counts import PATIENCE_S

STARTED, FAILURE = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.FAILURE


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    with open_instance(Layout(root=tmp_path)) as opened:
        yield opened


def started(instance: dg.DagsterInstance, process: str = "elsewhere:1:1", parent: str | None = None) -> str:
    """Record a run that a process of another machine is working on."""
    job = defs.resolve_job_def("retrain")
    family = {"parent_run_id": parent, "root_run_id": parent} if parent else {}
    run = instance.create_run_for_job(job, tags={PROCESS_TAG: process}, status=STARTED, **family)
    return run.run_id


def status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_a_run_of_another_machine_is_closed_when_it_gives_no_sign_for_long(instance, monkeypatch):
    dead, alive, mute = (started(instance) for _ in range(3))
    give_sign(instance, dead)
    cursor = None

    def look(before: str | None) -> str | None:
        give_sign(instance, alive)
        context = dg.build_sensor_context(instance=instance, definitions=defs, cursor=before)
        dead_runs(context)
        return context.cursor

    for _ in range(LOOKS + 1):
        cursor = look(cursor)
    assert status(instance, dead) == STARTED, "silent for many looks, but not for long"
    monkeypatch.setattr(heartbeat, "SILENCE_S", 0.0)
    look(cursor)
    assert [status(instance, run) for run in (dead, alive, mute)] == [FAILURE, STARTED, STARTED]
    assert set(json.loads(look(cursor))) == {alive}, "what has ended is not remembered"


def test_after_an_outage_of_the_storage_a_few_looks_find_no_death(instance, monkeypatch):
    monkeypatch.setattr(heartbeat, "SILENCE_S", 0.0)
    run = started(instance)
    give_sign(instance, run)
    seen: dict[str, LastSign] = {}
    for _ in range(LOOKS - 1):
        seen = last_signs(instance, seen)
        assert not seen[run].is_silence
    assert last_signs(instance, seen)[run].is_silence
    give_sign(instance, run)
    assert last_signs(instance, seen)[run].looks == 1


def test_a_run_gives_signs_while_its_steps_work_and_none_on_one_machine(instance, monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.02)
    run = instance.create_run_for_job(defs.resolve_job_def("retrain"), status=STARTED)
    with PatientClaims(instance, run):
        time.sleep(0.2)
    assert last_signs(instance, {}) == {}, "SQLite is for one machine"
    monkeypatch.setattr(heartbeat, "SqliteRunStorage", ())
    signs = set()
    with PatientClaims(instance, run):
        deadline = time.monotonic() + PATIENCE_S
        while len(signs) < 3:
            signs |= {sign.sign for sign in last_signs(instance, {}).values()}
            assert time.monotonic() < deadline, signs
    after = last_signs(instance, {})
    time.sleep(0.2)
    assert {run: sign.sign for run, sign in last_signs(instance, {}).items()} == {
        run: sign.sign for run, sign in after.items()
    }


def test_signs_go_on_after_the_storage_was_away(instance, monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.02)
    monkeypatch.setattr(heartbeat, "SqliteRunStorage", ())
    run = instance.create_run_for_job(defs.resolve_job_def("retrain"), status=STARTED)
    real, tries = type(instance.run_storage).set_cursor_values, []

    def away_at_first(self, pairs):
        tries.append(pairs)
        if len(tries) < 3:
            raise ConnectionError("the server closed the connection")
        real(self, pairs)

    monkeypatch.setattr(type(instance.run_storage), "set_cursor_values", away_at_first)
    with PatientClaims(instance, run):
        deadline = time.monotonic() + PATIENCE_S
        while not last_signs(instance, {}):
            assert time.monotonic() < deadline, "no sign was given after the outage"


def test_a_run_started_again_is_not_taken_for_its_dead_parent(instance, tmp_path):
    gone = f"{socket.gethostname()}:1:1"
    parent = started(instance, gone)
    assert close_dead_runs(instance, Layout(root=tmp_path)) == [parent]
    child = started(instance, gone, parent)  # its tags are its parent's until its first stage begins
    assert close_dead_runs(instance, Layout(root=tmp_path)) == []
    instance.add_run_tags(child, {PROCESS_TAG: f"{socket.gethostname()}:1:2"})
    assert close_dead_runs(instance, Layout(root=tmp_path)) == [child]


def test_a_backfill_cannot_see_a_dead_run_as_failed_for_good_before_its_retry_is_decided(
    instance, tmp_path, monkeypatch
):
    run, before = started(instance, f"{socket.gethostname()}:1:1"), {}
    real = type(instance).report_run_failed

    def reports(self, dagster_run, *args, **kwargs):
        before.update(self.get_run_by_id(dagster_run.run_id).tags)
        return real(self, dagster_run, *args, **kwargs)

    monkeypatch.setattr(type(instance), "report_run_failed", reports)
    close_dead_runs(instance, Layout(root=tmp_path))
    assert before[WILL_RETRY_TAG] == "true"
    assert instance.get_run_by_id(run).tags[WILL_RETRY_TAG] == "false", (
        "one machine retries only if it is asked to"
    )
