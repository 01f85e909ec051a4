"""Sensors and the schedule: they start runs automatically, and record how runs ended.

Those that start runs are off until switched on; those that record how a run ended are on.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import dagster as dg

from brainmri_core.config.data import RetryConfig
from brainmri_core.errors import BrainMRIError
from brainmri_core.project.catalogue import DatasetEntry
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import follow
from brainmri_core.project.pointers import CheckpointPointer, FetchPointer, PackPointer, ValidationPointer
from brainmri_core.sources.local import local_archive
from brainmri_core.system.checksums import sha256_file
from brainmri_core.system.clock import utc_now
from brainmri_dagster.defs.jobs import refresh_job, retrain_job
from brainmri_dagster.graph.partitions import catalogue
from brainmri_dagster.graph.resources import default_project, defaults
from brainmri_dagster.running.dead_runs import close_dead_runs, close_manifest
from brainmri_dagster.running.heartbeat import LastSign, last_signs
from brainmri_dagster.running.upstream import recorded_pointer

WEBHOOK_VARIABLE = "BRAINMRI_WEBHOOK_URL"
KAGGLE_EVERY_S = 6 * 3600
_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
# A tick of a sensor may take a minute for all data sets together; the next tick is the retry.
_ONE_TRY = RetryConfig(attempts=1, timeout_s=10.0)
Seen = dict[str, Any]


@dg.sensor(
    job=refresh_job,
    minimum_interval_seconds=30,
    description="Requests the whole graph when a data set has a new version: on Kaggle, or as a local archive.",
)
def new_dataset_version(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Look at every data set; each version triggers one run, also across restarts of the daemon."""
    cursor: dict[str, Seen] = json.loads(context.cursor) if context.cursor else {}
    requests, reasons = [], []
    for key, entry in catalogue().items():
        if not entry.labelled:  # the sensor `incoming_images` is for these
            continue
        seen = cursor.get(key, {})
        try:
            now = _version(entry, seen)
            version = now.get("version")
            new = version is not None and version != seen.get("version")
            new = new and not _is_fetched(context.instance, key, str(version))
        except (BrainMRIError, OSError) as error:
            context.log.warning(f"{key}: {error}")
            reasons.append(f"{key}: {error}")
            cursor[key] = seen | {"asked_at": utc_now().timestamp()}
            continue
        cursor[key] = now
        if not new:
            reasons.append(f"{key}: nothing new")
            continue
        requests.append(
            dg.RunRequest(
                run_key=f"{key}@{version}", partition_key=key, tags={"brainmri/dataset_version": str(version)}
            )
        )
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else dg.SkipReason("; ".join(reasons)),
        cursor=json.dumps(cursor, sort_keys=True),
    )


def _version(entry: DatasetEntry, seen: Seen) -> Seen:
    """Return the present version of a data set's source; cheap if nothing changed since `seen`."""
    archive = local_archive(defaults().fetch, entry)
    if archive is not None and archive.is_file():
        status = archive.stat()
        stat = [status.st_mtime_ns, status.st_size]
        if stat == seen.get("stat"):
            return seen
        return {"stat": stat, "version": f"archive-{sha256_file(archive)[:16]}"}
    asked_at = float(seen.get("asked_at", 0.0))
    if (
        entry.source != "kaggle"
        or defaults().fetch.offline
        or utc_now().timestamp() - asked_at < KAGGLE_EVERY_S
    ):
        return seen
    from brainmri_core.sources.kaggle import current_version

    return {
        "asked_at": utc_now().timestamp(),
        "version": f"v{current_version(entry.key, retry=_ONE_TRY)}",
    }


def _is_fetched(instance: dg.DagsterInstance, key: str, version: str) -> bool:
    pointer = recorded_pointer(instance, default_project().layout, "raw_dataset", key)
    if not isinstance(pointer, FetchPointer):
        return False
    if version.startswith("archive-"):
        return (pointer.archive_sha256 or "").startswith(version.removeprefix("archive-"))
    return version == f"v{pointer.version}"


@dg.sensor(
    job=retrain_job,
    minimum_interval_seconds=30,
    description="Requests training and evaluation when validated images differ from those of the newest checkpoint.",
)
def retrain(context: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Look at every data set that has a checkpoint and a passed validation."""
    requested = 0
    for key in catalogue():
        try:
            data = _untrained_data(context.instance, default_project().layout, key)
        except BrainMRIError as error:
            context.log.warning(f"{key}: {error}")
            continue
        if data is not None and not is_busy(context.instance, key):
            requested += 1
            yield dg.RunRequest(run_key=f"{key}@{data}", partition_key=key)
    if not requested:
        yield dg.SkipReason("Every checkpoint was trained on the newest validated images.")


def _untrained_data(instance: dg.DagsterInstance, layout: Layout, key: str) -> str | None:
    """Return a key of the validated images and the newest checkpoint, None if that was trained on these images.

    The key names both, so that images which come back after a training on others count as new again.
    """
    validation = recorded_pointer(instance, layout, "validation_report", key)
    checkpoint = recorded_pointer(instance, layout, "model_checkpoint", key)
    if not isinstance(validation, ValidationPointer) or not isinstance(checkpoint, CheckpointPointer):
        return None
    if not validation.passed:
        return None
    validated = follow(layout, PackPointer, validation.pack_pointer)
    trained = follow(layout, PackPointer, checkpoint.pack_pointer)
    if validated.content_hash == trained.content_hash:
        return None
    return f"{validated.content_hash[:16]}-after-{checkpoint.content_hash[:16]}"


def is_busy(instance: dg.DagsterInstance, key: str) -> bool:
    """Say whether a run of a data set is queued or running."""
    filters = dg.RunsFilter(statuses=_UNFINISHED, tags={"dagster/partition": key})
    return bool(instance.get_runs(filters, limit=1))


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Closes runs whose process was killed or whose machine went down: sets status and manifest, frees pool slots.",
)
def dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Look for started runs whose process no longer exists, or whose heartbeat has stopped."""
    seen = {run: LastSign(**sign) for run, sign in json.loads(context.cursor or "{}").items()}
    signs = last_signs(context.instance, seen)
    context.update_cursor(json.dumps({run: sign.model_dump() for run, sign in signs.items()}))
    closed = close_dead_runs(context.instance, default_project().layout, signs)
    return dg.SkipReason(f"Closed {', '.join(closed)}." if closed else "No run has died.")


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.CANCELED,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Closes the manifest of a run that was cancelled.",
)
def cancelled_manifest(context: dg.RunStatusSensorContext) -> None:
    """Close stages that the manifest still has as running or planned."""
    layout = default_project().layout
    close_manifest(context.instance, layout, context.dagster_run, "The run was cancelled.", cancelled=True)


@dg.run_failure_sensor(
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=f"Closes the manifest of a failed run and posts to the webhook of {WEBHOOK_VARIABLE}, if set.",
)
def failed_manifest(context: dg.RunFailureSensorContext) -> None:
    """Close the manifest, then tell the webhook which run failed and why."""
    reason = failure_reason(context)
    close_manifest(context.instance, default_project().layout, context.dagster_run, reason, cancelled=False)
    url = os.environ.get(WEBHOOK_VARIABLE)
    if url:
        try:
            post_failure(url, context.dagster_run, reason)
        except (OSError, ValueError) as error:
            context.log.warning(
                f"The webhook of {WEBHOOK_VARIABLE} could not be reached: {type(error).__name__}."
            )


def failure_reason(context: dg.RunFailureSensorContext) -> str:
    """Return the error of the first failed step, else the message of the run's failure event."""
    for event in context.get_step_failure_events():
        data = event.step_failure_data.user_failure_data
        if data is not None and data.description:
            return data.description
        if event.step_failure_data.error is not None:
            return event.step_failure_data.error.message.strip().splitlines()[0]
    return context.failure_event.message or "The run failed."


def post_failure(url: str, run: dg.DagsterRun, reason: str) -> None:
    """Post a run's failure as JSON (``text``, ``run_id``, ``job``, ``partition``).

    Raises
    ------
    ValueError
        If the URL is not http or https.
    OSError
        If it cannot be reached or answers with an error.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError("the webhook must be an http or https URL")
    body = {
        "text": f"{run.job_name} failed for {run.tags.get('dagster/partition', 'no partition')}: {reason}",
        "run_id": run.run_id,
        "job": run.job_name,
        "partition": run.tags.get("dagster/partition"),
    }
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}, method="POST"
    )
    # Not urlopen: its global opener keeps the proxy settings of the first request of this process.
    with urllib.request.build_opener().open(request, timeout=10):
        pass


@dg.schedule(
    job=refresh_job,
    cron_schedule="0 3 * * 1",
    execution_timezone="UTC",
    description="Every Monday at 03:00 UTC: the whole graph for every data set from Kaggle.",
)
def weekly(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:
    """Request one run per data set and week."""
    week = context.scheduled_execution_time.strftime("%G-W%V")
    return [
        dg.RunRequest(run_key=f"{key}@{week}", partition_key=key)
        for key, entry in catalogue().items()
        if entry.source == "kaggle"
    ]


automation = dg.AutomationConditionSensorDefinition(
    "automation",
    target=dg.AssetSelection.groups("model"),
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Declarative alternative to the retrain sensor: materialises assets whose upstreams are new and passed their checks.",
)
SENSORS = [new_dataset_version, retrain, dead_runs, cancelled_manifest, failed_manifest, automation]
SCHEDULES = [weekly]
