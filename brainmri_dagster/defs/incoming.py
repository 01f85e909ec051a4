"""The sensor that watches the folders of data sets without labels, and the job it requests."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import dagster as dg

from brainmri_core.errors import BrainMRIError
from brainmri_core.project.foreign_names import LEFT_OUT_FOLDERS, is_litter
from brainmri_core.sources.local import local_archive
from brainmri_core.system.clock import utc_now
from brainmri_core.wording import counted
from brainmri_dagster.defs.sensors import is_busy
from brainmri_dagster.graph.partitions import catalogue
from brainmri_dagster.graph.resources import defaults

INTERVAL_S = 30
incoming_job = dg.define_asset_job(
    "incoming",
    selection=dg.AssetSelection.assets("raw_dataset", "batch_predictions"),
    description="Fetch a folder without labels, and predict what is new in it.",
)


@dg.sensor(
    job=incoming_job,
    minimum_interval_seconds=INTERVAL_S,
    description="Requests predictions of the files that are new in the folder of a data set without labels.",
)
def incoming_images(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Look at every such folder; a file is requested once, after two looks have found it unchanged."""
    before = json.loads(context.cursor) if context.cursor else {}
    after, requests, reasons = {}, [], []
    for key, entry in catalogue().items():
        if entry.labelled:
            continue
        seen: dict[str, Any] = before.get(key, {})
        after[key] = seen
        try:
            folder = local_archive(defaults().fetch, entry)
            if folder is None or not folder.is_dir():
                reasons.append(f"{key}: its folder does not exist")
                continue
            now = utc_now().timestamp()
            present = _marks(folder)
        except (BrainMRIError, OSError) as error:
            context.log.warning(f"{key}: {error}")
            reasons.append(f"{key}: {error}")
            continue
        complete = _complete(present, seen)
        requested = set(seen.get("requested", ())) & set(present)
        new = complete - requested
        if new and is_busy(context.instance, key):
            reasons.append(f"{key}: {counted(len(new), 'new file')} waiting for the present run to end")
            new = set()
        elif new:
            requests.append(_request(key, complete, float(seen["looked_at"])))
        else:
            waiting = counted(len(set(present) - complete), "file")
            reasons.append(
                f"{key}: {'nothing new' if complete >= set(present) else f'{waiting} may still be changing'}"
            )
        after[key] = {
            "looked_at": now,
            "incomplete": sorted(set(present) - complete),
            "complete": sorted(complete - requested - new),
            "requested": sorted(requested | new),
        }
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None
        if requests
        else dg.SkipReason("; ".join(reasons) or "There is no data set without labels."),
        cursor=json.dumps(after, sort_keys=True),
    )


def _marks(folder: Path) -> dict[str, float]:
    """Return a short hash of path, size and time of each file of a folder, with the time of its last change."""
    found = {}
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in LEFT_OUT_FOLDERS and name[0] != "."]
        for name in files:
            path = Path(here) / name
            relative = path.relative_to(folder).as_posix()
            if is_litter(relative) or name[0] == ".":  # fetch leaves these out, too
                continue
            try:
                status = path.stat()
            except FileNotFoundError:  # moved away meanwhile
                continue
            text = f"{relative}\0{status.st_size}\0{status.st_mtime_ns}".encode(errors="surrogateescape")
            found[hashlib.blake2b(text, digest_size=8).hexdigest()] = status.st_mtime
    return found


def _complete(present: dict[str, float], seen: dict[str, Any]) -> set[str]:
    """Return the files that are unchanged since the last look, and whose time of change lies before it."""
    known = {mark for name in ("incomplete", "complete", "requested") for mark in seen.get(name, ())}
    looked_at = float(seen.get("looked_at", 0.0))
    return {mark for mark, changed in present.items() if mark in known and changed <= looked_at}


def _request(key: str, complete: set[str], looked_at: float) -> dg.RunRequest:
    """Request one run for a set of files; fetch leaves out files that changed after the look that found these."""
    version = hashlib.sha256("".join(sorted(complete)).encode()).hexdigest()[:16]
    return dg.RunRequest(
        run_key=f"{key}@{version}",
        partition_key=key,
        run_config={"ops": {"raw_dataset": {"config": {"modified_before": looked_at}}}},
    )
