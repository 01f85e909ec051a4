"""What each option of the recipe does to one step, against its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from brainmri_core.config import EnvConfig
from brainmri_core.learning import loop as loop_module
from brainmri_core.learning.checkpoint import Preprocessing, load_checkpoint
from brainmri_core.learning.device import choose_device, cpu_has_bf16, seed_everything
from brainmri_core.learning.loop import Reporting, epoch_order, run_epochs
from brainmri_core.learning.models import build_model
from brainmri_core.learning.state import Data, Loop, State, difference, freeze, new_state
from brainmri_core.project.job import Job
from brainmri_core.project.logs import Record
from brainmri_core.train import train
from tests.core.learning.training_pack import config, make_pack

pytestmark = pytest.mark.training

CPU = torch.device("cpu")
PLAIN = {"rotate_deg": 0.0, "hflip_prob": 0.0, "jitter_brightness": 0.0, "jitter_contrast": 0.0}


def begun(weights: torch.Tensor | None = None, **blocks: dict[str, Any]) -> tuple[Loop, State]:
    """A training of resnet18 on 12 images of 4 classes, 6 of them of the first, which have not been changed at all."""
    torch.manual_seed(0)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3])
    pixels = torch.randint(0, 256, (12, 1, 32, 32), dtype=torch.uint8)
    data = Data(pixels, labels, np.arange(12), np.arange(12), 4)
    preprocessing = Preprocessing(
        pack_size=32, image_size=32, channels=1, colour=False, fit="letterbox", mean=[0.5], std=[0.3]
    )
    settings = config(**{"aug": PLAIN, "data": {"batch_size": 12}, **blocks})
    loop = Loop(settings, data, preprocessing, CPU, "fp32", 5, weights)
    return loop, new_state(loop, build_model("resnet18", num_classes=4, in_channels=1))


def steps(loop: Loop, state: State, count: int) -> None:
    logged = Reporting(save=lambda: None, epoch=lambda _: None, smaller=lambda _: None)
    for _ in range(count):
        loop_module._step(loop, state, state.model, loop.data.train, loop.data.pixels, logged)


class Readings(TorchDispatchMode):
    """Counts how often a computed number is read by itself; an accelerator finishes its work first, each time.

    Whole numbers are left out: they are labels, which stay in the host's memory.
    """

    count = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        read = operation is torch.ops.aten._local_scalar_dense.default
        self.count += read and arguments[0].is_floating_point()
        return operation(*arguments, **(named or {}))


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_step_reads_loss_and_gradient_norm_at_once(clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, state = begun(optim={"grad_clip": clip})
    state.micro = 3
    freeze(state.model, False)
    tolist, together = torch.Tensor.tolist, []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: together.append(len(tensor)) or tolist(tensor))
    with Readings() as readings:
        steps(loop, state, 1)
    assert (readings.count, together) == (0, [2])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weights", [None, [0.5, 1.5, 1.5, 1.5]])
def test_the_loss_is_the_weighted_smoothed_cross_entropy(
    smoothing: float, weights: list[float] | None
) -> None:
    loop, state = begun(
        None if weights is None else torch.tensor(weights), optim={"label_smoothing": smoothing}
    )
    freeze(state.model, True)
    loss = loop_module._gradients(loop, state, state.model, loop.data.train, loop.data.pixels)
    with torch.no_grad():
        logits = state.model((loop.data.pixels.float() / 255 - 0.5) / 0.3).double().numpy()
    log_share = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    wanted = np.eye(4)[loop.data.labels.numpy()] * (1 - smoothing) + smoothing / 4
    expected = -(wanted * log_share * np.array(weights or [1.0] * 4)).sum(axis=1).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_class_weights_are_the_inverse_frequencies(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = make_pack(job, per_class=24, change=lambda table: table.drop(index=table.index[:8]))
    loops: list[Loop] = []
    monkeypatch.setattr(
        "brainmri_core.train.run_epochs",
        lambda loop, state, reporting: loops.append(loop) or run_epochs(loop, state, reporting),
    )
    train(config(loop={"epochs": 1}), pack, job)
    (loop,) = loops
    counts = np.bincount(loop.data.labels.numpy()[loop.data.train], minlength=4)
    assert counts[0] < counts[1] == counts[2]
    assert loop.class_weights is not None
    np.testing.assert_allclose(loop.class_weights.numpy() * counts, counts.sum() / 4, rtol=1e-6)


def test_balanced_sampling_draws_each_class_equally_often() -> None:
    for balanced, expected in ((True, 1 / 4), (False, 1 / 2)):
        loop, _ = begun(optim={"balanced_sampling": balanced, "class_weights": False})
        drawn = np.concatenate([epoch_order(loop, epoch) for epoch in range(300)])
        share = (loop.data.labels.numpy()[drawn] == 0).mean()
        assert share == pytest.approx(expected, abs=0.03)
        assert len(epoch_order(loop, 0)) == len(loop.data.train)


@pytest.mark.full
def test_the_average_follows_the_weights_by_its_decay() -> None:
    loop, state = begun(optim={"ema_decay": 0.5})
    name = "fc.weight"
    expected = state.model.state_dict()[name].clone()
    for step in range(12):
        steps(loop, state, 1)
        decay = min(0.5, (1 + step) / (10 + step))  # it follows faster while there is little to average
        expected = decay * expected + (1 - decay) * state.model.state_dict()[name]
    assert state.average is not None
    torch.testing.assert_close(state.average[name], expected, rtol=1e-4, atol=1e-6)
    assert state.weights() is state.average


def test_gradients_are_clipped_to_the_norm() -> None:
    norms = []
    for clip in (0.0, 1e-2):
        loop, state = begun(optim={"grad_clip": clip})
        steps(loop, state, 1)
        norms.append(
            float(torch.stack([p.grad.norm() for p in state.model.parameters() if p.grad is not None]).norm())
        )
    assert norms[0] > 1e-2
    assert norms[1] == pytest.approx(1e-2, rel=1e-3)


def test_rates_fall_from_the_head_to_the_input() -> None:
    loop, state = begun(optim={"layer_decay": 0.5, "head_lr_factor": 10, "lr": 1e-3, "schedule": "step"})
    steps(loop, state, 1)
    rates = [group["lr"] for group in state.optimiser.param_groups]
    depth = len(rates) - 1
    assert depth == 6  # conv1, bn1, layer1 to layer4
    assert rates == pytest.approx([1e-4 * 0.5 ** (depth - n) for n in range(depth)] + [1e-3])


@pytest.mark.full
def test_after_the_frozen_epochs_the_backbone_learns_too(job: Job) -> None:
    pack = make_pack(job, per_class=8)
    found = []
    for epochs in (1, 2):
        train(
            config(loop={"epochs": epochs}, optim={"frozen_epochs": 1, "schedule": "step"}),
            pack,
            job,
        )
        _, weights = load_checkpoint(job.layout.root / "models" / job.dataset / job.run_id / "last.pth")
        found.append(weights)
    moved = [name for name in found[0] if not torch.equal(found[0][name], found[1][name])]
    assert "features.0.0.weight" in moved and "features.0.1.running_mean" in moved


def test_the_environment_decides_about_cuda_and_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(EnvConfig(prefer_cuda=True)).type == "cuda"
    assert choose_device(EnvConfig(prefer_cuda=False)).type == "cpu"
    flags = torch.backends.cudnn
    for name in ("deterministic", "benchmark"):
        monkeypatch.setattr(flags, name, getattr(flags, name))
    for deterministic, benchmark in ((True, False), (False, True)):
        seed_everything(3, EnvConfig(cudnn_deterministic=deterministic, cudnn_benchmark=benchmark))
        assert (flags.deterministic, flags.benchmark) == (deterministic, benchmark)


def test_an_epoch_tells_loss_scores_rate_and_speed(job: Job, records: list[Record]) -> None:
    pointer = train(config(loop={"epochs": 2}), make_pack(job, per_class=8), job)
    history = pd.read_parquet(job.layout.absolute(pointer.history))
    logged = [record for record in records if record["event"] == "epoch"]
    for name in (
        "train_loss",
        "val_loss",
        "val_macro_f1",
        "val_balanced_accuracy",
        "learning_rate",
        "images_per_s",
    ):
        assert [record[name] for record in logged] == history[name].tolist()
    assert history["val_balanced_accuracy"].between(0, 1).all() and (history["images_per_s"] > 0).all()


def test_the_arithmetic_that_was_used_is_recorded(job: Job, records: list[Record]) -> None:
    pack = make_pack(job, per_class=8)
    pointer = train(config(loop={"epochs": 1}), pack, job)
    meta, _ = load_checkpoint(job.layout.absolute(pointer.checkpoint))
    (logged,) = [record["precision"] for record in records if record["event"] == "training"]
    assert pointer.precision == meta.precision == logged == ("bf16" if cpu_has_bf16() else "fp32")


def test_a_state_of_another_version_is_named_as_such() -> None:
    now = {"train": {"data": {"start_size": None}, "lr": 1}, "precision": "fp32"}
    assert difference({"train": {"data": {}, "lr": 1}, "precision": "fp32"}, now) == (
        "an earlier version, which did not know train.data.start_size"
    )
    assert difference(now, {"train": {"data": {"start_size": None}}, "precision": "fp32"}) == (
        "train.lr 1, which this version does not know"
    )
