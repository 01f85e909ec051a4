"""Paired comparison of two models on the same images: macro F1, and the interval of the difference over resamples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from brainmri_core.arrays import F64, I64
from brainmri_core.evaluation.bootstrap import group_weights, interval, weighted_metrics


def paired_macro_f1(
    labels: I64,
    ours: I64,
    theirs: I64,
    groups: Sequence[str],
    classes: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> tuple[float, float, list[float] | None]:
    """Compare two models' predictions on the same images.

    Parameters
    ----------
    labels, ours, theirs : numpy.ndarray
        int64 ``(N,)``: true class index, and the class index that each model predicts.
    groups : sequence of str
        Independent unit of each image (`assignment.independent_units`); units are resampled, not images.
    classes : sequence of str
        Class names by index.
    resamples, seed : int
        Of the bootstrap; both models are scored on the same draw.

    Returns
    -------
    ours, theirs : float
        Macro F1 over the classes that occur.
    difference : list of float or None
        95% interval of ours minus theirs; None where fewer than half of the resamples define it.
    """
    one, other = macro_f1_draws(labels, (ours, theirs), groups, classes, resamples=resamples, seed=seed)
    return float(one[0]), float(other[0]), interval(one[1:] - other[1:])


def macro_f1_draws(
    labels: I64,
    calls: Sequence[I64],
    groups: Sequence[str],
    classes: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> list[F64]:
    """Return macro F1 of several models on the same images and the same resamples of groups.

    Parameters
    ----------
    labels : numpy.ndarray
        True class indices, int64 ``(N,)``.
    calls : sequence of numpy.ndarray
        Predicted class indices of each model, int64 ``(N,)``.
    groups : sequence of str
        Group of each image; whole groups are resampled.
    classes : sequence of str
        Class names by index.
    resamples, seed : int
        Number and seed of the bootstrap resamples.

    Returns
    -------
    list of numpy.ndarray
        For each model macro F1 on all images, then on every resample: float64 ``(1 + resamples,)``.
    """
    number, drawn = group_weights(groups, resamples, seed)
    weights = np.concatenate([np.ones((1, drawn.shape[1]), np.float32), drawn])
    return [weighted_metrics(labels, called, number, weights, classes)["macro_f1"] for called in calls]
