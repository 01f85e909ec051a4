"""Inference: logits, and embeddings on request, for rows of a pack."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from brainmri_core.arrays import F32, I64, U8
from brainmri_core.config.base import Precision
from brainmri_core.learning.batches import iterate
from brainmri_core.learning.checkpoint import Preprocessing
from brainmri_core.learning.device import autocast
from brainmri_core.learning.models import head


@dataclass(frozen=True)
class Predictions:
    """Model outputs, row by row.

    Attributes
    ----------
    logits : numpy.ndarray
        float32, ``(N, K)``.
    embeddings : numpy.ndarray or None
        float32, ``(N, D)``: the input of the last linear layer.
    """

    logits: F32
    embeddings: F32 | None

    @property
    def asked_embeddings(self) -> F32:
        """The embeddings, of a call of `predict` that asked for them.

        Raises
        ------
        ValueError
            If it did not.
        """
        if self.embeddings is None:
            raise ValueError(
                "These predictions have no embeddings: predict was called without embeddings=True."
            )
        return self.embeddings


def forward(
    model: nn.Module, batch: torch.Tensor, precision: Precision, *, tta: bool = False
) -> torch.Tensor:
    """Return float32 logits ``(B, K)`` of a batch; with `tta`, the mean over each image and its mirror image."""
    with torch.inference_mode(), autocast(batch.device, precision):
        logits: torch.Tensor = model(batch).float()
        if tta:
            logits = (logits + model(batch.flip(-1)).float()) / 2
    return logits


def predict(
    model: nn.Module,
    pack: U8,
    rows: I64,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    batch_size: int,
    precision: Precision = "fp32",
    embeddings: bool = False,
    tta: bool = False,
    progress: bool = True,
) -> Predictions:
    """Run a model over rows of a pack.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode, on `device`.
    pack : numpy.ndarray
        uint8 ``(M, P, P)`` or ``(M, P, P, 3)``.
    rows : numpy.ndarray
        int64 ``(N,)``.
    preprocessing : Preprocessing
        Of the model.
    device, batch_size, precision
        Where and how it runs.
    embeddings : bool
        Also return the input of the last linear layer.
    tta : bool
        Average the logits of each image and its mirror image (test-time augmentation).
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    Predictions
    """
    logits: list[F32] = []
    features: list[F32] = []
    captured: list[torch.Tensor] = []

    def capture(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        captured.append(inputs[0].detach().float())

    hook = head(model).register_forward_pre_hook(capture) if embeddings else None
    try:
        with tqdm(
            total=len(rows), desc="predicting", unit="image", disable=None if progress else True
        ) as bar:
            for batch in iterate(pack, rows, batch_size, preprocessing, device):
                logits.append(forward(model, batch, precision, tta=tta).cpu().numpy())
                if embeddings:
                    features.append(captured[0].cpu().numpy())
                    captured.clear()
                bar.update(len(batch))
    finally:
        if hook is not None:
            hook.remove()
    k = head(model).out_features
    stacked = np.concatenate(logits) if logits else np.zeros((0, k), np.float32)
    return Predictions(stacked, np.concatenate(features) if features else None)


def predict_evenly(
    model: nn.Module,
    pack: U8,
    rows: I64,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    batch_size: int,
    precision: Precision,
    tta: bool = False,
    progress: bool = True,
) -> Predictions:
    """Predict rows of a pack, with embeddings, in batches of equal size.

    The last batch is padded, since the libraries may compute batches of another shape in another way, and the same image
    would not always get the same bits. The position of an image in a batch, and the other images, change nothing.

    Parameters
    ----------
    rows : numpy.ndarray
        int64, ``(N,)``, with N at least 1.
    model, pack, preprocessing, device, batch_size, precision, tta, progress
        As in `predict`.
    """
    padded = np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % batch_size)])
    found = predict(
        model,
        pack,
        padded,
        preprocessing,
        device=device,
        batch_size=batch_size,
        precision=precision,
        embeddings=True,
        tta=tta,
        progress=progress,
    )
    return Predictions(found.logits[: len(rows)], found.asked_embeddings[: len(rows)])
