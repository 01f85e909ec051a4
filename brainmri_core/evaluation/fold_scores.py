"""Scores of out-of-fold predictions: of one fold, and of all folds together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from brainmri_core.arrays import F64
from brainmri_core.evaluation.bootstrap import bootstrap_metrics, group_weights, interval
from brainmri_core.evaluation.cross_validation_schema import FoldScores, PooledScores
from brainmri_core.evaluation.metrics import classification_metrics
from brainmri_core.splitting.assignment import independent_units

HEADLINE = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc")


def probabilities_of(table: pd.DataFrame, classes: Sequence[str]) -> F64:
    """Return the probabilities of a table of predictions: float64 ``(N, K)``."""
    return np.asarray(table[[f"prob_{name}" for name in classes]], np.float64)


def scores_of(table: pd.DataFrame, classes: Sequence[str]) -> FoldScores:
    """Score the predictions of one fold."""
    scored = classification_metrics(
        table["class_index"].to_numpy(np.int64), probabilities_of(table, classes), classes
    )
    return FoldScores(images=len(table), **{name: scored[name] for name in HEADLINE})


def pooled_scores(table: pd.DataFrame, classes: Sequence[str], resamples: int, seed: int) -> PooledScores:
    """Score pooled predictions, with 95% intervals over independent units.

    Parameters
    ----------
    table : pandas.DataFrame
        class_index, group, ``prob_<class>`` and, where known, patient.
    classes : sequence of str
        K class names.
    resamples, seed : int
        Of the bootstrap; 0 resamples give no intervals.
    """
    labels, predicted = table["class_index"].to_numpy(np.int64), probabilities_of(table, classes)
    scored = classification_metrics(labels, predicted, classes) | {"classes": list(classes)}
    if not resamples:
        return PooledScores(**scored)
    number, weights = group_weights(independent_units(table), resamples, seed)
    logits = np.log(np.clip(predicted, 1e-12, None))
    drawn = bootstrap_metrics(labels, logits, number, weights, classes)
    return PooledScores(
        **scored,
        n_units=weights.shape[1],
        intervals={name: interval(drawn[name]) for name in HEADLINE if name in drawn},
    )
