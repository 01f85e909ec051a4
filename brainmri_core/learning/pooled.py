"""An encoder under one linear layer that sees the averaged maps of several depths of it, not the last alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class PooledClassifier(nn.Module):
    """An encoder with a linear head on the pooled maps of some of its layers, and on what its own head would see.

    Parameters
    ----------
    encoder : torch.nn.Module
        A classifier without its head: it returns what the head would see, ``(B, D)``.
    layers : sequence of str
        Paths of the layers whose maps ``(B, C, h, w)`` are averaged over the image, from the input on.
    width : int
        Length of all of it together.
    num_classes : int
        Outputs of the head.
    """

    def __init__(self, encoder: nn.Module, layers: Sequence[str], width: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.layers = tuple(layers)
        self.head = nn.Linear(width, num_classes)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(B, K)``."""
        logits: torch.Tensor = self.head(self.pooled(batch))
        return logits

    def pooled(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the features ``(B, width)`` that the head sees, the shallowest first."""
        found: dict[str, torch.Tensor] = {}

        def keep(path: str) -> Any:
            return lambda _, __, output: found.__setitem__(path, output.mean((2, 3)))

        hooks = [self.encoder.get_submodule(path).register_forward_hook(keep(path)) for path in self.layers]
        try:
            last = self.encoder(batch)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([*(found[path] for path in self.layers), last], dim=1)
