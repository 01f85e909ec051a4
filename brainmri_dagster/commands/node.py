"""A node that helps the first node train: it takes part in that training, and writes nothing itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from brainmri_core.config import PipelineConfig
from brainmri_core.errors import ConfigError
from brainmri_core.project.catalogue import find_entry
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import StageLog, stream_sink
from brainmri_core.project.pointer_store import latest_pointer
from brainmri_core.project.pointers import PackPointer
from brainmri_core.project.run_record import CANCELLED_EXIT_CODE
from brainmri_dagster.commands.launch import Request, configure
from brainmri_dagster.graph.partitions import catalogue
from brainmri_dagster.running.upstream import pack_for
from brainmri_dagster.training.distributed import (
    TERMINATION_S,
    reason_of_end,
    request_of,
    torchrun_command,
    torchrun_environment,
)
from brainmri_dagster.training.folder import leave_request


def take_part(request: Request) -> int:
    """Take part in a training as one of the nodes after the first, and return the exit code when it ends.

    Raises
    ------
    BrainMRIError
        What ended the training, on whichever node.
    ConfigError
        If the configuration has no such node.
    """
    config, dataset = configure(request)
    config = config.with_seeds()
    shared, node = config.train.distributed, request.node
    assert node is not None
    if not 0 < node < shared.nodes:
        others = "there are none" if shared.nodes == 1 else f"they are 1 to {shared.nodes - 1}"
        raise ConfigError(
            f"--node {node} is not one of the nodes after the first: with train.distributed.nodes={shared.nodes} {others}; "
            "the first node, 0, is started without --node."
        )
    log = StageLog(
        "train", f"node-{node}", dataset, [stream_sink(json_lines=config.log.json_lines)], config.log.level
    )
    layout = Layout.of(config.paths)
    job = Job(layout, f"node-{node}", find_entry(catalogue(), dataset), log, config.env)
    pack = pack_for("train", _packed_only(config), latest_pointer(job.layout, PackPointer, dataset), job)
    log.info("waiting for the first node", node=node, nodes=shared.nodes, rendezvous=shared.rendezvous)
    with tempfile.TemporaryDirectory(prefix="brainmri-train-") as folder:
        leave_request(Path(folder), request_of(config.train, pack, job, config.log, node=node, console=False))
        environment = {**os.environ, **torchrun_environment(shared.nproc)}
        torchrun = subprocess.Popen(torchrun_command(folder), env=environment)
        try:
            code = torchrun.wait()
        except KeyboardInterrupt:
            torchrun.send_signal(signal.SIGTERM)
            try:
                torchrun.wait(TERMINATION_S)
            except subprocess.TimeoutExpired:
                torchrun.kill()
            print("brainmri: interrupted; the first node keeps what was trained.", file=sys.stderr)
            return CANCELLED_EXIT_CODE
        if code:
            raise reason_of_end(Path(folder), shared, log)
    log.info("training finished; the first node has the results")
    return 0


def _packed_only(config: PipelineConfig) -> PipelineConfig:
    """Ignore a raw folder that could replace the pack, because the pack would have to be written."""
    data = config.train.data.model_copy(update={"train_in": None})
    return config.model_copy(update={"train": config.train.model_copy(update={"data": data})})
