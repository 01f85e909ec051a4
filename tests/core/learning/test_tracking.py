from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from brainmri_core.errors import ConfigError, ModelError
from brainmri_core.learning import loop as loop_module
from brainmri_core.project.job import Job
from brainmri_core.project.logs import Record
from brainmri_core.train import train
from tests.core.learning.training_pack import at_once, config, make_pack, train_until
from tests.counts import rest

pytestmark = pytest.mark.training


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def client_of(job: Job, monkeypatch: pytest.MonkeyPatch) -> Any:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return mlflow.MlflowClient((job.layout.root / "outputs" / "mlruns").as_uri())


def test_mlflow_holds_settings_metrics_checkpoint_and_tags(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(job, monkeypatch)
    pack = make_pack(job, per_class=8)
    pointer = train(config(loop={"epochs": 2}, tracking={"backend": "mlflow"}), pack, job)
    experiment = client.get_experiment_by_name("brainmri")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.lr"] == "0.002" and run.data.params["model.name"] == "mobilenet_v3_small"
    wanted = {"run_id": "r1", "data_hash": pack.content_hash, "dataset": job.dataset}
    wanted["precision"] = str(pointer.precision)
    assert wanted.items() <= run.data.tags.items()
    scores = client.get_metric_history(run.info.run_id, "val_macro_f1")
    assert [item.step for item in scores] == [1, 2]
    assert max(item.value for item in scores) == run.data.metrics["final_val_macro_f1"]
    stored = client.list_artifacts(run.info.run_id, "checkpoint")
    assert [item.path for item in stored] == ["checkpoint/best.pth"]
    assert pointer.tracking is not None
    kept = job.layout.absolute(pointer.tracking) / "artifacts" / "checkpoint" / "best.pth"
    assert kept.read_bytes() == job.layout.absolute(pointer.checkpoint).read_bytes()


@pytest.mark.full
def test_an_interrupted_run_is_marked_and_its_continuation_has_the_whole_curve(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(job, monkeypatch)
    pack, recipe = make_pack(job, per_class=8), config(loop={"epochs": 3}, tracking={"backend": "mlflow"})
    train_until(recipe, pack, job, 4, at_once)
    train(recipe, pack, job)
    experiment = client.get_experiment_by_name("brainmri")
    last, first = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])
    assert (first.info.status, last.info.status) == ("KILLED", "FINISHED")
    steps = [item.step for item in client.get_metric_history(last.info.run_id, "train_loss")]
    assert steps == [1, 2, 3]


def test_tensorboard_shows_every_epoch(job: Job) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pointer = train(
        config(loop={"epochs": 2}, tracking={"backend": "tensorboard"}), make_pack(job, per_class=8), job
    )
    assert pointer.tracking is not None
    events = EventAccumulator(str(job.layout.absolute(pointer.tracking)))
    events.Reload()
    assert [event.step for event in events.Scalars("val_macro_f1")] == [1, 2]
    assert {"train_loss", "learning_rate", "images_per_s"} <= set(events.Tags()["scalars"])


def test_where_nothing_is_tracked_nothing_is_imported_or_written(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mlflow", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    assert train(config(loop={"epochs": 1}), make_pack(job, per_class=8), job).tracking is None
    assert not (job.layout.root / "outputs" / "mlruns").exists()


@pytest.mark.parametrize(
    ("backend", "module"), [("mlflow", "mlflow"), ("tensorboard", "torch.utils.tensorboard")]
)
def test_a_tracker_that_is_not_installed_is_named_before_the_first_epoch(
    job: Job, monkeypatch: pytest.MonkeyPatch, backend: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"pip install 'brainmri\[{backend}\]'"):
        train(config(tracking={"backend": backend}), make_pack(job, per_class=8), job)


def test_a_store_that_cannot_be_used_is_named(job: Job, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    tracking = {"backend": "mlflow", "uri": "nonsense://nowhere"}
    with pytest.raises(ModelError, match=r"MLflow at nonsense://nowhere .*train\.tracking\.uri"):
        train(config(tracking=tracking), make_pack(job, per_class=8), job)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("backend", ["mlflow", *rest("tensorboard")])
def test_a_tracker_that_fails_in_the_middle_is_said_and_ends_no_training(
    job: Job, records: list[Record], monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """Its folder gives way to a file, as where somebody tidies up, or its disk is full."""
    pytest.importorskip(backend)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    outputs = job.layout.root / "outputs"
    validate, calls = loop_module.validate_weights, 0

    def tidying(*arguments: Any) -> tuple[float, float, float]:
        nonlocal calls
        calls += 1
        if calls == 2 and backend == "mlflow":
            shutil.rmtree(outputs / "mlruns")
            (outputs / "mlruns").touch()
        elif calls == 2:
            (file,) = outputs.rglob("events.out.*")
            file.unlink()
            file.symlink_to("/dev/full")
        return validate(*arguments)

    monkeypatch.setattr(loop_module, "validate_weights", tidying)
    pointer = train(
        config(loop={"epochs": 3}, tracking={"backend": backend}), make_pack(job, per_class=8), job
    )
    assert pointer.epochs_run == 3
    name = {"mlflow": "MLflow", "tensorboard": "TensorBoard"}[backend]
    logged = [record for record in records if record["event"] == f"{name} could not store a record"]
    assert len(logged) >= 2
    assert all(record["reason"] and record["level"] == "WARNING" for record in logged)


@pytest.mark.full
def test_a_run_retried_under_its_id_shows_no_epoch_twice(job: Job) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pack, recipe = (
        make_pack(job, per_class=8),
        config(loop={"epochs": 3}, tracking={"backend": "tensorboard"}),
    )
    train_until(recipe, pack, job, 5, at_once)
    time.sleep(1.1)  # event files are named, and read, by the second they were begun in
    pointer = train(recipe, pack, job)
    events = EventAccumulator(str(job.layout.absolute(str(pointer.tracking))))
    events.Reload()
    assert [event.step for event in events.Scalars("train_loss")] == [1, 2, 3]
