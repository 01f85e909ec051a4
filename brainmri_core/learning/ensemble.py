"""An ensemble: networks of one architecture whose probabilities are averaged, as one network.

Lakshminarayanan et al., Simple and scalable predictive uncertainty estimation using deep ensembles, NeurIPS 2017.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class Member(nn.Module):
    """A classifier behind the normalisation that it was trained with, its logits divided by its own temperature.

    Parameters
    ----------
    network : torch.nn.Module
        The classifier.
    mean, std : sequence of float
        Of its training pixels, per channel.
    temperature : float
        Divides its logits.
    """

    mean: torch.Tensor
    std: torch.Tensor
    temperature: torch.Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.register_buffer("temperature", torch.tensor(temperature))

    def seen(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return pixels ``(B, C, S, S)`` in [0, 1] as the network sees them."""
        return (pixels - self.mean) / self.std

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the member's probabilities ``(B, K)``."""
        return F.log_softmax(self.network(self.seen(pixels)).float() / self.temperature, dim=1)


class Ensemble(nn.Module):
    """Members whose mean probability is the answer; it takes pixels in [0, 1], which each member normalises itself."""

    members: Sequence[Member]

    def __init__(self, members: Sequence[Member]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)  # type: ignore[assignment]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the mean probability ``(B, K)``; as logits they give that probability again."""
        found = torch.stack([member(pixels) for member in self.members])
        return found.logsumexp(0) - math.log(len(found))


def networks_of(model: nn.Module) -> list[nn.Module]:
    """Return the networks of an ensemble, or a model itself."""
    return [member.network for member in model.members] if isinstance(model, Ensemble) else [model]
