"""The schemas of a run's plan and manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from brainmri_core.project.layout import Layout
from brainmri_core.system.json_models import read_model

Status = Literal["planned", "running", "success", "failed", "cancelled", "skipped"]
_REMEDY = "restore it, or delete the run's folder"


class PlannedStage(BaseModel):
    """One stage of a plan: its resolved config and the pointers of its inputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    asset: str
    config: dict[str, Any]
    inputs: dict[str, str | None] = {}


class Plan(BaseModel):
    """What a run is going to do, written before it starts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    dagster_run_id: str | None
    dataset: str
    created_at_utc: str
    command: str
    env: dict[str, Any]
    config_hash: str
    code: dict[str, Any]
    stages: list[PlannedStage]


class RecordedPointer(BaseModel):
    """A copy of the pointer that a stage wrote, of any kind."""

    model_config = ConfigDict(frozen=True, extra="allow")

    pointer_path: str | None = None


class StageEntry(BaseModel):
    """The state and result of one stage."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    status: Status
    asset: str
    started_at_utc: str | None = None
    ended_at_utc: str | None = None
    duration_s: float | None = None
    pid: int | None = None
    inputs: dict[str, str | None] = {}
    pointer: RecordedPointer | None = None
    content_hash: str | None = None
    output_paths: list[str] = []
    output_hashes: dict[str, str] = {}
    metrics: dict[str, Any] = {}
    exit_code: int | None = None
    error: str | None = None


class Manifest(BaseModel):
    """The state of a run and the results of its stages."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    run_id: str
    dagster_run_id: str | None
    dataset: str | None
    started_at_utc: str
    updated_at_utc: str
    status: Status
    seed: int | None
    config_hash: str | None
    data_hash: str | None
    code: dict[str, Any]
    environment: dict[str, Any]
    stages: dict[str, StageEntry]


def overall_status(statuses: list[Status]) -> Status:
    """Return a run's status from those of its stages."""
    for status in ("failed", "cancelled", "running", "planned"):
        if status in statuses:
            return "running" if status == "planned" and "success" in statuses else status
    return "success" if statuses else "planned"


def manifest_files(layout: Layout) -> list[Path]:
    """List the run manifests of a project, oldest run id first."""
    return sorted(layout.runs.glob("*/run_manifest.json"))


def read_plan(path: Path) -> Plan:
    """Read a ``plan.json``.

    Raises
    ------
    IntegrityError
        If the file is not a plan.
    """
    return read_model(path, Plan, "is no plan", _REMEDY)


def read_manifest(path: Path) -> Manifest:
    """Read a ``run_manifest.json``.

    Raises
    ------
    IntegrityError
        If the file is not a manifest.
    """
    return read_model(path, Manifest, "is no run manifest", _REMEDY)
