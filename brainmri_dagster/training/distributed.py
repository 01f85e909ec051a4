"""Training by several processes: torchrun under Dagster Pipes, with the metrics in the event log and no process left."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import dagster as dg

from brainmri_core import errors
from brainmri_core.config.training import TrainConfig
from brainmri_core.errors import BrainMRIError, ModelError
from brainmri_core.project.pointers import CheckpointPointer, PackPointer
from brainmri_dagster.graph.asset_table import CONSOLE_TAG
from brainmri_dagster.graph.resources import ProjectConfig
from brainmri_dagster.running.dagster_internals import DagsterPipesExecutionError
from brainmri_dagster.running.stage_run import StageRun

_TERMINATION_S = 60.0


def run_training(
    config: TrainConfig, pack: PackPointer, run: StageRun, context: dg.AssetExecutionContext
) -> CheckpointPointer:
    """Train in this process, or in as many as ``train.distributed.nproc`` says.

    Raises
    ------
    BrainMRIError
        What the training raised, in whichever process.
    ModelError
        If a process of several died; its traceback is in the log.
    """
    if config.distributed.nproc == 1:
        from brainmri_core.train import train

        return train(config, pack, run.job)
    with tempfile.TemporaryDirectory(prefix="brainmri-train-") as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*expected_writer_count")  # Dagster warns of its own use
        client = dg.PipesSubprocessClient(termination_timeout_seconds=_TERMINATION_S)
        try:
            done = client.run(
                context=context.op_execution_context,
                command=_command(config.distributed.nproc, folder),
                env=_environment(config.distributed.nproc),
                extras=_request(config, pack, run, context),
            )
        except DagsterPipesExecutionError:
            raise _reason(Path(folder), config.distributed.nproc, run) from None
        return CheckpointPointer.model_validate(done.get_custom_messages()[-1])


def _command(nproc: int, folder: str) -> list[str]:
    return [sys.executable, "-m", "brainmri_dagster.training.torchrun", str(nproc), folder, str(os.getpid())]


def _environment(nproc: int) -> dict[str, str]:
    """Share the cores among the processes, unless the user has decided; torchrun would give each a single thread."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // nproc)))}


def _request(
    config: TrainConfig, pack: PackPointer, run: StageRun, context: dg.AssetExecutionContext
) -> dict[str, Any]:
    job = run.job
    step = context.op_execution_context.get_step_execution_context()
    project: ProjectConfig = step.scoped_resources_builder.build({"project"}).project
    return {
        "config": config.model_dump(mode="json", by_alias=True),
        "pack": pack.model_dump(mode="json"),
        "root": str(job.layout.root),
        "run_id": job.run_id,
        "entry": job.entry.model_dump(mode="json"),
        "env": job.env.model_dump(mode="json"),
        "log": project.log.model_dump(mode="json", by_alias=True),
        "console": CONSOLE_TAG in step.dagster_run.tags or project.log.json_lines,
    }


def _reason(folder: Path, nproc: int, run: StageRun) -> BrainMRIError:
    """Return why the processes ended: a sentence one of them had, else how the first one died.

    The others fail as well, of the connection they lose; so a process that was killed goes before those that raised, of
    these the first in time, and those that torchrun ended come last.
    """
    for word in _words(folder, "sentence"):
        kind: type[BrainMRIError] = getattr(errors, word["error"], ModelError)
        return kind(word["sentence"])
    for word in (word for kind in ("killed", "crash", "terminated") for word in _words(folder, kind)):
        for line in str(word.get("traceback", "")).strip().splitlines():
            run.job.log.error(line)
        return ModelError(
            f"Training process {word['rank']} of {nproc} (numbered from 0) died: {word['message']}; the others were "
            "stopped, and the next run continues from the last saved state."
        )
    return ModelError("torchrun ended without leaving word of a failed process; its own output may say why.")


def _words(folder: Path, kind: str) -> list[dict[str, Any]]:
    words = [json.loads(path.read_text()) for path in folder.glob(f"{kind}-*.json")]
    return sorted(words, key=lambda word: (word.get("time", 0), word["rank"]))
