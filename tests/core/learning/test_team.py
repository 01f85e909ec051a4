from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from brainmri_core.config import EnvConfig
from brainmri_core.errors import ConfigError
from brainmri_core.learning import loop as loop_module
from brainmri_core.learning.checkpoint import Preprocessing, load_checkpoint
from brainmri_core.learning.models import build_model
from brainmri_core.learning.state import Data, Loop, freeze, new_state
from brainmri_core.learning.team import Team, in_step, share_statistics, torchrun_team
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import StageLog, file_sink
from brainmri_core.project.pointers import PackPointer
from brainmri_core.train import train
from tests.core.learning.training_pack import config, make_pack
from tests.counts import PATIENCE_S

pytestmark = pytest.mark.training

# No dropout: its masks cannot be the same in one process and in two. Batches are odd, so that the parts differ. The rate
# is low: rounding grows from step to step as it does between any two machines, the faster the higher the rate.
RECIPE: dict[str, dict[str, Any]] = {
    "data": {"batch_size": 9},
    "model": {"name": "resnet18"},
    "optim": {"lr": 1e-4, "ema_decay": 0.9, "label_smoothing": 0.1},
    "aug": {
        "mixup_alpha": 0.2,
        "noise_std": 0.02,
        "bias_field": 0.2,
        "randaugment_ops": 2,
        "erase_prob": 0.3,
    },
    "loop": {"epochs": 1, "precision": "fp32"},
}
TWO: dict[str, dict[str, Any]] = {**RECIPE, "distributed": {"nproc": 2}}


def be_torchrun(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in place.items()})


def train_as(rank: int, port: int, root: str, pack_json: str, recipe: dict[str, Any]) -> None:
    """Be one of two processes that train together, as torchrun would start it."""
    be_torchrun(rank, port)
    entry = load_catalogue()["brainmri/phantom"]
    with file_sink(Path(root) / f"log-{rank}.jsonl") as sink, torchrun_team(EnvConfig()) as team:
        log = StageLog("train", "r2", entry.key, [sink], "DEBUG")
        job = Job(layout=Layout(root=Path(root)), run_id="r2", entry=entry, log=log)
        train(config(**recipe), PackPointer.model_validate_json(pack_json), job, team)


def gradients(team: Team) -> dict[str, torch.Tensor]:
    """Take the gradients and batch statistics of one batch of 9 images, every one in another class weight."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model("resnet18", num_classes=4, in_channels=1)
    pixels = torch.randint(0, 256, (9, 1, 32, 32), dtype=torch.uint8)
    preprocessing = Preprocessing(
        pack_size=32, image_size=32, channels=1, colour=False, fit="letterbox", mean=[0.5], std=[0.3]
    )
    rows = np.arange(9)
    data = Data(pixels, torch.arange(9) % 4, rows, rows, 4)
    weights = torch.tensor([1.0, 2.0, 0.5, 1.5])
    training = Loop(config(**RECIPE), data, preprocessing, torch.device("cpu"), "fp32", 5, weights, team)
    if team.size > 1:
        model = share_statistics(model, training.device)
    state = new_state(training, model)
    freeze(model, False)
    loss = loop_module._gradients(training, state, in_step(model, team), rows, pixels)
    found = {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    return {
        **found,
        **dict(model.named_buffers()),
        "loss": torch.tensor(team.total(float(loss), training.device)),
    }


def save_gradients(rank: int, port: int, root: str) -> None:
    """Be one of two processes that take the gradients of one batch together."""
    be_torchrun(rank, port)
    with torchrun_team(EnvConfig()) as team:
        torch.save(gradients(team), Path(root) / f"gradients-{rank}.pt")


def start(target: Callable[..., None], *arguments: Any) -> list[ForkServerProcess]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "brainmri_core.train"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = [context.Process(target=target, args=(rank, port, *arguments)) for rank in range(2)]
    for process in both:
        process.start()
    return both


def start_training(root: Path, pack: PackPointer, recipe: dict[str, Any]) -> list[ForkServerProcess]:
    return start(train_as, str(root), pack.model_dump_json(), recipe)


def ended(both: list[ForkServerProcess]) -> list[int | None]:
    for process in both:
        process.join(600)
    return [process.exitcode for process in both]


def weights(root: Path, run_id: str) -> dict[str, torch.Tensor]:
    return load_checkpoint(root / "models" / "brainmri" / "phantom" / run_id / "last.pth")[1]


def test_two_processes_compute_the_gradients_and_batch_statistics_of_one(tmp_path: Path) -> None:
    wanted = gradients(Team())
    assert ended(start(save_gradients, str(tmp_path))) == [0, 0]
    for rank in range(2):
        found = torch.load(tmp_path / f"gradients-{rank}.pt", weights_only=True)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            distance = (found[name].double() - value.double()).norm() / value.double().norm().clamp_min(1e-12)
            assert float(distance) < 1e-3, name


def test_two_processes_learn_what_one_learns_from_the_same_batches(job: Job) -> None:
    torch.set_num_threads(1)
    root, pack = job.layout.root, make_pack(job, per_class=12)
    alone = train(config(**RECIPE), pack, job)
    assert ended(start_training(root, pack, TWO)) == [0, 0]
    one = pd.read_parquet(job.layout.absolute(alone.history))
    two = pd.read_parquet(root / "outputs/training/brainmri/phantom/r2/history.parquet")
    for column in ("train_loss", "val_loss", "learning_rate"):
        np.testing.assert_allclose(two[column], one[column], rtol=5e-3)
    assert weights(root, "r1").keys() == weights(root, "r2").keys()
    assert (root / "log-0.jsonl").read_text().count('"event": "epoch"') == 1
    assert not list((root / "models/brainmri/phantom/resume").iterdir())


@pytest.mark.full
def test_a_signal_to_one_stops_both_at_one_batch_and_they_continue_to_the_bit(
    job: Job, tmp_path: Path
) -> None:
    root, pack = job.layout.root, make_pack(job, per_class=12)
    recipe = {**TWO, "model": {"name": "mobilenet_v3_small"}, "loop": {"epochs": 3}}
    assert ended(start_training(root, pack, recipe)) == [0, 0]
    wanted = weights(root, "r2")
    (root / "log-0.jsonl").unlink()

    both = start_training(root, pack, recipe)
    until = time.monotonic() + PATIENCE_S
    log = root / "log-0.jsonl"
    while not (log.is_file() and '"event": "epoch"' in log.read_text()) and time.monotonic() < until:
        time.sleep(0.01)
    assert both[1].pid is not None
    os.kill(both[1].pid, signal.SIGTERM)
    assert ended(both) == [128 + signal.SIGTERM] * 2
    (state,) = (root / "models").rglob("resume/*/last.pth")
    epoch, batch, *_ = torch.load(state, weights_only=True)["position"]
    assert (epoch, batch) > (0, 0)
    assert ended(start_training(root, pack, recipe)) == [0, 0]
    assert f'"event": "resumed", "epoch": {epoch + 1}, "batch": {batch}' in log.read_text()
    found = weights(root, "r2")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_processes_and_settings_must_agree(job: Job) -> None:
    pack = make_pack(job, per_class=8)
    with pytest.raises(ConfigError, match=r"nproc is 2, but 1 process\(es\) train; start through `brainmri"):
        train(config(**TWO), pack, job)
    crowded = config(**{**TWO, "data": {"batch_size": 1}})
    with pytest.raises(ConfigError, match=r"batch_size 1 is less than train\.distributed\.nproc 2"):
        train(crowded, pack, job, Team(0, 2))


def test_the_parts_of_a_batch_make_the_batch() -> None:
    batch = torch.arange(10)
    parts = [Team(rank, 4).part(batch) for rank in range(4)]
    assert torch.equal(torch.cat(parts), batch)
    assert sorted(len(part) for part in parts) == [2, 2, 3, 3]
    assert [len(Team(rank, 4).part(batch[:3])) for rank in range(4)] == [1, 1, 1, 0]
