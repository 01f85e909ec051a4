"""Augmentation of whole batches on the device, drawn from a seeded generator so that resumed trainings are exact."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from brainmri_core.config.training import AugmentConfig
from brainmri_core.learning.rand_augment import Operations


def augment(batch: torch.Tensor, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """Change every image of a batch at random.

    Rotation, scale and shift are one affine resampling, so that an image is interpolated once.

    Parameters
    ----------
    batch : torch.Tensor
        float32 in [0, 1], ``(B, C, S, S)``.
    config : AugmentConfig
        Strength of each change.
    generator : torch.Generator
        On the CPU, so that the draws do not depend on the device.

    Returns
    -------
    torch.Tensor
        float32 in [0, 1], ``(B, C, S, S)``, channels-last.
    """
    n = len(batch)
    matrix = _moves(n, config, generator)
    operations = None
    if config.randaugment_ops > 0:
        operations = Operations.drawn(config.randaugment_ops, n, config.randaugment_magnitude, generator)
        matrix = operations.after(matrix)
    if not torch.equal(matrix, torch.eye(2, 3).expand(n, 2, 3)):
        grid = F.affine_grid(matrix.to(batch.device), list(batch.shape), align_corners=False)
        batch = F.grid_sample(batch, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if config.bias_field > 0:
        batch = _with_bias_field(batch, config.bias_field, generator)
    brightness = (1 + _uniform(n, config.jitter_brightness, generator)).to(batch.device).view(-1, 1, 1, 1)
    contrast = (1 + _uniform(n, config.jitter_contrast, generator)).to(batch.device).view(-1, 1, 1, 1)
    mean = batch.mean(dim=(1, 2, 3), keepdim=True)
    batch = (batch - mean) * contrast + mean * brightness
    if config.jitter_gamma > 0:
        power = torch.exp(_uniform(n, math.log1p(config.jitter_gamma), generator))
        batch = batch.clamp(0, 1) ** power.to(batch.device).view(-1, 1, 1, 1)
    if operations is not None:
        batch = operations.on_levels(batch.clamp(0, 1))
    if config.noise_std > 0:
        noise = torch.randn(batch.shape, generator=generator).to(batch.device)
        batch = batch + noise * config.noise_std
    batch = batch.clamp(0, 1)
    if config.erase_prob > 0:
        batch = _erased(batch, config, generator)
    return batch.contiguous(memory_format=torch.channels_last)


def _uniform(n: int, spread: float, generator: torch.Generator) -> torch.Tensor:
    return (torch.rand(n, generator=generator) * 2 - 1) * spread


def _moves(n: int, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """Return the affine maps ``(n, 2, 3)`` from output to input that rotate, scale, shift and flip the images."""
    angle = _uniform(n, math.radians(config.rotate_deg), generator)
    scale = torch.exp(_uniform(n, math.log1p(config.scale), generator))
    shift = torch.stack([_uniform(n, 2 * config.shift, generator) for _ in range(2)], dim=1)
    mirror = torch.where(torch.rand(n, generator=generator) < config.hflip_prob, -1.0, 1.0)
    flip = torch.where(torch.rand(n, generator=generator) < config.vflip_prob, -1.0, 1.0)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    return torch.stack(
        [
            torch.stack([cos * mirror, -sin * flip, shift[:, 0]], 1),
            torch.stack([sin * mirror, cos * flip, shift[:, 1]], 1),
        ],
        1,
    )


def _with_bias_field(batch: torch.Tensor, largest: float, generator: torch.Generator) -> torch.Tensor:
    """Multiply every image by a bias field, the exponential of a random polynomial of order 3, and keep its maximum.

    The model of intensity inhomogeneity in MR is that of Van Leemput et al. (1999); its coefficients are drawn as by Sudre
    et al. (Longitudinal segmentation of age-related white matter hyperintensities, 2017) and TorchIO's RandomBiasField.
    Without scaling back to the old maximum, images that use the whole range of gray levels would saturate.
    """
    side = torch.linspace(-1, 1, batch.shape[-1])
    terms = torch.stack(
        [side[:, None] ** i * side[None, :] ** j for i in range(4) for j in range(4 - i) if i + j > 0]
    )
    drawn = _uniform(len(batch) * len(terms), largest, generator).view(len(batch), len(terms))
    field = torch.exp(torch.einsum("nk,kyx->nyx", drawn, terms)).to(batch.device).unsqueeze(1)
    bright, most = batch * field, (1, 2, 3)
    return bright * (batch.amax(most, keepdim=True) / bright.amax(most, keepdim=True).clamp_min(1e-6))


def _erased(batch: torch.Tensor, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """Fill a rectangle of some images with the image's mean: random erasing (Zhong et al., AAAI 2020)."""
    n, side = len(batch), batch.shape[-1]
    chosen, share, shape, down, right = torch.rand(5, n, generator=generator)
    area = 0.02 + share * (config.erase_area - 0.02)
    longest = torch.log(
        torch.clamp(1 / area, max=10 / 3)
    )  # limits the aspect ratio so that no side exceeds the image
    height = (torch.sqrt(area * torch.exp(longest * (2 * shape - 1))) * side).round().clamp(1, side)
    width = (area * side**2 / height).round().clamp(1, side)
    top, left = (down * (side - height + 1)).floor(), (right * (side - width + 1)).floor()
    line = torch.arange(side)
    rows = (line >= top[:, None]) & (line < (top + height)[:, None])
    columns = (line >= left[:, None]) & (line < (left + width)[:, None])
    inside = rows[:, :, None] & columns[:, None, :] & (chosen < config.erase_prob)[:, None, None]
    return torch.where(inside.unsqueeze(1).to(batch.device), batch.mean((1, 2, 3), keepdim=True), batch)


def mix(
    batch: torch.Tensor, targets: torch.Tensor, config: AugmentConfig, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply mixup (Zhang et al., ICLR 2018) or CutMix (Yun et al., ICCV 2019); with both on, one of them at random.

    Parameters
    ----------
    batch : torch.Tensor
        float32, ``(B, C, S, S)``.
    targets : torch.Tensor
        float32 class probabilities, ``(B, K)``.
    config : AugmentConfig
        ``mixup_alpha`` and ``cutmix_alpha``; 0 turns a method off.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    batch, targets : torch.Tensor
        Of the same shapes, each image mixed with another of the batch; unchanged where both methods are off.
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
