"""The records of a run: the plan, written before it starts, and the manifest of its stages and results."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, Literal

import yaml

from brainmri_core.errors import BrainMRIError, ConfigError, StorageError
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import PATH_FIELDS, result_files
from brainmri_core.project.pointers import Pointer
from brainmri_core.project.provenance import code_version, environment
from brainmri_core.project.run_schema import Plan, PlannedStage, overall_status, read_manifest, read_plan
from brainmri_core.project.run_sharing import (
    MANIFEST_FILE,
    PLAN_FILE,
    is_taken,
    pass_on_plan,
    pass_on_run,
    take_in_run,
)
from brainmri_core.system.checksums import sha256_file, sha256_json
from brainmri_core.system.clock import timestamp, utc_now
from brainmri_core.system.json_files import json_text, read_json, write_json
from brainmri_core.system.locks import exclusive
from brainmri_core.system.signals import signals_held
from brainmri_core.system.storage import write_bytes, write_new

CANCELLED_EXIT_CODE = 130


def new_run_id(created: datetime, unique: str) -> str:
    """Return a sortable, unique run id such as ``20261123T200527-1f0c9ab2``."""
    return f"{created:%Y%m%dT%H%M%S}-{unique[:8]}"


def write_plan(layout: Layout, plan: Plan) -> bool:
    """Write ``plan.json``, each stage's config and the first manifest; return False if the run has a plan already."""
    folder = layout.run_dir(plan.run_id)
    if not write_new(folder / PLAN_FILE, json_text(plan.model_dump(mode="json")).encode()):
        return False
    if not pass_on_plan(layout, plan.run_id):
        (folder / PLAN_FILE).unlink()
        refuse_existing(layout, plan.run_id)
    for stage in plan.stages:
        write_bytes(folder / f"{stage.stage}.yaml", yaml.safe_dump(stage.config, sort_keys=False).encode())
    with _manifest(layout, plan.run_id) as manifest:
        planned = {item.stage: {"status": "planned", "asset": item.asset} for item in plan.stages}
        manifest["stages"] = planned | manifest.get("stages", {})
    return True


def refuse_existing(layout: Layout, run_id: str) -> None:
    """Raise ConfigError if a run of this id has a record."""
    if is_taken(layout, run_id):
        folder = layout.run_dir(run_id)
        where = layout.relative(folder) if layout.url else folder
        raise ConfigError(
            f"The run id {run_id!r} is taken ({where} exists); give another one or leave run_id empty."
        )


@contextmanager
def _manifest(layout: Layout, run_id: str, *, failing: bool = False) -> Iterator[dict[str, Any]]:
    """Change a run's manifest; where `failing`, an unreachable object store does not hide the error of the stage."""
    passed_over = (StorageError,) if failing else ()
    folder = layout.run_dir(run_id)
    path = folder / MANIFEST_FILE
    with exclusive(layout.lock("run", run_id)):
        shared = None
        with suppress(*passed_over):
            shared = take_in_run(layout, run_id)
        plan = read_plan(folder / PLAN_FILE) if (folder / PLAN_FILE).is_file() else None
        manifest: dict[str, Any] = (
            read_manifest(path).model_dump(mode="json", exclude_unset=True)
            if path.is_file()
            else {
                "run_id": run_id,
                "dagster_run_id": plan and plan.dagster_run_id,
                "dataset": plan and plan.dataset,
                "started_at_utc": timestamp(utc_now()),
                "seed": plan and plan.env.get("seed"),
                "config_hash": plan and plan.config_hash,
                "data_hash": None,
                "code": code_version(),
                "stages": {},
            }
        )
        yield manifest
        manifest["environment"] = environment()
        manifest["status"] = overall_status([item["status"] for item in manifest["stages"].values()])
        manifest["updated_at_utc"] = timestamp(utc_now())
        write_json(path, manifest)
        if shared is not None:
            with suppress(*passed_over):
                pass_on_run(layout, run_id, shared, manifest)


class StageRecord:
    """Collect the content of a stage's manifest entry, besides its status and times."""

    def __init__(self, layout: Layout) -> None:
        self.entry: dict[str, Any] = {}
        self._layout = layout

    def result(self, pointer: Pointer, metrics: Mapping[str, Any] | None = None) -> None:
        """Record the stage's pointer, key metrics, and the SHA-256 of every file of its result."""
        values = pointer.model_dump(mode="json")
        self.entry["pointer"] = values
        self.entry["content_hash"] = pointer.content_hash
        self.entry["output_paths"] = sorted(
            {str(v) for k, v in values.items() if k in PATH_FIELDS and v and not k.endswith("_pointer")}
        )
        self.entry["output_hashes"] = {
            self._layout.relative(path): sha256_file(path) for path in result_files(self._layout, pointer)
        }
        self.entry["metrics"] = dict(metrics or {})


@contextmanager
def stage_record(
    layout: Layout, run_id: str, stage: str, asset: str, inputs: Mapping[str, str | None] | None = None
) -> Iterator[StageRecord]:
    """Keep a stage's entry in the run manifest: running, then success, failed or cancelled, with exit code and times.

    An exception is recorded and raised again; the stages that are still planned are then marked as skipped.
    """
    record = StageRecord(layout)
    started, clock = timestamp(utc_now()), time.monotonic()
    base = {"asset": asset, "started_at_utc": started, "pid": os.getpid(), "inputs": dict(inputs or {})}
    with signals_held(), _manifest(layout, run_id) as manifest:
        manifest["stages"][stage] = {"status": "running", **base}
    end: dict[str, Any] = {"status": "success", "exit_code": 0}
    try:
        yield record
    except Exception as error:
        end = {"status": "failed", "exit_code": getattr(error, "exit_code", 1), "error": _sentence(error)}
        raise
    except BaseException:
        end = {"status": "cancelled", "exit_code": CANCELLED_EXIT_CODE, "error": "The run was interrupted."}
        raise
    finally:
        end |= {"ended_at_utc": timestamp(utc_now()), "duration_s": round(time.monotonic() - clock, 3)}
        failing = end["status"] != "success"
        with signals_held(), _manifest(layout, run_id, failing=failing) as manifest:
            before = manifest["stages"].get(stage, {})
            stored = {"pointer": before["pointer"]} if "pointer" in before else {}
            manifest["stages"][stage] = {**base, **record.entry, **stored, **end}
            if manifest.get("data_hash") is None and end["status"] == "success":  # so the inputs are readable
                manifest["data_hash"] = _data_hash(layout, stage, manifest["stages"][stage])
            if end["status"] != "success":
                for other in manifest["stages"].values():
                    if other["status"] == "planned":
                        other["status"] = "skipped"


def _data_hash(layout: Layout, stage: str, entry: Mapping[str, Any]) -> str | None:
    """Return the content hash of the data that a run's first stage fetched or received."""
    if stage == "fetch":
        return entry.get("content_hash")
    files = [layout.absolute(path) for path in entry["inputs"].values() if path]
    return next((read_json(path).get("content_hash") for path in files if path.is_file()), None)


def record_pointer(layout: Layout, run_id: str, stage: str, pointer: Pointer) -> None:
    """Add a stage's stored pointer to the stage's manifest entry."""
    with _manifest(layout, run_id) as manifest:
        manifest["stages"][stage]["pointer"] = pointer.model_dump(mode="json")


def close_run(layout: Layout, run_id: str, status: Literal["failed", "cancelled"], reason: str) -> None:
    """Close the manifest of a run that ended without closing it.

    Unfinished stages get `status`, and planned ones are skipped. A stage whose result is complete but whose pointer was not
    written counts as unfinished. Where the run ended between two stages, the next stage gets `status`.
    """
    if not is_taken(layout, run_id):
        return
    with _manifest(layout, run_id) as manifest:
        end = {
            "status": status,
            "exit_code": CANCELLED_EXIT_CODE if status == "cancelled" else 1,
            "error": reason,
        }
        entries = list(manifest["stages"].values())
        for entry in entries:
            unwritten = entry["status"] == "success" and not (entry.get("pointer") or {}).get("pointer_path")
            if entry["status"] == "running" or unwritten:
                entry |= end
        stopped = any(entry["status"] in ("failed", "cancelled") for entry in entries)
        for entry in (entry for entry in entries if entry["status"] == "planned"):
            entry |= {"status": "skipped"} if stopped else end
            stopped = True


def _sentence(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text if isinstance(error, BrainMRIError) else f"{type(error).__name__}: {text.splitlines()[0]}"


def make_plan(
    *,
    run_id: str,
    dagster_run_id: str | None,
    dataset: str,
    command: str,
    env: Mapping[str, Any],
    stages: list[PlannedStage],
) -> Plan:
    """Assemble a plan; its config hash covers the environment and every stage's resolved config."""
    return Plan(
        run_id=run_id,
        dagster_run_id=dagster_run_id,
        dataset=dataset,
        created_at_utc=timestamp(utc_now()),
        command=command,
        env=dict(env),
        config_hash=sha256_json({"env": dict(env), "stages": {item.stage: item.config for item in stages}}),
        code=code_version(),
        stages=stages,
    )
