"""Checks of explanation maps: whether they depend on the model's parameters, and whether they find a known tumour."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import nn

from brainmri_core.arrays import F32, I64, U8, Mask
from brainmri_core.evaluation.gradcam import maps_of_rows
from brainmri_core.learning.checkpoint import Preprocessing
from brainmri_core.learning.ensemble import networks_of
from brainmri_core.learning.models import head, last_block

IOU_SHARE = 0.5
_CONSTANT = "the maps of one of the two models are constant"


def randomised(model: nn.Module, name: str, stage: str, seed: int) -> nn.Module:
    """Return a copy of a model with new random parameters.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    name : str
        Its architecture.
    stage : str
        What to randomise: ``head``, ``last block`` (and head), or ``all`` layers.
    seed : int
        Seed of the parameters.
    """
    fresh = copy.deepcopy(model)
    networks = networks_of(fresh)
    heads: list[nn.Module] = [head(network) for network in networks]
    layers: dict[str, list[nn.Module]] = {
        "head": heads,
        "last block": [*heads, *(part for one in networks for part in last_block(name, one).modules())],
        "all": list(fresh.modules()),
    }
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        for module in layers[stage]:
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
                continue
            for parameter in module.parameters(
                recurse=False
            ):  # such as the position embeddings of a transformer
                values = parameter.detach()
                nn.init.normal_(parameter, float(values.mean()), float(values.std(correction=0)))
    finally:
        torch.set_rng_state(state)
    return fresh.eval()


def randomisation_check(
    model: nn.Module,
    name: str,
    pack: U8,
    rows: I64,
    targets: I64,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    batch_size: int,
    seed: int,
) -> tuple[dict[str, Any], dict[str, F32]]:
    """Compare the Grad-CAM maps of a model with those of copies with randomised parameters.

    Adebayo et al., Sanity checks for saliency maps, NeurIPS 2018: maps that stay the same explain the image, not the
    model. The maps are never negative, so the sign of the correlation is meaningful.

    Parameters
    ----------
    model, name, pack, rows, targets, preprocessing, device, batch_size
        As in `gradcam.maps_of_rows`.
    seed : int
        Seed of the random parameters.

    Returns
    -------
    scores : dict
        ``spearman``: for each stage the mean Spearman correlation with the model's own maps, over images whose two maps
        both vary (None without any); ``passed``: whether it is below 0.5 with all parameters randomised; and the
        ``reasons`` of None values.
    maps : dict
        Stage to Grad-CAM maps, float32 ``(M, S, S)``; ``own`` are those of the model.
    """

    def compute(candidate: nn.Module) -> F32:
        return maps_of_rows(
            candidate, name, pack, rows, targets, preprocessing, device=device, batch_size=batch_size
        ).gradcam

    maps = {"own": compute(model)}
    correlation: dict[str, float | None] = {}
    for stage in ("head", "last block", "all"):
        maps[stage] = compute(randomised(model, name, stage, seed))
        correlation[stage] = _mean_correlation(maps["own"], maps[stage])
    last = correlation["all"]
    return {
        "images": len(rows),
        "spearman": correlation,
        "passed": None if last is None else last < 0.5,
        "reasons": {
            **{f"spearman.{stage}": _CONSTANT for stage, value in correlation.items() if value is None},
            **({"passed": _CONSTANT} if last is None else {}),
        },
    }, maps


def _mean_correlation(one: F32, other: F32) -> float | None:
    step = max(
        1, one.shape[-1] // 28
    )  # the maps are interpolated from a coarse grid: some samples are enough
    found = []
    for first, second in zip(one[:, ::step, ::step], other[:, ::step, ::step], strict=True):
        if first.std() > 0 and second.std() > 0:
            found.append(float(spearmanr(first.ravel(), second.ravel()).statistic))
    return float(np.mean(found)) if found else None


def localisation_scores(maps: F32, masks: Mask) -> dict[str, Any]:
    """Score maps against known tumour masks.

    Parameters
    ----------
    maps : numpy.ndarray
        float32 ``(N, S, S)``.
    masks : numpy.ndarray
        bool ``(N, S, S)``, each with at least one true pixel.

    Returns
    -------
    dict
        ``pointing_game``: share of maps whose peak is in the mask (Zhang et al., IJCV 2018); ``iou``: mean intersection
        over union of the mask and the map above half its peak; ``energy_inside``: mean share of the map inside the mask;
        ``mask_share``: mean share of the image that the mask covers, the value of these scores by chance.
    """
    if not len(maps):
        return {"images": 0, "reason": "no evaluated image has a known tumour mask"}
    flat = maps.reshape(len(maps), -1)
    inside = masks.reshape(len(masks), -1)
    peak = inside[np.arange(len(flat)), flat.argmax(axis=1)] & (flat.max(axis=1) > 0)
    hot = (flat >= IOU_SHARE * flat.max(axis=1, keepdims=True)) & (flat > 0)
    iou = (hot & inside).sum(axis=1) / (hot | inside).sum(axis=1)
    total = flat.sum(axis=1)
    energy = np.divide((flat * inside).sum(axis=1), total, out=np.zeros(len(flat)), where=total > 0)
    return {
        "images": len(maps),
        "pointing_game": float(peak.mean()),
        "iou": float(iou.mean()),
        "energy_inside": float(energy.mean()),
        "mask_share": float(inside.mean()),
    }


def shrink_mask(mask: U8, size: int) -> Mask:
    """Resize a fitted mask ``(P, P)`` to ``size x size``; a cell with any tumour pixel counts, so that none vanishes."""
    image = Image.fromarray(np.where(mask > 127, 255, 0).astype(np.uint8))
    return np.asarray(image.resize((size, size), Image.Resampling.BOX)) > 0
