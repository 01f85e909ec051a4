"""Augmentation of whole batches as tensors on the device, drawn from a seeded generator so that resuming is exact."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from brainmri_core.config.training import AugmentConfig


def augment(batch: torch.Tensor, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """Change every image of a batch at random.

    Rotation, scale and shift are one affine resampling, so that an image is interpolated once.

    Parameters
    ----------
    batch : torch.Tensor
        float32 in [0, 1], ``(B, C, S, S)``.
    config : AugmentConfig
        How far each change may go.
    generator : torch.Generator
        On the CPU; the draws do not depend on the device.

    Returns
    -------
    torch.Tensor
        Like `batch`.
    """
    n = len(batch)

    def uniform(spread: float) -> torch.Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1) * spread

    angle = uniform(math.radians(config.rotate_deg))
    scale = torch.exp(uniform(math.log1p(config.scale)))
    shift = torch.stack([uniform(2 * config.shift), uniform(2 * config.shift)], dim=1)
    mirror = torch.where(torch.rand(n, generator=generator) < config.hflip_prob, -1.0, 1.0)
    flip = torch.where(torch.rand(n, generator=generator) < config.vflip_prob, -1.0, 1.0)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    matrix = torch.stack(
        [
            torch.stack([cos * mirror, -sin * flip, shift[:, 0]], 1),
            torch.stack([sin * mirror, cos * flip, shift[:, 1]], 1),
        ],
        1,
    )
    if not torch.equal(matrix, torch.eye(2, 3).expand(n, 2, 3)):
        grid = F.affine_grid(matrix.to(batch.device), list(batch.shape), align_corners=False)
        batch = F.grid_sample(batch, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    brightness = (1 + uniform(config.jitter_brightness)).to(batch.device).view(-1, 1, 1, 1)
    contrast = (1 + uniform(config.jitter_contrast)).to(batch.device).view(-1, 1, 1, 1)
    mean = batch.mean(dim=(1, 2, 3), keepdim=True)
    batch = (batch - mean) * contrast + mean * brightness
    if config.noise_std > 0:
        noise = torch.randn(batch.shape, generator=generator).to(batch.device)
        batch = batch + noise * config.noise_std
    return batch.clamp(0, 1).contiguous(memory_format=torch.channels_last)


def mix(
    batch: torch.Tensor, targets: torch.Tensor, config: AugmentConfig, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply mixup (Zhang et al., 2018) or CutMix (Yun et al., 2019), whichever is on; with both on, one by a coin toss.

    Parameters
    ----------
    batch : torch.Tensor
        float32, ``(B, C, S, S)``.
    targets : torch.Tensor
        float32 class probabilities, ``(B, K)``.

    Returns
    -------
    batch, targets : torch.Tensor
        Mixed with a permutation of themselves.
    """
    kinds = [
        kind for kind, alpha in (("mixup", config.mixup_alpha), ("cutmix", config.cutmix_alpha)) if alpha > 0
    ]
    if not kinds:
        return batch, targets
    kind = kinds[int(torch.randint(len(kinds), (1,), generator=generator))]
    alpha = config.mixup_alpha if kind == "mixup" else config.cutmix_alpha
    seed = int(torch.randint(2**62, (1,), generator=generator))
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    other = torch.randperm(len(batch), generator=generator).to(batch.device)
    if kind == "mixup":
        mixed = batch * share + batch[other] * (1 - share)
    else:
        side = batch.shape[-1]
        width = round(side * math.sqrt(1 - share))
        left, top = (int(torch.randint(side - width + 1, (1,), generator=generator)) for _ in range(2))
        mixed = batch.clone()
        mixed[:, :, top : top + width, left : left + width] = batch[
            other, :, top : top + width, left : left + width
        ]
        share = 1 - width * width / (side * side)
    return mixed, targets * share + targets[other] * (1 - share)
