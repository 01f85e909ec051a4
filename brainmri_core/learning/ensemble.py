"""Deep ensembles: the averaged probabilities of several networks of one architecture, as one network.

Lakshminarayanan et al., Simple and scalable predictive uncertainty estimation using deep ensembles, NeurIPS 2017.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class Member(nn.Module):
    """A classifier with its own normalisation and temperature.

    Parameters
    ----------
    network : torch.nn.Module
        The classifier.
    mean, std : sequence of float
        Mean and standard deviation of its training pixels, per channel.
    temperature : float
        Its logits are divided by it.
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
        """Normalise pixels ``(B, C, S, S)`` in [0, 1] for the network."""
        return (pixels - self.mean) / self.std

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the member's probabilities ``(B, K)``."""
        return F.log_softmax(self.network(self.seen(pixels)).float() / self.temperature, dim=1)


class Ensemble(nn.Module):
    """The mean probability of its members; its input is pixels in [0, 1], which each member normalises itself."""

    members: Sequence[Member]

    def __init__(self, members: Sequence[Member]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)  # type: ignore[assignment]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the mean probability ``(B, K)``, which can serve as logits."""
        found = torch.stack([member(pixels) for member in self.members])
        return found.logsumexp(0) - math.log(len(found))


def networks_of(model: nn.Module) -> list[nn.Module]:
    """Return the networks of an ensemble, or a single model as a list of one."""
    return [member.network for member in model.members] if isinstance(model, Ensemble) else [model]
