from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from brainmri_core.config.training import TrainConfig
from brainmri_core.errors import ConfigError
from brainmri_core.learning import loop as loop_module
from brainmri_core.learning import snapshots as snapshots_module
from brainmri_core.learning.batches import normalise, to_float
from brainmri_core.learning.checkpoint import load_checkpoint
from brainmri_core.learning.models import build_model
from brainmri_core.learning.state import State
from brainmri_core.learning.team import Team
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import Record, StageLog
from brainmri_core.train import train
from tests.core.learning.training_pack import by_signal, config, make_pack, train_until

pytestmark = pytest.mark.training
RECIPE: dict[str, dict[str, Any]] = {
    "optim": {"snapshots": 2, "ema_decay": 0.9, "lr": 1e-3},
    "loop": {"epochs": 3},
}


@pytest.fixture
def records() -> list[Record]:
    return []


@pytest.fixture
def job(tmp_path: Path, records: list[Record]) -> Job:
    torch.set_num_threads(1)
    return job_in(tmp_path, records)


def job_in(root: Path, records: list[Record]) -> Job:
    entry = load_catalogue()["brainmri/phantom"]
    return Job(Layout(root=root), "r1", entry, StageLog("test", "r1", entry.key, [records.append], "DEBUG"))


def averaged(records: list[Record]) -> Record:
    (found,) = [record for record in records if record["event"] == "epochs averaged"]
    return found


def test_the_last_epochs_are_averaged_with_statistics_of_their_own_and_kept_where_they_are_better(
    job: Job, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[dict[str, torch.Tensor]] = []
    seen: list[Any] = []
    take, judge = State.take_snapshot, snapshots_module.validate_weights

    def watch(state: State, settings: TrainConfig) -> None:
        epochs.append({name: value.clone() for name, value in state.weights().items()})
        take(state, settings)

    def praise(loop: Any, model: nn.Module, weights: dict[str, torch.Tensor]) -> tuple[float, float, float]:
        seen.append(loop)
        loss, _, balanced = judge(loop, model, weights)
        return loss, 2.0, balanced

    monkeypatch.setattr(State, "take_snapshot", watch)
    monkeypatch.setattr(snapshots_module, "validate_weights", praise)
    pointer = train(
        config(model={"name": "resnet18"}, data={"batch_size": 24}, **RECIPE), make_pack(job), job
    )
    meta, weights = load_checkpoint(job.layout.absolute(pointer.checkpoint))
    assert len(epochs) == 3 and averaged(records)["kept"] is True
    assert (pointer.val_macro_f1, pointer.best_epoch, meta.averaged_epochs) == (2.0, 3, 2)
    for name in ("conv1.weight", "fc.bias", "layer4.1.bn2.weight"):
        mean = (epochs[1][name] + epochs[2][name]) / 2
        torch.testing.assert_close(weights[name], mean, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(weights[name], epochs[2][name], rtol=1e-4, atol=1e-6)
    (loop,) = seen
    rows = torch.from_numpy(loop.data.train).sort().values
    assert len(rows) % 24 > 1
    pixels = [
        normalise(to_float(loop.data.pixels[part], loop.device), loop.preprocessing)
        for part in rows.split(24)
    ]
    with torch.no_grad():
        means = [
            nn.functional.conv2d(part, weights["conv1.weight"], stride=2, padding=3).mean((0, 2, 3))
            for part in pixels
        ]
    torch.testing.assert_close(weights["bn1.running_mean"], torch.stack(means).mean(0), rtol=1e-2, atol=1e-3)
    last = load_checkpoint(job.layout.absolute(pointer.checkpoint).with_name("last.pth"))
    assert last[0].averaged_epochs == 0 and torch.equal(last[1]["fc.bias"], epochs[2]["fc.bias"])
    build_model("resnet18", num_classes=4, in_channels=1).load_state_dict(weights)


@pytest.mark.full
def test_an_average_that_is_no_better_leaves_the_best_epoch(
    job: Job, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = make_pack(job)
    plain = train(config(**{**RECIPE, "optim": {**RECIPE["optim"], "snapshots": 0}}), pack, job)
    assert not [record for record in records if record["event"] == "epochs averaged"]
    monkeypatch.setattr(snapshots_module, "validate_weights", lambda *_: (1.0, plain.val_macro_f1, 0.5))
    pointer = train(config(**RECIPE), pack, job)
    assert averaged(records)["kept"] is False
    assert (pointer.content_hash, pointer.best_epoch) == (plain.content_hash, plain.best_epoch)
    assert load_checkpoint(job.layout.absolute(pointer.checkpoint))[0].averaged_epochs == 0


@pytest.mark.full
@pytest.mark.parametrize("step", [2, 7, 12])
def test_an_interrupted_training_averages_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    torch.set_num_threads(1)
    told: list[Record] = []
    monkeypatch.setattr(snapshots_module, "update_bn", counted := Passes(snapshots_module.update_bn))
    whole = job_in(tmp_path / "whole", told)
    wanted = train(config(**RECIPE), make_pack(whole), whole)
    again: list[Record] = []
    job = job_in(tmp_path / "stopped", again)
    pack = make_pack(job)
    train_until(config(**RECIPE), pack, job, step, by_signal)
    counted.stop = True
    with pytest.raises(KeyboardInterrupt):
        train(config(**RECIPE), pack, job)
    counted.stop = False
    assert train(config(**RECIPE), pack, job).content_hash == wanted.content_hash
    assert averaged(again)["val_loss"] == averaged(told)["val_loss"]


class Passes:
    """Takes the statistics as torch does, or is interrupted in the middle of it."""

    def __init__(self, real: Any) -> None:
        self.real, self.stop = real, False

    def __call__(self, batches: Any, model: nn.Module) -> None:
        if self.stop:
            next(batches)
            raise KeyboardInterrupt
        self.real(batches, model)


@pytest.mark.full
def test_stopped_early_before_two_of_the_last_epochs_nothing_is_averaged(
    job: Job, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "validate_weights", lambda *_: (1.0, 0.5, 0.5))
    pointer = train(config(optim={"snapshots": 2}, loop={"epochs": 5, "patience": 1}), make_pack(job), job)
    assert pointer.epochs_run == 2 and pointer.best_epoch == 1
    (told,) = [item for item in records if item["event"] == "stopped before there were two epochs to average"]
    assert told["epochs_run"] == 2


@pytest.mark.parametrize(("count", "epochs"), [(1, 4), (5, 4)])
def test_a_number_of_epochs_that_cannot_be_averaged_is_refused(count: int, epochs: int) -> None:
    with pytest.raises(
        ValueError, match=rf"snapshots is {count} and loop.epochs is {epochs}; average from 2 to"
    ):
        config(optim={"snapshots": count}, loop={"epochs": epochs})


def test_several_processes_are_told_that_they_cannot_average(job: Job) -> None:
    settings = config(distributed={"nproc": 2}, **RECIPE)
    with pytest.raises(ConfigError, match=r"optim.snapshots takes the statistics .*nproc is 2; set one"):
        train(settings, make_pack(job), job, Team(0, 2))
