"""One of several training processes: the same training, logged through Dagster Pipes. Imports no Dagster."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dagster_pipes import PipesContext, open_dagster_pipes

from brainmri_core.config import EnvConfig, LogConfig
from brainmri_core.config.training import TrainConfig
from brainmri_core.errors import BrainMRIError
from brainmri_core.learning.likeness import likeness
from brainmri_core.learning.nodes import Nodes
from brainmri_core.learning.team import torchrun_team
from brainmri_core.project.catalogue import DatasetEntry
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import StageLog, event_text, stage_log, throttled
from brainmri_core.project.pointers import PackPointer
from brainmri_core.project.run_record import CANCELLED_EXIT_CODE
from brainmri_core.train import train
from brainmri_dagster.running.processes import die_with_parent
from brainmri_dagster.training.folder import FOLDER_VARIABLE, PARENT_VARIABLE, leave_report, read_request


def main() -> None:
    """Train as the parent requests; the reason of a failure goes into the parent's folder."""
    die_with_parent(int(os.environ[PARENT_VARIABLE]))
    request = read_request(Path(os.environ[FOLDER_VARIABLE]))
    try:
        _train(request)
    except BrainMRIError as error:
        _leave_report("sentence", {"error": type(error).__name__, "sentence": str(error)})
        sys.exit(error.exit_code)
    except Exception as error:
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        _leave_report("crash", {"message": message, "traceback": traceback.format_exc()})
        raise
    except KeyboardInterrupt:
        sys.exit(CANCELLED_EXIT_CODE)


def _leave_report(kind: str, report: dict[str, Any]) -> None:
    rank = int(os.environ["RANK"])
    leave_report(
        Path(os.environ[FOLDER_VARIABLE]), kind, rank, {"rank": rank, "time": time.time_ns(), **report}
    )


def _train(request: dict[str, Any]) -> None:
    config = TrainConfig.model_validate(request["config"])
    pack = PackPointer.model_validate(request["pack"])
    with _log(request) as (log, pipes):
        job = Job(
            layout=Layout.model_validate(request["layout"]),
            run_id=request["run_id"],
            entry=DatasetEntry.model_validate(request["entry"]),
            log=log,
            env=EnvConfig.model_validate(request["env"]),
        )
        with torchrun_team(job.env, _nodes(config, pack, job)) as team:
            pointer = train(config, pack, job, team)
        if pipes is not None:
            pipes.report_custom_message(pointer.model_dump(mode="json"))


def _nodes(config: TrainConfig, pack: PackPointer, job: Job) -> Nodes | None:
    shared = config.distributed
    return Nodes(partial(likeness, config, pack, job), shared.timeout_s) if shared.nodes > 1 else None


@contextlib.contextmanager
def _log(request: dict[str, Any]) -> Iterator[tuple[StageLog, PipesContext | None]]:
    """Let only the first process log: to the run's file, the console if wanted, and Dagster's event log."""
    run_id, dataset = request["run_id"], request["entry"]["key"]
    config = LogConfig.model_validate(request["log"])
    if int(os.environ["RANK"]) > 0:
        yield StageLog("train", run_id, dataset, [], config.level), None
        return
    run_dir = Layout.model_validate(request["layout"]).run_dir(run_id)
    with open_dagster_pipes() as pipes:

        def tell(item: dict[str, Any]) -> None:
            level = {"DEBUG": pipes.log.debug, "WARNING": pipes.log.warning, "ERROR": pipes.log.error}
            level.get(item["level"], pipes.log.info)(event_text(item, json_lines=config.json_lines))

        sinks = [throttled(tell, "epoch")]
        with stage_log("train", run_id, dataset, config, run_dir, sinks, console=request["console"]) as log:
            yield log, pipes


if __name__ == "__main__":
    main()
