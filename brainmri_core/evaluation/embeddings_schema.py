"""The schema of the ``metrics.json`` of embeddings; the fields are in the order in which they are written."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from brainmri_core.evaluation.cross_validation_schema import FoldScores, PooledScores
from brainmri_core.evaluation.drift import DriftMeasure
from brainmri_core.evaluation.metrics_schema import Part, Unavailable
from brainmri_core.system.json_models import read_model


class OutlierCounts(Part):
    """The outlier score's threshold, and the number of images of either side above it."""

    threshold: float
    train: int
    test: int


class EmbeddingsMetrics(Part):
    """The whole document; the probe's scores are None, with a `reason`, where the folds could not be scored.

    `outliers` and `drift` are None only in the files of older versions, which did not write them.
    """

    left_out_if_none: ClassVar[tuple[str, ...]] = ("outliers", "drift")

    pooled: PooledScores | None
    folds: dict[str, FoldScores]
    reason: str | None
    outliers: OutlierCounts | Unavailable | None = None
    drift: list[DriftMeasure] | None = None


def read_embeddings_metrics(path: Path) -> EmbeddingsMetrics:
    """Read the ``metrics.json`` of embeddings.

    Raises
    ------
    IntegrityError
        If it is damaged, or not of this version.
    """
    return read_model(
        path, EmbeddingsMetrics, "does not hold the metrics of embeddings", "run embeddings again"
    )
