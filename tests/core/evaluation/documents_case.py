"""Whole and valid ``metrics.json`` documents; what no test reads is made up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from brainmri_core.config import with_seed
from brainmri_core.config.external import ExternalConfig
from brainmri_core.evaluation.baselines import Baseline
from brainmri_core.evaluation.cross_validation_schema import CrossValidationMetrics
from brainmri_core.evaluation.drift import DriftMeasure
from brainmri_core.evaluation.embeddings_schema import EmbeddingsMetrics, OutlierCounts
from brainmri_core.evaluation.external_schema import (
    Comparison,
    Difference,
    ExternalMetrics,
    ImageCounts,
    TakenOutCounts,
)
from brainmri_core.evaluation.external_scores import (
    Carried,
    compare_with_own,
    flag_rates,
    full_scores,
    score_rows,
)
from brainmri_core.evaluation.fold_scores import pooled_scores, scores_of
from brainmri_core.evaluation.metrics_file import Context, evaluation_metrics, whole_document
from brainmri_core.evaluation.metrics_schema import (
    EvaluationMetrics,
    NoOutlierScore,
    ReaderWarning,
    Unavailable,
)
from brainmri_core.evaluation.prediction_table import labels_of, logits_of
from brainmri_core.evaluation.recalibration import plan_recalibration
from brainmri_core.evaluation.taken_out import REASONS
from brainmri_core.splitting.assignment import independent_units
from tests.core.evaluation.metrics_case import CLASSES, made_up, table_of

WRITTEN = "2026-01-01T00:00:00Z"
UNITS, PREDICTED = 9, 40


def evaluation_document(
    baselines: Sequence[Baseline] = (), dataset: str = "brainmri/phantom"
) -> EvaluationMetrics:
    """The metrics of an evaluation on 60 images."""
    table = table_of(*made_up(n=60, k=3), CLASSES)
    return whole_document(
        evaluation_metrics(table, CLASSES, Context(20, 1, iter(()), list(baselines), 0, 0)),
        dataset=dataset, run_id="r", written_at_utc=WRITTEN, label_issues=0, looks=None,
        outliers=NoOutlierScore(reason="none"), explanations=Unavailable(reason="none"),
    )  # fmt: skip


def cross_validation_document() -> CrossValidationMetrics:
    """The metrics of a cross-validation with one fold."""
    table = table_of(*made_up(n=60, k=3), CLASSES)
    return CrossValidationMetrics(
        classes=CLASSES, pooled=pooled_scores(table, CLASSES, 20, 1), folds={"0": scores_of(table, CLASSES)},
        mean={"mcc": None}, spread={"mcc": None}, ensemble=pooled_scores(table, CLASSES, 0, 1), label_issues=0,
    )  # fmt: skip


def embeddings_document(reason: str | None = None) -> EmbeddingsMetrics:
    """The metrics of embeddings; with a reason, those of a split without folds."""
    table = table_of(*made_up(n=60, k=3), CLASSES)
    scored = reason is None
    return EmbeddingsMetrics(
        pooled=pooled_scores(table, CLASSES, 20, 1) if scored else None,
        folds={"0": scores_of(table, CLASSES)} if scored else {},
        reason=reason,
        outliers=OutlierCounts(threshold=1.5, train=1, test=0) if scored else Unavailable(reason="too few"),
        drift=[
            DriftMeasure(kind="size", squared=0.1, threshold=0.2),
            DriftMeasure(kind="edges", squared=None, threshold=None, reason="too few"),
        ],
    )


def external_document(
    dataset: str = "owner/away",
    trained_on: str = "brainmri/phantom",
    *,
    macro_f1: float = 0.7,
    own: float | None = 0.9,
    high: float | None = None,
    ece: float = 0.1,
    taken_out: int = 2,
    obstacle: str | None = None,
    reason: str | None = None,
    run_id: str = "r1",
) -> ExternalMetrics:
    """The metrics of an external evaluation.

    Without `own` there is no comparison, and with a `reason` no score. The interval of the difference ends at `high`, else 0.1
    above the difference.
    """
    base = _external()
    assert base.scores is not None and isinstance(base.comparison, Comparison)
    calibration = base.scores.calibration
    assert calibration.after is not None
    errors = {
        "before": calibration.before.model_copy(update={"ece_equal_width": 0.5}),
        "after": calibration.after.model_copy(update={"ece_equal_width": ece}),
    }
    scores = {
        "macro_f1": macro_f1,
        "n_units": UNITS,
        "intervals": {**base.scores.intervals, "macro_f1": [macro_f1 - 0.1, macro_f1 + 0.1]},
        "calibration": calibration.model_copy(update=errors),
    }
    counts = {"taken_out": taken_out, "never_learnt": 0, "scored": PREDICTED - taken_out}
    changed = {
        "dataset": dataset, "trained_on": trained_on, "run_id": run_id, "reason": reason,
        "images": ImageCounts(predicted=PREDICTED, **counts),
        "taken_out": base.taken_out.model_copy(update={"obstacle": obstacle}),
        "scores": base.scores.model_copy(update=scores) if reason is None else None,
        "comparison": _compared(base.comparison, macro_f1, own, high),
    }  # fmt: skip
    if reason is not None:
        changed |= {"comparison": Unavailable(reason=reason), "recalibration": []}
    return base.model_copy(update=changed)


def _compared(
    base: Comparison, macro_f1: float, own: float | None, high: float | None
) -> Comparison | Unavailable:
    if own is None:
        return Unavailable(reason="there is no evaluation")
    change = macro_f1 - own
    interval = [change - 0.1, change + 0.1 if high is None else high]
    drop = Difference(own=own, external=macro_f1, difference=change, interval=interval)
    return base.model_copy(update={"measures": {**base.measures, "macro_f1": drop}})


@cache
def _external() -> ExternalMetrics:
    config = with_seed(ExternalConfig(bootstrap_resamples=100), 1)
    assert isinstance(config, ExternalConfig)
    own, other = (table_of(*made_up(n=60, k=3, seed=seed), CLASSES) for seed in (1, 2))
    carried = Carried(temperature=1.5, threshold=0.5, own=own)
    everything = np.ones(len(other), np.bool_)
    return ExternalMetrics(
        dataset="", run_id="", written_at_utc=WRITTEN, trained_on="", classes=CLASSES, common_classes=CLASSES,
        never_learnt=[], images=ImageCounts(predicted=60, taken_out=0, never_learnt=0, scored=60),
        taken_out=TakenOutCounts(by_reason=dict.fromkeys(REASONS, 0), obstacle=None, left_but_in_own_test=0),
        reason=None, out_of_distribution=flag_rates(other, everything, carried, CLASSES, config),
        rows=score_rows(other, everything, CLASSES, CLASSES, config),
        scores=full_scores(other, CLASSES, carried, config),
        comparison=compare_with_own(other, CLASSES, carried, config),
        recalibration=plan_recalibration(
            logits_of(other, CLASSES), labels_of(other), independent_units(other), [10, 50],
            temperature=1.5, resamples=20, seed=1,
        ),
        shift=Unavailable(reason="none"), prevalence=Unavailable(reason="none"),
        warnings=[ReaderWarning(level="amber", text="Only 9 are left.")],
    )  # fmt: skip
