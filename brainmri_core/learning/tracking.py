"""Experiment trackers: a training's settings, metrics and checkpoint in MLflow or TensorBoard."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from brainmri_core.config.base import flat
from brainmri_core.config.training import TrainConfig
from brainmri_core.errors import ConfigError, ModelError
from brainmri_core.project.job import Job
from brainmri_core.project.logs import StageLog
from brainmri_core.system.storage import storage_error

_MLFLOW_STORE = "outputs/mlruns"
_LONGEST_PARAM = 500
# MLflow now discourages its file store, but a folder of files needs no server and is enough for a local project.
_ALLOW_FILES = "MLFLOW_ALLOW_FILE_STORE"


class Tracker(Protocol):
    """The interface of a tracker.

    Attributes
    ----------
    link : str or None
        Folder or URL where the training can be seen.
    """

    link: str | None

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Log the record of an epoch."""

    def finish(self, checkpoint: Path, summary: Mapping[str, float]) -> None:
        """Log the best checkpoint and the final metrics."""

    def close(self, status: str) -> None:
        """End with FINISHED, FAILED or KILLED."""


class _NoTracker:
    link: str | None = None

    def epoch(self, record: Mapping[str, Any]) -> None: ...

    def finish(self, checkpoint: Path, summary: Mapping[str, float]) -> None: ...

    def close(self, status: str) -> None: ...


class _TensorBoard:
    def __init__(self, config: TrainConfig, job: Job, tags: Mapping[str, str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _missing("tensorboard") from None
        folder = job.layout.training_dir(config.io.out_summary, job.dataset, job.run_id) / "tensorboard"
        self.link: str | None = job.layout.relative(folder)
        rows = [
            f"| {name} | {value} |"
            for name, value in {**tags, **flat(config.model_dump(mode="json"))}.items()
        ]
        try:
            # A retried run has the same id and reports its earlier epochs again: purge what is there.
            self._writer: Any = SummaryWriter(str(folder), purge_step=1)
            self._writer.add_text("settings", "\n".join(["| name | value |", "|---|---|", *rows]))
        except OSError as error:
            raise storage_error(error, folder) from error
        self._log = job.log

    def epoch(self, record: Mapping[str, Any]) -> None:
        with _told("TensorBoard", self._log):
            for name, value in _metrics(record).items():
                self._writer.add_scalar(name, value, record["epoch"])
            self._writer.flush()

    def finish(self, checkpoint: Path, summary: Mapping[str, float]) -> None:
        with _told("TensorBoard", self._log):
            self._writer.add_text("checkpoint", str(checkpoint))
            for name, value in summary.items():
                self._writer.add_scalar(f"final/{name}", value)

    def close(self, status: str) -> None:
        with _told("TensorBoard", self._log):
            self._writer.add_text("status", status)
            self._writer.close()


class _MLflow:
    def __init__(self, config: TrainConfig, job: Job, tags: Mapping[str, str]) -> None:
        uri = config.tracking.uri
        try:
            if uri is None:
                os.environ.setdefault(_ALLOW_FILES, "true")
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError:
            raise _missing("mlflow") from None
        self._log = job.log
        store = job.layout.absolute(_MLFLOW_STORE)
        try:
            self._client = MlflowClient(uri or store.as_uri())
            found = self._client.get_experiment_by_name(config.tracking.experiment)
            experiment = (
                found.experiment_id
                if found is not None
                else self._client.create_experiment(config.tracking.experiment)
            )
            self._run = self._client.create_run(experiment, run_name=job.run_id, tags=dict(tags)).info.run_id
            for name, value in flat(config.model_dump(mode="json")).items():
                self._client.log_param(self._run, name, str(value)[:_LONGEST_PARAM])
        except (MlflowException, OSError) as error:  # errors of requests, if the server is down, are OSErrors
            raise ModelError(
                f"MLflow at {uri or store} does not accept the training ({_first_line(error)}); start it, correct "
                "train.tracking.uri, or set train.tracking.backend to none."
            ) from None
        self.link: str | None = (
            f"{_MLFLOW_STORE}/{experiment}/{self._run}"
            if uri is None
            else f"{uri.rstrip('/')}/#/experiments/{experiment}/runs/{self._run}"
        )

    def epoch(self, record: Mapping[str, Any]) -> None:
        with _told("MLflow", self._log):
            for name, value in _metrics(record).items():
                self._client.log_metric(self._run, name, value, step=int(record["epoch"]))

    def finish(self, checkpoint: Path, summary: Mapping[str, float]) -> None:
        with _told("MLflow", self._log):
            self._client.log_artifact(self._run, str(checkpoint), "checkpoint")
            for name, value in summary.items():
                self._client.log_metric(self._run, f"final_{name}", value)

    def close(self, status: str) -> None:
        with _told("MLflow", self._log):
            self._client.set_terminated(self._run, status)


@contextlib.contextmanager
def _told(name: str, log: StageLog) -> Iterator[None]:
    """Log a tracker's error as a warning: it must not end a training of hours."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - trackers raise anything, MLflow's file store even plain Exceptions
        log.warning(f"{name} could not store a record", reason=_first_line(error))


@contextlib.contextmanager
def tracked(
    config: TrainConfig, job: Job, data_hash: str, precision: str, history: list[dict[str, Any]]
) -> Iterator[Tracker]:
    """Open the configured tracker for one training, and close it with the status in which the training ended.

    Parameters
    ----------
    config : TrainConfig
        Names the tracker; its settings are logged.
    job : Job
        The run.
    data_hash, precision : str
        Content hash of the pack and arithmetic of the training, logged as tags.
    history : list of dict
        Records of the epochs before an interruption; they are logged, too, so that the curves are complete.

    Raises
    ------
    ConfigError
        If the tracker's package is not installed.
    ModelError
        If the tracker cannot be reached.
    """
    tags = {
        "run_id": job.run_id,
        "data_hash": data_hash,
        "dataset": job.dataset,
        "model": config.model.name,
        "precision": precision,
    }
    kinds: dict[str, Any] = {"mlflow": _MLflow, "tensorboard": _TensorBoard}
    tracker: Tracker = (
        _NoTracker()
        if config.tracking.backend == "none"
        else kinds[config.tracking.backend](config, job, tags)
    )
    try:
        for record in history:
            tracker.epoch(record)
        yield tracker
    except BaseException as error:
        tracker.close("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    tracker.close("FINISHED")


def _metrics(record: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in record.items()
        if isinstance(value, (int, float)) and name != "epoch"
    }


def _missing(extra: str) -> ConfigError:
    return ConfigError(
        f"train.tracking.backend is {extra}, but {extra} is not installed; "
        f"install it with `pip install 'brainmri[{extra}]'` or set the backend to none."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
