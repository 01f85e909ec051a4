"""Backfills: many partitions, made by runs of the Dagster daemon, while one command waits."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Sequence
from shlex import quote
from typing import Any

import dagster as dg

from brainmri_core.config.experiments import apply_experiment, find_experiment
from brainmri_core.errors import BrainMRIError, ConfigError, MissingUpstreamError
from brainmri_core.project.catalogue import find_entry
from brainmri_core.project.pointers import ValidationPointer
from brainmri_core.project.run_record import CANCELLED_EXIT_CODE
from brainmri_core.system.clock import utc_now
from brainmri_dagster.graph.asset_table import EXPERIMENT_TAG, dataset_of, trained_on
from brainmri_dagster.graph.partitions import catalogue
from brainmri_dagster.graph.resources import default_project, defaults
from brainmri_dagster.graph.run_config import run_config_for
from brainmri_dagster.running.dagster_internals import (
    BACKFILL_ID_TAG,
    BULK_ACTION_TERMINAL_STATUSES,
    AssetGraph,
    AssetGraphSubset,
    AssetKeyPartitionKey,
    AssetPartitionStatus,
    AssetSelection,
    BulkActionStatus,
    PartitionBackfill,
    get_daemon_statuses,
)
from brainmri_dagster.running.upstream import recorded_pointer

_DAEMONS = ["BACKFILL", "QUEUED_RUN_COORDINATOR"]
_POLL_S = 1.0
# Daemons send a heartbeat every 30 s; Dagster itself calls a daemon healthy for half an hour after the last one.
_SILENCE_S = 120
Target = dict[str, list[str]]


class DaemonError(BrainMRIError):
    """The Dagster daemon, which runs backfills, is not running."""

    exit_code = 9


def backfill(
    instance: dg.DagsterInstance,
    select: str,
    datasets: Sequence[str],
    *,
    only_missing: bool = False,
    experiment: str | None = None,
) -> int:
    """Launch a backfill, wait for it, show its progress, and return the exit code.

    Parameters
    ----------
    instance : dagster.DagsterInstance
        The instance that the daemon serves.
    select : str
        Assets in Dagster's selection syntax, such as ``fold_evaluation+``.
    datasets : sequence of str
        Data sets whose partitions (and folds) are filled; empty means all of the catalogue.
    only_missing : bool
        Leave out partitions whose last materialisation succeeded.
    experiment : str or None
        Name or file of the experiment whose settings the runs use; None uses the defaults.

    Raises
    ------
    ConfigError
        If the selection names no asset, or a data set or the experiment is unknown.
    DaemonError
        If no daemon serves the instance, or the daemon stops while the backfill runs.
    """
    from brainmri_dagster.code_location import defs
    from brainmri_dagster.defs.jobs import WITHOUT_GPU

    graph = defs.resolve_asset_graph()
    for name in datasets:
        find_entry(catalogue(), name)
    config = apply_experiment(defaults(), find_experiment(experiment)) if experiment is not None else None
    target = targets(instance, graph, select, list(datasets) or list(catalogue()), only_missing=only_missing)
    if not target:
        print("Nothing to do: no partition is missing or failed.")
        return 0
    require_daemon(instance)
    run_config = None if config is None else run_config_for(config, list(target))
    tags = {} if experiment is None else {EXPERIMENT_TAG: find_experiment(experiment).stem}
    if not any("accelerator" in (graph.get(dg.AssetKey(name)).pools or ()) for name in target):
        tags |= WITHOUT_GPU
    return launch_and_wait(instance, graph, target, run_config, tags)


def launch_and_wait(
    instance: dg.DagsterInstance,
    graph: AssetGraph,
    target: Target,
    run_config: dict[str, Any] | None,
    tags: dict[str, str],
    times: int = 1,
) -> int:
    """Launch a backfill of the partitions, `times` over, wait for all of them, and return the exit code."""
    count = sum(len(keys) for keys in target.values())
    launched = [_launch(instance, graph, target, run_config, tags) for _ in range(times)]
    for identifier in launched:
        print(f"backfill {identifier}: {count} partitions of {', '.join(target)}", file=sys.stderr)
    try:
        return max(_wait(instance, identifier, count) for identifier in launched)
    except KeyboardInterrupt:
        for identifier in launched:
            found = instance.get_backfill(identifier)
            if found is not None and found.status not in BULK_ACTION_TERMINAL_STATUSES:
                instance.update_backfill(found._replace(status=BulkActionStatus.CANCELING))
        print("brainmri: the backfill is being cancelled.", file=sys.stderr)
        return CANCELLED_EXIT_CODE


def targets(
    instance: dg.DagsterInstance, graph: AssetGraph, select: str, datasets: list[str], *, only_missing: bool
) -> Target:
    """Return the partitions to fill, by asset; missing fold checkpoints that the selection needs are added."""
    known = ", ".join(sorted(key.to_user_string() for key in graph.get_all_asset_keys()))
    try:
        keys = AssetSelection.from_string(select).resolve(graph)
    except dg.DagsterInvalidSubsetError:
        keys = set()
    except dg.DagsterError as error:
        text = str(error).strip().splitlines()[0]
        raise ConfigError(f"--select {select!r} is not a valid asset selection: {text}") from None
    if not keys:
        raise ConfigError(f"--select {select!r} selects no asset; choose from {known}.")
    apart = {key for key in keys if graph.get(key).partitions_def is None}
    if apart == keys:
        names = " and ".join(sorted(key.to_user_string() for key in apart))
        raise ConfigError(f"The asset {names} has no partitions to fill; materialise it instead.")
    found: Target = {}
    for key in graph.toposorted_asset_keys:
        if key not in keys - apart:
            continue
        partitions = _partitions(graph, key, datasets)
        if key.to_user_string() == "external_evaluation":
            partitions = _measurable(instance, partitions)
        found[key.to_user_string()] = (
            _unmade(instance, graph, key, partitions) if only_missing else partitions
        )
    if "fold_evaluation" in found and "fold_checkpoint" not in found:
        checkpoint = dg.AssetKey("fold_checkpoint")
        needed = found["fold_evaluation"]
        found = {"fold_checkpoint": _unmade(instance, graph, checkpoint, needed), **found}
    return {name: partitions for name, partitions in found.items() if partitions}


def _partitions(graph: AssetGraph, key: dg.AssetKey, datasets: list[str]) -> list[str]:
    definition = graph.get(key).partitions_def
    assert definition is not None
    keys = map(str, definition.get_partition_keys())
    return [key for key in keys if {dataset_of(key), trained_on(key) or dataset_of(key)} <= set(datasets)]


def _measurable(instance: dg.DagsterInstance, pairs: list[str]) -> list[str]:
    """Return the pairs whose first data set has a checkpoint and whose other has a pack; print what is left out.

    Raises
    ------
    MissingUpstreamError
        If there is none.
    """
    layout = default_project().layout

    def missing(asset: str, names: set[str]) -> set[str]:
        return {name for name in names if recorded_pointer(instance, layout, asset, name) is None}

    ends = [(str(trained_on(pair)), dataset_of(pair)) for pair in pairs]
    names = {name for end in ends for name in end}
    untrained, unpacked = missing("model_checkpoint", names), missing("resized_images", names)
    found = [
        pair
        for pair, (trained, measured) in zip(pairs, ends, strict=True)
        if trained != measured and trained not in untrained and measured not in unpacked
    ]
    reasons = [
        f"{what}: {', '.join(sorted(left))}"
        for what, left in (("without a checkpoint", untrained), ("without resized images", unpacked))
        if left
    ]
    if not found:
        listed = f" ({'; '.join(reasons)})" if reasons else ""
        raise MissingUpstreamError(
            "No pair of data sets can be evaluated: one must have a checkpoint and the other resized images"
            f"{listed}; run `brainmri train` or `brainmri resize`, or name two data sets with --dataset."
        )
    if reasons:
        print(f"left out: data sets {'; '.join(reasons)}", file=sys.stderr)
    return found


def _unmade(
    instance: dg.DagsterInstance, graph: AssetGraph, key: dg.AssetKey, partitions: list[str]
) -> list[str]:
    definition = graph.get(key).partitions_def
    assert definition is not None
    statuses = instance.get_status_by_partition(key, partitions, definition) or {}
    missing = [item for item in partitions if statuses.get(item) is not AssetPartitionStatus.MATERIALIZED]
    if key.to_user_string() == "validation_report":  # it is materialised even if validation failed
        layout = default_project().layout
        for item in set(partitions).difference(missing):
            found = recorded_pointer(instance, layout, "validation_report", item)
            if isinstance(found, ValidationPointer) and not found.passed:
                missing.append(item)
    return [item for item in partitions if item in missing]


def require_daemon(instance: dg.DagsterInstance) -> None:
    """Raise DaemonError unless the daemons that run backfills have sent a heartbeat recently."""
    statuses = get_daemon_statuses(
        instance, _DAEMONS, ignore_errors=True, heartbeat_tolerance_seconds=_SILENCE_S
    )
    if not all(status.healthy for status in statuses.values()):
        home = instance.root_directory
        raise DaemonError(
            "No Dagster daemon is running, and backfills need it; start one with "
            f"`DAGSTER_HOME={quote(home)} dagster-daemon run -w workspace.yaml`, then try again."
        )


def _launch(
    instance: dg.DagsterInstance,
    graph: AssetGraph,
    target: Target,
    run_config: dict[str, Any] | None,
    tags: dict[str, str],
) -> str:
    wanted = {
        AssetKeyPartitionKey(dg.AssetKey(name), item)
        for name, partitions in target.items()
        for item in partitions
    }
    identifier = uuid.uuid4().hex[:8]
    instance.add_backfill(
        PartitionBackfill.from_asset_graph_subset(
            backfill_id=identifier,
            backfill_timestamp=utc_now().timestamp(),
            tags={"brainmri/backfill": "cli", **tags},
            dynamic_partitions_store=instance,
            asset_graph_subset=AssetGraphSubset.from_asset_partition_set(wanted, graph),
            title=", ".join(target)[:100],
            description=None,
            # Each run makes some of the assets; Dagster ignores the settings of the others.
            run_config=run_config,
        )
    )
    return identifier


def _wait(instance: dg.DagsterInstance, identifier: str, count: int) -> int:
    shown = ""
    while True:
        found = instance.get_backfill(identifier)
        every = instance.get_runs(dg.RunsFilter(tags={BACKFILL_ID_TAG: identifier}))
        # A retried run counts by its retry.
        again = {run.parent_run_id for run in every}
        runs = [run for run in every if run.run_id not in again]
        ended = [run for run in runs if run.is_finished]
        failed = [run for run in ended if run.status != dg.DagsterRunStatus.SUCCESS]
        line = f"{len(ended)} of {len(runs)} runs ended, {len(failed)} failed"
        if line != shown:
            print(line, file=sys.stderr)
            shown = line
        require_daemon(instance)
        if found is None or found.status in (
            *BULK_ACTION_TERMINAL_STATUSES,
            BulkActionStatus.COMPLETED_FAILED,
        ):
            break
        time.sleep(_POLL_S)
    for run in failed:
        print(f"{run.tags.get('dagster/partition', run.run_id)}: {_reason(instance, run)}", file=sys.stderr)
    if found is not None and found.status is BulkActionStatus.COMPLETED_SUCCESS and not failed:
        print(f"backfill {identifier}: all {count} partitions are done")
        return 0
    status = found.status.value if found is not None else "deleted"
    why = f": {_cause(found.error.message)}" if found is not None and found.error is not None else "."
    print(f"brainmri: the backfill {identifier} ended with status {status}{why}", file=sys.stderr)
    return BrainMRIError.exit_code


def _cause(message: str) -> str:
    """Return why the daemon ended a backfill; Dagster's own words for a daemon with older settings mislead."""
    if "have been removed since this backfill was stored" in message:
        return (
            "the daemon knows fewer partitions than this command, because it reads the configuration (split.folds, the "
            "catalogue) when it starts; restart it and ask again."
        )
    return message.strip().splitlines()[0]


def _reason(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    for record in instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records:
        event = record.event_log_entry.dagster_event
        data = event.step_failure_data if event is not None else None
        if data is not None and data.user_failure_data is not None:
            return str(data.user_failure_data.description)
        if data is not None and data.error is not None:
            return data.error.message.strip().splitlines()[0]
    for record in instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records:
        event = record.event_log_entry.dagster_event
        if event is not None and event.message:
            return event.message.strip().splitlines()[0]
    return f"the run {run.run_id} ended with status {run.status.value}"
