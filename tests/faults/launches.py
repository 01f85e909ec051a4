"""Runs of the command line in children of the warm process, on a project and Dagster instance of their own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from brainmri_core.config import STAGES
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointers import Pointer
from tests import ROOT


def make_home(folder: Path) -> None:
    """Lay out a Dagster instance with the limits that ``brainmri_dagster/dagster.yaml`` sets."""
    (folder / "home").mkdir(parents=True)
    shutil.copy(ROOT / "brainmri_dagster/dagster.yaml", folder / "home")


def pipeline(folder: str, config: str, run_id: str, stages: list[str] | None = None) -> None:
    """Run stages as ``brainmri pipeline`` does, and end with its exit code."""
    os.environ["BRAINMRI_HOME"] = str(Path(folder) / "project")
    os.environ["DAGSTER_HOME"] = str(Path(folder) / "home")
    from brainmri_dagster.cli import app

    skipped = [word for stage in STAGES if stages and stage not in stages for word in ("--skip", stage)]
    app(
        [
            "pipeline",
            "--config",
            config,
            "--run-id",
            run_id,
            "--dataset",
            DATASETS.get(run_id[0], PHANTOM),
            *skipped,
        ]
    )


def pipeline_stopped_after_pointer(folder: str, config: str, run_id: str, stage: str, number: int) -> None:
    """Run the pipeline; a signal comes when a stage's pointer is written and its asset has not yet gone on."""
    from brainmri_dagster.running import io_managers

    record = io_managers.record_pointer

    def record_and_stop(layout: Layout, run: str, name: str, pointer: Pointer) -> None:
        record(layout, run, name, pointer)
        if name == stage:
            os.kill(os.getpid(), number)

    io_managers.record_pointer = record_and_stop
    pipeline(folder, config, run_id)


PHANTOM = "brainmri/phantom"
OTHER = "sartajbhuvaji/brain-tumor-classification-mri"
# Run ids that begin with "o" are runs of the other partition.
DATASETS = {"o": OTHER}
