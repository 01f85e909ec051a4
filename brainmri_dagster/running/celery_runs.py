"""Runs on Celery workers: how the daemon hands them over, and how a worker refuses those of another version of the code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
from celery import Task
from dagster_celery.launcher import CeleryRunLauncher
from kombu.exceptions import KombuError

import brainmri_core
from brainmri_core.cluster.software import source_hash
from brainmri_core.escaping import printable
from brainmri_dagster.graph.asset_table import CODE_TAG
from brainmri_dagster.running.dagster_internals import (
    CheckRunHealthResult,
    DagsterUserCodeUnreachableError,
    ExecuteRunArgs,
    LaunchRunContext,
    WorkerStatus,
    unpack_value,
)
from brainmri_dagster.running.dead_runs import fail_run
from brainmri_dagster.running.postgres import wait_for_postgres

_CONNECT_S = 5


def code() -> str:
    """Return the versions of this package and of Dagster, with a hash of this package's source files."""
    sources = source_hash(Path(brainmri_core.__file__).parent, Path(__file__).resolve().parents[1])
    return f"brainmri {brainmri_core.__version__} (code {sources}), Dagster {dg.__version__}"


_AT_START = code()  # of a daemon, which keeps the code that it has loaded when another is installed


class CeleryLauncher(CeleryRunLauncher):
    """Hands runs to workers, each with the version of the code that its worker must have."""

    def launch_run(self, context: LaunchRunContext) -> None:
        """Hand a run to the broker.

        Raises
        ------
        BrokerAwayError
            If the broker cannot be reached. The coordinator puts the run back into the queue.
        """
        self._require_broker()
        self._instance.add_run_tags(context.dagster_run.run_id, {CODE_TAG: _AT_START})
        super().launch_run(context)

    def _require_broker(self) -> None:
        options = {"socket_connect_timeout": _CONNECT_S, "socket_timeout": _CONNECT_S}
        with self.celery.connection_for_write(transport_options=options) as connection:
            try:
                connection.ensure_connection(max_retries=1, timeout=_CONNECT_S)
            except (KombuError, OSError) as error:
                raise BrokerAwayError(
                    f"Cannot use the broker at {connection.hostname}:{connection.port}, which hands runs to workers: "
                    f"{printable(str(error))}; start it, or correct BRAINMRI_BROKER_URL. The run stays in the queue."
                ) from None

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Say whether a run's worker has failed; a broker that has forgotten the run does not say that."""
        found = super().check_run_worker_health(run)
        if found.status is WorkerStatus.UNKNOWN:  # the run's heartbeat tells whether it is dead
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return found


class BrokerAwayError(DagsterUserCodeUnreachableError):
    """The broker cannot be reached; the class is one after which the coordinator tries again."""


class SameCodeTask(Task):  # type: ignore[misc]
    """The task of a run, which works only with the code of the daemon that has launched it."""

    def __call__(self, execute_job_args_packed: dict[str, Any]) -> Any:
        """Work on a run, or record it as failed before any of its code is loaded; return its exit code."""
        run_id = unpack_value(execute_job_args_packed, as_type=ExecuteRunArgs).run_id
        with dg.DagsterInstance.get() as instance:
            wait_for_postgres()
            run = instance.get_run_by_id(run_id)
            if run is not None and not run.is_finished and run.tags.get(CODE_TAG) != code():
                fail_run(instance, run, refusal(run, str(self.request.hostname)))
                return 1
        return super().__call__(execute_job_args_packed=execute_job_args_packed)


def refusal(run: dg.DagsterRun, worker: str) -> str:
    """Return why a worker does not work on a run."""
    launcher = run.tags.get(CODE_TAG, "an older version, which does not name itself")
    return (
        f"The worker {worker} has another version of the code than the daemon that has launched the run: {code()}, not "
        f"{launcher}; install the same version on all machines, restart daemon and workers, and run again."
    )
