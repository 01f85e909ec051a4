"""Training in several processes: torchrun under Dagster Pipes, with metrics in the event log and no process left behind."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import dagster as dg

from brainmri_core import errors
from brainmri_core.config import LogConfig
from brainmri_core.config.training import DistributedConfig, TrainConfig
from brainmri_core.errors import BrainMRIError, ConfigError, ModelError
from brainmri_core.project.job import Job
from brainmri_core.project.logs import StageLog
from brainmri_core.project.pointers import CheckpointPointer, PackPointer
from brainmri_dagster.graph.asset_table import CONSOLE_TAG
from brainmri_dagster.graph.resources import ProjectConfig
from brainmri_dagster.running.dagster_internals import DagsterPipesExecutionError
from brainmri_dagster.running.stage_run import StageRun
from brainmri_dagster.training.folder import leave_request, read_reports

MODEL = "model_checkpoint"
TERMINATION_S = 60.0


def run_training(
    config: TrainConfig, pack: PackPointer, run: StageRun, context: dg.AssetExecutionContext
) -> CheckpointPointer:
    """Train in this process, or in several if ``train.distributed`` says so; those of the first node are started here.

    Raises
    ------
    BrainMRIError
        What the training raised, in any process.
    ConfigError
        If several nodes are to train a fold or a trial instead of a whole data set's model.
    ModelError
        If one of several processes died; its traceback is in the log.
    """
    shared = config.distributed
    if shared.processes == 1:
        from brainmri_core.train import train

        return train(config, pack, run.job)
    if shared.nodes > 1 and run.asset != MODEL:
        raise ConfigError(
            f"Several nodes can train only {MODEL}, not {run.asset}: set train.distributed.nodes to 1."
        )
    with tempfile.TemporaryDirectory(prefix="brainmri-train-") as folder, warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*expected_writer_count"
        )  # a deprecated use inside Dagster itself
        leave_request(Path(folder), _request(config, pack, run, context))
        client = dg.PipesSubprocessClient(termination_timeout_seconds=TERMINATION_S)
        try:
            done = client.run(
                context=context.op_execution_context,
                command=torchrun_command(folder),
                env=torchrun_environment(shared.nproc),
            )
        except DagsterPipesExecutionError:
            raise reason_of_end(Path(folder), shared, run.job.log) from None
        return CheckpointPointer.model_validate(done.get_custom_messages()[-1])


def torchrun_command(folder: str) -> list[str]:
    """Return the command that runs the training requested in a folder, as a child of this process."""
    return [sys.executable, "-m", "brainmri_dagster.training.torchrun", folder, str(os.getpid())]


def torchrun_environment(nproc: int) -> dict[str, str]:
    """Share the cores among the processes, unless OMP_NUM_THREADS is set; torchrun would give each process one thread."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // nproc)))}


def _request(
    config: TrainConfig, pack: PackPointer, run: StageRun, context: dg.AssetExecutionContext
) -> dict[str, Any]:
    job = run.job
    step = context.op_execution_context.get_step_execution_context()
    project: ProjectConfig = step.scoped_resources_builder.build({"project"}).project
    console = CONSOLE_TAG in step.dagster_run.tags or project.log.json_lines
    return request_of(config, pack, job, project.log, node=0, console=console)


def request_of(
    config: TrainConfig, pack: PackPointer, job: Job, log: LogConfig, *, node: int, console: bool
) -> dict[str, Any]:
    """Return the request for a node's processes."""
    return {
        "node": node,
        "config": config.model_dump(mode="json", by_alias=True),
        "pack": pack.model_dump(mode="json"),
        "layout": job.layout.model_dump(mode="json"),
        "run_id": job.run_id,
        "entry": job.entry.model_dump(mode="json"),
        "env": job.env.model_dump(mode="json"),
        "log": log.model_dump(mode="json", by_alias=True),
        "console": console,
    }


def reason_of_end(folder: Path, shared: DistributedConfig, log: StageLog) -> BrainMRIError:
    """Return why the processes ended: an error of ours that one of them raised, else how the first one died.

    When one process dies, the others fail, too, because they lose the connection. So a killed process is the cause before
    any that raised; of these the first in time; and those that torchrun terminated come last.
    """
    for report in read_reports(folder, "sentence"):
        kind = getattr(errors, str(report["error"]), None)
        if isinstance(kind, type) and issubclass(kind, BrainMRIError):
            return kind(report["sentence"])
        return ModelError(report["sentence"])
    for report in read_reports(folder, "stopped"):
        return ModelError(
            f"The training was stopped by {signal.Signals(report['signal']).name} on node {report['rank']} of {shared.nodes} (numbered "
            "from 0); the next run continues from the last saved state."
        )
    killed = read_reports(folder, "killed")
    for report in read_reports(folder, "lost") if not killed else []:
        return ModelError(
            f"Node {report['rank']} of {shared.nodes} (numbered from 0) is lost: its machine, its network or its training ended "
            "without a message; the others were stopped, and the next run continues from the last saved state."
        )
    for report in (*killed, *read_reports(folder, "crash"), *read_reports(folder, "terminated")):
        for line in str(report.get("traceback", "")).strip().splitlines():
            log.error(line)
        return ModelError(
            f"Training process {report['rank']} of {shared.processes} (numbered from 0) died: {report['message']}; the others were "
            "stopped, and the next run continues from the last saved state."
        )
    return ModelError("torchrun ended without reporting a failed process; its own output may say why.")
