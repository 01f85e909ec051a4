"""A model with the shapes, arithmetic, calibration and thresholds of its evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from brainmri_core.arrays import F32, I64, U8
from brainmri_core.classifier.intake import Fitted
from brainmri_core.classifier.prediction import Prediction
from brainmri_core.config.base import Precision
from brainmri_core.evaluation.calibration import probabilities
from brainmri_core.evaluation.gradcam import MapError, maps_of_rows
from brainmri_core.evaluation.outliers import OutlierModel
from brainmri_core.learning.checkpoint import CheckpointMeta
from brainmri_core.learning.inference import Predictions, predict_evenly


@dataclass(frozen=True)
class Inference:
    """Predict fitted images.

    Attributes
    ----------
    temperature : float or None
        Divides the logits; None if the probabilities are not calibrated.
    outliers : OutlierModel or None
        Flags outliers; None if nothing is flagged.
    batch_size, precision, mirror
        Those of the evaluation, so that the same image gets the same bits.
    """

    model: nn.Module = field(repr=False)
    meta: CheckpointMeta = field(repr=False)
    device: torch.device
    temperature: float | None
    outliers: OutlierModel | None = field(repr=False)
    batch_size: int
    precision: Precision
    mirror: bool

    def outputs(self, pack: U8, rows: I64) -> Predictions:
        """Return the logits and embeddings of rows of a pack."""
        return predict_evenly(
            self.model,
            pack,
            rows,
            self.meta.preprocessing,
            device=self.device,
            batch_size=self.batch_size,
            precision=self.precision,
            tta=self.mirror,
            progress=False,
        )

    def predict(self, batch: Sequence[Fitted], *, maps: bool, traces: bool = False) -> list[Prediction]:
        """Predict at most `batch_size` images, in order.

        Parameters
        ----------
        batch : sequence of Fitted
            The images.
        maps : bool
            Also compute Grad-CAM maps.
        traces : bool
            Also return pixels, embedding and original size.
        """
        pixels = np.stack([item.pixels for item in batch])
        found = self.outputs(pixels, np.arange(len(batch)))
        embeddings = found.asked_embeddings
        called = np.asarray(found.logits.argmax(axis=1), np.int64)
        shares = probabilities(found.logits, self.temperature or 1.0)
        scores, limit = None, 0.0
        if self.outliers is not None:
            # in batches that are all equally long, as the predictions: else the last bit depends on the other images
            missing = -len(batch) % self.batch_size
            padded = np.concatenate([embeddings, np.repeat(embeddings[-1:], missing, axis=0)])
            scores, limit = self.outliers.score(padded)[: len(batch)], self.outliers.threshold
        heat, reason = self._maps(pixels, called) if maps else (None, None)
        classes = self.meta.classes
        return [
            Prediction(
                item.name,
                item.slice,
                item.slices,
                predicted=classes[called[row]],
                probabilities=dict(zip(classes, shares[row].tolist(), strict=True)),
                logits=found.logits[row],
                outlier_score=None if scores is None else float(scores[row]),
                outlier=None if scores is None else bool(scores[row] > limit),
                pixels=item.pixels if maps or traces else None,
                heatmap=None if heat is None else heat[row],
                no_heatmap=reason,
                embedding=embeddings[row] if traces else None,
                width=item.width if traces else None,
                height=item.height if traces else None,
            )
            for row, item in enumerate(batch)
        ]

    def _maps(self, pixels: U8, called: I64) -> tuple[F32 | None, str | None]:
        """Return the Grad-CAM maps of a batch, or why there are none."""
        try:
            found = maps_of_rows(
                self.model,
                self.meta.model_name,
                pixels,
                np.arange(len(pixels)),
                called,
                self.meta.preprocessing,
                device=self.device,
                batch_size=self.batch_size,
            )
        except MapError as error:
            return None, str(error)
        return found.gradcam, None
