"""The team: all processes that train one model, either one alone or several under torchrun that share every batch."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from brainmri_core.config import EnvConfig
from brainmri_core.errors import ModelError
from brainmri_core.learning.device import choose_device
from brainmri_core.learning.nodes import Nodes
from brainmri_core.system.signals import signals_noted


@dataclass
class Team:
    """This process's place among the processes that train one model.

    Attributes
    ----------
    rank, size : int
        Index of this process, from 0, and number of processes. The first process writes the results.
    stopped_by : int
        Signal that asked any of them to stop, known since the last `total`; 0 for none.
    """

    rank: int = 0
    size: int = 1
    stopped_by: int = 0
    _noted: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def part(self, batch: torch.Tensor) -> torch.Tensor:
        """Return this process's share of a batch; the sizes of the shares differ by at most one image."""
        return batch if self.size == 1 else batch.tensor_split(self.size)[self.rank]

    def total(self, value: float, device: torch.device) -> float:
        """Return the sum of a value over all processes, and exchange whether any process was asked to stop.

        All processes learn of it in the same call, so that they stop after the same step. If one left alone, the others
        would wait for it for ever.
        """
        if self.size == 1:
            return value
        pair = torch.tensor([value, self._noted], dtype=torch.float64, device=device)
        parts = [torch.empty_like(pair) for _ in range(self.size)]
        dist.all_gather(parts, pair)
        sums = torch.stack(parts)
        self.stopped_by = int(sums[:, 1].max())
        return float(sums[:, 0].sum())

    def leave_if_asked(self) -> None:
        """Raise what the signal would have raised, once all processes know of it."""
        if self.stopped_by == signal.SIGINT:
            raise KeyboardInterrupt
        if self.stopped_by:
            raise SystemExit(128 + self.stopped_by)

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """Return the elementwise sum of a tensor over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def from_leader(self, make: Callable[[], bytes]) -> bytes:
        """Let the first process make some bytes and send them to all; torch's function for objects would unpickle them."""
        if self.size == 1:
            return make()
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        made = make() if self.leads else b""
        length = torch.tensor([len(made)], device=device)
        dist.broadcast(length, 0)
        content = torch.empty(int(length), dtype=torch.uint8, device=device)
        if self.leads and made:
            content.copy_(torch.from_numpy(np.frombuffer(made, np.uint8).copy()))
        if len(content):
            dist.broadcast(content, 0)
        return content.cpu().numpy().tobytes()

    @contextlib.contextmanager
    def signals_noted(self) -> Iterator[None]:
        """Note SIGINT and SIGTERM instead of acting on them; `total` passes them on."""

        def note(number: int) -> None:
            self._noted = number

        with signals_noted(note):
            yield


@contextlib.contextmanager
def torchrun_team(env: EnvConfig, nodes: Nodes | None = None) -> Iterator[Team]:
    """Join the processes that torchrun started: nccl and one CUDA device each, or gloo on the CPU.

    Parameters
    ----------
    env : EnvConfig
        Whether to use CUDA.
    nodes : Nodes, optional
        The machines, if there are several; they train only if all are alike.

    Raises
    ------
    ModelError
        If this machine has fewer devices than processes, or the machines differ.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    on_cuda = choose_device(env).type == "cuda"
    if on_cuda:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        if torch.cuda.device_count() < here:
            raise ModelError(
                f"train.distributed.nproc is {here}, but this machine has {torch.cuda.device_count()} CUDA device(s); "
                "lower it, or set env.prefer_cuda to false to train on the CPU."
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if on_cuda else "gloo"
    if nodes is None:
        dist.init_process_group(backend)
    else:
        store, limit = nodes.agree(), timedelta(seconds=nodes.timeout_s)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    yield Team(rank, size)
    dist.destroy_process_group()


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, on any device; torch's SyncBatchNorm needs an accelerator.

    With it, several processes compute the same as one process on the whole batch.
    """

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Normalise ``(B, C, H, W)``; B may differ between processes, and may be 0."""
        if not self.training:
            return super().forward(values)
        with torch.autocast(values.device.type, enabled=False):
            wide = values.float()
            own = torch.tensor([wide.numel() / wide.shape[1]], device=wide.device)
            dist.all_reduce(own)
            count = own.item()
            mean = _sum_of_all(wide.sum((0, 2, 3))) / count
            centred = wide - mean.view(1, -1, 1, 1)
            variance = _sum_of_all(centred.square().sum((0, 2, 3))) / count
            scale = torch.rsqrt(variance + self.eps) * self.weight
            result: torch.Tensor = centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        self._follow(mean.detach(), variance.detach() * (count / (count - 1)))
        return result.to(values.dtype)

    def _follow(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


class _SumOfAll(torch.autograd.Function):
    """Sum over all processes; the gradient is summed over them, too."""

    @staticmethod
    def forward(_: Any, values: torch.Tensor) -> torch.Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _sum_of_all(values: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = _SumOfAll.apply(values)
    return total


def share_statistics(model: nn.Module, device: torch.device) -> nn.Module:
    """Replace the batch norms of a model by ones over all processes; names and weights do not change."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d
    return model


def in_step(model: nn.Module, team: Team) -> Any:
    """Wrap a model so that its gradients are averaged over the team; for a single process, return it unchanged."""
    if team.size == 1:
        return model
    return nn.parallel.DistributedDataParallel(model)
