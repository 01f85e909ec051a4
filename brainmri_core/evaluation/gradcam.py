"""Grad-CAM (Selvaraju et al., ICCV 2017) and Grad-CAM++ (Chattopadhyay et al., WACV 2018), in batches.

The package `grad-cam` is not used: it depends on opencv-python and ttach for two formulas, and runs a full backward pass.
Here the graph is cut at the last feature map, so that the backward pass goes only through pooling and head, and a map takes
no longer than a prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from brainmri_core.arrays import F32, I64, U8
from brainmri_core.errors import ModelError
from brainmri_core.learning.batches import iterate
from brainmri_core.learning.checkpoint import Preprocessing
from brainmri_core.learning.ensemble import Ensemble
from brainmri_core.learning.models import encoder_of, gradcam_layer
from brainmri_core.learning.timm_models import map_of


class MapError(ModelError):
    """A model's last feature map has a single cell, so its map would be the same everywhere in the image."""


@dataclass(frozen=True)
class Maps:
    """Class activation maps of N images.

    Attributes
    ----------
    gradcam, gradcam_plus_plus : numpy.ndarray
        float32 ``(N, S, S)`` in [0, 1] at the model's input size; all zero where nothing supports the class.
    grid : int
        Side of the feature map that they were interpolated from, in cells; 0 without an image.
    """

    gradcam: F32
    gradcam_plus_plus: F32
    grid: int


def activation_maps(model: nn.Module, name: str, batch: torch.Tensor, targets: torch.Tensor) -> Maps:
    """Compute both maps of a batch.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode. The maps of an ensemble are the mean of its members' maps.
    name : str
        Its architecture, which determines the layer of the last feature map.
    batch : torch.Tensor
        Model input, float ``(B, C, S, S)``.
    targets : torch.Tensor
        int64 ``(B,)``: the class to explain in each image.

    Raises
    ------
    MapError
        If the last feature map has one cell.
    """
    if isinstance(model, Ensemble):
        members = model.members
        return _mean_of([activation_maps(one.network, name, one.seen(batch), targets) for one in members])
    kept: list[torch.Tensor] = []

    def cut(_: nn.Module, __: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        kept.append(output.detach().float().requires_grad_())
        return kept[0].clone()  # some models apply an in-place ReLU next, which a leaf does not allow

    encoder = encoder_of(model)
    handle = gradcam_layer(name, model).register_forward_hook(cut)
    parameters = [item for item in model.parameters() if item.requires_grad]
    try:
        for item in parameters:
            item.requires_grad_(False)
        with torch.enable_grad():
            logits = model(batch)
            features = map_of(encoder, kept[0].detach())
            if features.shape[2:].numel() == 1:
                raise MapError(
                    f"The last feature map of {name} is 1 x 1 for images of {batch.shape[-1]} px, so that Grad-CAM would "
                    "colour the whole image alike; train with a larger train.data.image_size"
                )
            chosen = logits.gather(1, targets.to(logits.device).view(-1, 1)).sum()
            (gradient,) = torch.autograd.grad(chosen, kept[0])
    finally:
        handle.remove()
        for item in parameters:
            item.requires_grad_(True)
    gradient = map_of(encoder, gradient)
    plain = gradient.mean(dim=(2, 3), keepdim=True)
    squared, cubed = gradient**2, gradient**3
    denominator = 2 * squared + features.sum(dim=(2, 3), keepdim=True) * cubed
    alpha = torch.where(denominator != 0, squared / denominator, torch.zeros_like(squared))
    plus = (alpha * gradient.relu()).sum(dim=(2, 3), keepdim=True)
    size = batch.shape[-1]
    return Maps(_upsampled(plain, features, size), _upsampled(plus, features, size), int(features.shape[-1]))


def _mean_of(found: Sequence[Maps]) -> Maps:
    """Average maps of the same images, and scale each to a peak of 1 again; maps of zeros stay."""

    def mean(maps: list[F32]) -> F32:
        total: F32 = np.mean(maps, axis=0, dtype=np.float32)
        peak = total.max(axis=(1, 2), keepdims=True)
        return np.asarray(total / np.where(peak > 0, peak, 1), np.float32)

    return Maps(
        mean([item.gradcam for item in found]),
        mean([item.gradcam_plus_plus for item in found]),
        found[0].grid,
    )


def _upsampled(weights: torch.Tensor, features: torch.Tensor, size: int) -> F32:
    maps = (weights * features).sum(dim=1, keepdim=True).relu()
    maps = F.interpolate(maps, size=(size, size), mode="bilinear", align_corners=False)[:, 0]
    peak = maps.amax(dim=(1, 2), keepdim=True)
    scaled = torch.where(peak > 0, maps / peak.clamp_min(torch.finfo(maps.dtype).tiny), maps)
    return np.asarray(scaled.cpu().numpy(), np.float32)


def maps_of_rows(
    model: nn.Module,
    name: str,
    pack: U8,
    rows: I64,
    targets: I64,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    batch_size: int,
) -> Maps:
    """Compute both maps of some rows of a pack, batch by batch.

    Parameters
    ----------
    model, name
        As in `activation_maps`.
    pack : numpy.ndarray
        uint8 ``(N, P, P)`` or ``(N, P, P, 3)``.
    rows, targets : numpy.ndarray
        int64 ``(M,)``: rows of the pack, and the class to explain in each.
    preprocessing : Preprocessing
        Of the model.
    device, batch_size
        Where the model is, and images per forward pass.

    Raises
    ------
    MapError
        If the last feature map has one cell.
    """
    parts: list[Maps] = []
    done = 0
    for batch in iterate(pack, rows, batch_size, preprocessing, device):
        wanted = torch.tensor(targets[done : done + len(batch)])
        parts.append(activation_maps(model, name, batch, wanted))
        done += len(batch)
    size = preprocessing.image_size
    empty = np.zeros((0, size, size), np.float32)
    return Maps(
        np.concatenate([empty, *(part.gradcam for part in parts)]),
        np.concatenate([empty, *(part.gradcam_plus_plus for part in parts)]),
        parts[0].grid if parts else 0,
    )
