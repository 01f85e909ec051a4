"""The state of a training: everything that changes from step to step, and the file to resume from."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from brainmri_core.arrays import I64
from brainmri_core.config.base import Precision
from brainmri_core.config.training import TrainConfig
from brainmri_core.errors import ModelError
from brainmri_core.learning.checkpoint import Preprocessing, save_tensors
from brainmri_core.learning.models import blocks, head
from brainmri_core.learning.team import Team
from brainmri_core.system.storage import storage_error


@dataclass(frozen=True)
class Data:
    """Pixels and labels of one training.

    Attributes
    ----------
    pixels : torch.Tensor
        uint8, ``(N, C, S, S)``; a memory map, or in host or device memory.
    labels : torch.Tensor
        int64, ``(N,)``.
    train, val : numpy.ndarray
        int64 rows of `pixels`.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    train: I64
    val: I64
    num_classes: int


@dataclass(frozen=True)
class Loop:
    """Everything in a training that does not change: settings, data, device and team.

    Attributes
    ----------
    seed : int
        Seed of order, augmentation and dropout.
    class_weights : torch.Tensor or None
        float32 ``(K,)`` on the device: weights of the loss.
    team : Team
        The processes that train together.
    """

    config: TrainConfig
    data: Data
    preprocessing: Preprocessing
    device: torch.device
    precision: Precision
    seed: int
    class_weights: torch.Tensor | None
    team: Team = field(default_factory=Team)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch; a last batch of one image is left out, since batch norm cannot train on it."""
        full, rest = divmod(len(self.data.train), self.config.data.batch_size)
        return max(1, full + (rest > 1))


@dataclass
class State:
    """Everything that changes during training; the content of ``last.pth``.

    Attributes
    ----------
    average : dict or None
        Exponential moving average of the weights.
    epoch, batch : int
        Number of epochs done, and of batches done in the current epoch.
    loss_sum, images : float, int
        Sum of the losses of the current epoch's images so far, and their number.
    micro : int
        Number of parts that a batch is computed in; doubled when memory runs out.
    best, best_epoch, best_weights
        Best validation macro F1, its epoch (from 0; -1: none, or the probe that fine-tuning starts from) and weights.
    history : list of dict
        One record per epoch.
    snapshots : dict or None
        Average of the weights of the last epochs so far; None before the first of them.
    averaged_epochs : int
        Number of epochs whose weights are averaged in the best weights, 0 for those of one epoch; set at the end.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: dict[str, torch.Tensor] | None
    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    images: int = 0
    micro: int = 1
    best: float = -1.0
    best_epoch: int = -1
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    snapshots: dict[str, torch.Tensor] | None = None
    averaged_epochs: int = 0

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the weights that are validated and saved: the moving average where there is one."""
        return self.average if self.average is not None else self.model.state_dict()

    def snapshots_taken(self, config: TrainConfig) -> int:
        """Return the number of epochs averaged in `snapshots`."""
        return max(0, self.epoch - (config.loop.epochs - config.optim.snapshots))

    def take_snapshot(self, config: TrainConfig) -> None:
        """Add the weights at the end of an epoch to the average, if it is one of the last epochs."""
        if self.epoch < config.loop.epochs - config.optim.snapshots:
            return
        if self.snapshots is None:
            self.snapshots = {name: value.detach().clone() for name, value in self.weights().items()}
            return
        share = 1 / (self.snapshots_taken(config) + 1)
        for name, value in self.weights().items():
            mean = self.snapshots[name]
            if value.dtype.is_floating_point:
                mean.lerp_(value.detach(), share)
            else:
                mean.copy_(value)


def new_state(loop: Loop, model: nn.Module) -> State:
    """Return the initial state of a training; its optimiser has one parameter group per block, the head last."""
    optim = loop.config.optim
    *body, final = blocks(model)
    groups = [
        {"params": block, "factor": optim.layer_decay ** (len(body) - depth) / optim.head_lr_factor}
        for depth, block in enumerate(body)
    ]
    optimiser = torch.optim.AdamW(
        [*groups, {"params": final, "factor": 1.0}],
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        fused=True,
    )
    scaler = torch.amp.GradScaler(loop.device.type, enabled=loop.precision == "fp16")
    average = {k: v.detach().clone() for k, v in model.state_dict().items()} if optim.ema_decay > 0 else None
    return State(model, optimiser, scaler, average)


def frozen_statistics(config: TrainConfig) -> bool:
    """Tell whether batch normalisation keeps the statistics that came with the weights."""
    chosen = config.optim.batch_norm
    return config.method == "probe_then_finetune" if chosen == "auto" else chosen == "frozen"


def freeze(model: nn.Module, frozen: bool, *, statistics: bool = False) -> None:
    """Set training mode; if `frozen`, only the head trains. Batch-norm statistics stay if either is true."""
    for parameter in model.parameters():
        parameter.requires_grad_(not frozen)
    model.train(not frozen)
    if frozen:
        head(model).train().requires_grad_(True)
    for module in model.modules():
        if statistics and isinstance(module, _BatchNorm):
            module.eval()


def save_state(path: Path, state: State, identity: dict[str, Any]) -> None:
    """Write the state atomically, with the identity that a training needs to continue it.

    Raises
    ------
    StorageError
        If the disk is full or fails; the previous file stays.
    """
    value = {
        "identity": identity,
        "model": state.model.state_dict(),
        "optimiser": state.optimiser.state_dict(),
        "scaler": state.scaler.state_dict(),
        "average": state.average,
        "position": [state.epoch, state.batch, state.images, state.micro, state.best_epoch],
        "numbers": [state.loss_sum, state.best],
        "best_weights": state.best_weights,
        "history": state.history,
        "snapshots": state.snapshots,
    }
    save_tensors(path, value)


def read_state(path: Path) -> dict[str, Any]:
    """Read a saved state without using it.

    Raises
    ------
    ModelError
        If the file is damaged.
    """
    return _read(path, path)


def _read(source: Path | io.BytesIO, path: Path) -> dict[str, Any]:
    try:
        value = torch.load(source, map_location="cpu", weights_only=True)
        return {**value, "identity": dict(value["identity"])}
    except Exception as error:  # noqa: BLE001 - unpicklers raise anything on damaged bytes; all of it means: refuse
        raise ModelError(
            f"The training state {path} cannot be read ({type(error).__name__}); delete it to start again."
        ) from None


def state_bytes(path: Path) -> bytes:
    """Read the file of a saved state.

    Raises
    ------
    ModelError
        If it does not exist.
    StorageError
        If it cannot be read.
    """
    _require(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise storage_error(error, path, "read") from error


def _require(path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"The training state {path} does not exist; check train.loop.resume_from.")


def load_state(path: Path, state: State, identity: dict[str, Any], content: bytes | None = None) -> None:
    """Continue from a saved state.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    state : State
        Receives the saved values.
    identity : dict
        The identity that the saved state must have.
    content : bytes, optional
        The file's content, if another process has read it.

    Raises
    ------
    ModelError
        If the file is missing, damaged, or belongs to another config, other data or other hardware.
    """
    if content is None:
        _require(path)
    value = _read(path if content is None else io.BytesIO(content), path)
    found = value["identity"]
    if found != identity:
        raise ModelError(
            f"The training state {path} was made with {difference(found, identity)}; "
            "continue it with what it was made with, or leave train.loop.resume_from empty to start again."
        )
    state.model.load_state_dict(value["model"])
    state.optimiser.load_state_dict(value["optimiser"])
    state.scaler.load_state_dict(value["scaler"])
    for name, tensor in (value["average"] or {}).items():
        assert state.average is not None
        state.average[name].copy_(tensor)
    state.epoch, state.batch, state.images, state.micro, state.best_epoch = value["position"]
    state.loss_sum, state.best = value["numbers"]
    state.best_weights, state.history = value["best_weights"], value["history"]
    kept = value.get("snapshots")  # earlier versions did not save them
    own = state.weights()
    state.snapshots = None if kept is None else {name: kept[name].to(own[name].device) for name in own}


def difference(found: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> str:
    """Describe the first difference between two identities."""
    for key in sorted(set(found) | set(wanted)):
        if key not in found:
            return f"an earlier version, which did not know {prefix}{key}"
        if key not in wanted:
            return f"{prefix}{key} {found[key]!r}, which this version does not know"
        there, here = found[key], wanted[key]
        if there == here:
            continue
        if isinstance(there, dict) and isinstance(here, dict):
            return difference(there, here, f"{prefix}{key}.")
        if key == "data_hash":
            return f"other data (hash {str(there)[:12]}, this pack has {str(here)[:12]})"
        return f"{prefix}{key} {there!r}, which is now {here!r}"
    return "nothing different"
