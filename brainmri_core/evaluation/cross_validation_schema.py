"""The schema of a cross-validation's ``metrics.json``; the fields are in the order in which they are written."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from brainmri_core.evaluation.metrics_schema import Interval, Part, Reasons, Scores, TestLooks
from brainmri_core.system.json_models import read_model


class FoldScores(Part):
    """The scores of one fold by the model that never saw it."""

    images: int
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    macro_auroc: float | None


class PooledScores(Scores):
    """Scores on the images of all folds, or of the ensemble of all folds on the test split.

    `n_units` and `intervals` are written only if there are bootstrap resamples.
    """

    left_out_if_none: ClassVar[tuple[str, ...]] = ("n_units", "intervals")

    reasons: Reasons
    classes: list[str]
    n_units: int | None = None
    intervals: dict[str, Interval | None] | None = None


class CrossValidationMetrics(Part):
    """The whole document; `spread` is the standard deviation over the folds."""

    classes: list[str]
    pooled: PooledScores
    folds: dict[str, FoldScores]
    mean: dict[str, float | None]
    spread: dict[str, float | None]
    ensemble: PooledScores | None
    label_issues: int
    test_looks: TestLooks | None = None


def read_cross_validation(path: Path) -> CrossValidationMetrics:
    """Read the ``metrics.json`` of a cross-validation.

    Raises
    ------
    IntegrityError
        If it is damaged, or not of this version.
    """
    return read_model(
        path,
        CrossValidationMetrics,
        "does not hold the metrics of a cross-validation",
        "materialize cross_validation_report again",
    )
