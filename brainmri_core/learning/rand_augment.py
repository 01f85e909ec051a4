"""RandAugment for gray images: every image gets some random operations of the same magnitude, in whole batches.

From Cubuk et al., RandAugment: Practical automated data augmentation with a reduced search space, 2020, with its ranges.
Colour, solarise, invert and equalise are left out, as no scanner produces such gray levels. All geometric operations are
combined into one matrix, so that the image is interpolated only once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F


def _brighter(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    return images * (1 + 0.9 * strength)


def _steeper(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (1 + 0.9 * strength)


def _sharper(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    mean = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    smooth = (9 * mean + 4 * images) / 13  # Pillow's kernel: 5 in the middle, 1 around it
    return smooth + (images - smooth) * (1 + 0.9 * strength)


def _coarser(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    step = 2 ** torch.round(4 * strength.abs())
    return torch.floor(torch.round(images * 255) / step) * step / 255


def _stretched(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp_min(1e-6), images)


_LEVELS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "brightness": _brighter,
    "contrast": _steeper,
    "sharpness": _sharper,
    "posterise": _coarser,
    "autocontrast": _stretched,
}
OPERATIONS = ("none", "rotate", "shear x", "shear y", "shift x", "shift y", *_LEVELS)


@dataclass(frozen=True)
class Operations:
    """The operations on a batch, in R rounds.

    Attributes
    ----------
    which : torch.Tensor
        int64 ``(R, B)``: index into `OPERATIONS`.
    strength : torch.Tensor
        float32 ``(R, B)``: the magnitude with a random sign.
    """

    which: torch.Tensor
    strength: torch.Tensor

    @classmethod
    def drawn(cls, rounds: int, images: int, magnitude: float, generator: torch.Generator) -> Operations:
        """Draw an operation and a sign for every image and round."""
        which = torch.randint(len(OPERATIONS), (rounds, images), generator=generator)
        sign = torch.where(torch.rand(rounds, images, generator=generator) < 0.5, -1.0, 1.0)
        return cls(which, sign * magnitude)

    def after(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return the affine maps ``(B, 2, 3)`` from output to input that apply `matrix` and then these operations."""
        last = torch.tensor([0.0, 0.0, 1.0]).expand(len(matrix), 1, 3)
        whole = torch.cat([matrix, last], 1)
        for which, strength in zip(self.which, self.strength, strict=True):

            def share(
                name: str, which: torch.Tensor = which, strength: torch.Tensor = strength
            ) -> torch.Tensor:
                return torch.where(which == OPERATIONS.index(name), strength, 0.0)

            angle = math.radians(30) * share("rotate")
            cos, sin = torch.cos(angle), torch.sin(angle)
            move = torch.stack(
                [
                    torch.stack([cos, 0.3 * share("shear x") - sin, 0.9 * share("shift x")], 1),
                    torch.stack([0.3 * share("shear y") + sin, cos, 0.9 * share("shift y")], 1),
                ],
                1,
            )
            whole = whole @ torch.cat([move, last], 1)
        return whole[:, :2]

    def on_levels(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the batch, float32 in [0, 1] ``(B, C, S, S)``, after the operations on gray levels."""
        batch = batch.clone()
        for which, strength in zip(self.which, self.strength, strict=True):
            for name, change in _LEVELS.items():
                chosen = (which == OPERATIONS.index(name)).nonzero().flatten()
                if len(chosen):
                    rows, force = chosen.to(batch.device), strength[chosen].to(batch.device)
                    batch[rows] = change(batch[rows], force.view(-1, 1, 1, 1)).clamp(0, 1)
        return batch
