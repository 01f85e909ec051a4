"""Find runs whose process or machine died, close them and free their pool slots."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from brainmri_core.errors import BrainMRIError, StorageError
from brainmri_core.project.layout import Layout
from brainmri_core.project.run_record import close_run
from brainmri_core.project.run_sharing import is_taken
from brainmri_dagster.graph.asset_table import PROCESS_TAG
from brainmri_dagster.running.dagster_internals import WILL_RETRY_TAG
from brainmri_dagster.running.heartbeat import LastSign
from brainmri_dagster.running.processes import is_dead, this_process
from brainmri_dagster.running.stage_run import run_id_of

_REASON = (
    "The process of the run died (killed, out of memory, or the machine went down); start the run again."
)


def close_dead_runs(
    instance: dg.DagsterInstance, layout: Layout, signs: Mapping[str, LastSign] | None = None
) -> list[str]:
    """Mark runs as failed whose process is gone, close their manifests and give back their pool slots.

    Parameters
    ----------
    signs : mapping of str to LastSign, optional
        The last signs of life of runs on other machines, by Dagster run id.

    Returns
    -------
    list of str
        Dagster run ids that were closed.

    Raises
    ------
    BrainMRIError
        The first error that kept a manifest from being closed, raised after all other runs were closed. After an error of
        the disk the next call tries that run again.
    """
    closed: list[str] = []
    problems: list[BrainMRIError] = []
    statuses = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    for run in instance.get_runs(dg.RunsFilter(statuses=statuses)):
        silent = signs is not None and run.run_id in signs and signs[run.run_id].is_silence
        if not silent and not _is_dead_here(instance, run):
            continue
        cancelled = run.status == dg.DagsterRunStatus.CANCELING
        try:
            close_manifest(instance, layout, run, _REASON, cancelled=cancelled)
        except BrainMRIError as error:
            problems.append(error)
            if isinstance(error, StorageError):
                continue
        if cancelled:
            instance.report_run_canceled(run, message=_REASON)
        else:
            fail_run(instance, run, _REASON)
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        closed.append(run.run_id)
    if problems:
        raise problems[0]
    return closed


def fail_run(instance: dg.DagsterInstance, run: dg.DagsterRun, reason: str) -> None:
    """Record a run as failed, so that Dagster retries it where it retries runs."""
    if instance.run_retries_enabled:
        # Dagster sets this tag only after the run has failed. A backfill that looked in between would end, and the run would
        # not be retried.
        instance.add_run_tags(run.run_id, {WILL_RETRY_TAG: "true"})
    instance.report_run_failed(run, message=reason)


def _is_dead_here(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Say whether the run's process was on this machine and is gone."""
    process = run.tags.get(PROCESS_TAG)
    if process is None or not is_dead(process):
        return False
    # A retried run has its parent's tags until its own process begins its first stage.
    parent = instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
    return parent is None or parent.tags.get(PROCESS_TAG) != process


def close_own_runs(instance: dg.DagsterInstance, layout: Layout, reason: str, *, cancelled: bool) -> None:
    """Close the runs of this process that an interruption or a full disk kept from ending properly."""
    for run in instance.get_runs(dg.RunsFilter(tags={PROCESS_TAG: this_process()})):
        if not run.is_finished:
            report = instance.report_run_canceled if cancelled else instance.report_run_failed
            report(run, message=reason)
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        ended = instance.get_run_by_id(run.run_id) or run
        if ended.status != dg.DagsterRunStatus.SUCCESS:
            close_manifest(instance, layout, ended, reason, cancelled=cancelled)


def close_manifest(
    instance: dg.DagsterInstance, layout: Layout, run: dg.DagsterRun, reason: str, *, cancelled: bool
) -> bool:
    """Close the manifest of a run that ended without closing it; return False if the run left none."""
    try:
        run_id = run_id_of(instance, run)
    except BrainMRIError:
        return False
    if not is_taken(layout, run_id):
        return False
    close_run(layout, run_id, "cancelled" if cancelled else "failed", reason)
    return True
