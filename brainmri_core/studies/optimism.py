"""The optimism of the best of several trials, whose score is on the images that selected it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from brainmri_core.arrays import I64
from brainmri_core.evaluation.bootstrap import group_weights, weighted_metrics


def optimism_of_best(
    labels: I64,
    calls: Sequence[I64],
    groups: Sequence[str],
    classes: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> float:
    """Return by how much the best out-of-fold macro F1 of several trials is too high.

    On each bootstrap resample of patients or groups the best trial is selected again, and scored on the groups that are not
    in the resample (bootstrap bias corrected cross-validation, Tsamardinos et al., Machine Learning 2018). The optimism is
    the mean difference between the score of the trial that is best on all images and that score, on the same groups.

    Parameters
    ----------
    labels : numpy.ndarray
        int64 ``(N,)``.
    calls : sequence of numpy.ndarray
        int64 ``(N,)`` for each trial: its out-of-fold predictions as class indices.
    groups : sequence of str
        Independent unit of each image.
    classes : sequence of str
        Class names by index.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    float
        At least 0; 0 for a single trial.
    """
    number, weights = group_weights(groups, resamples, seed)
    drawn = weights.astype(np.float64)
    everything = np.ones((1, drawn.shape[1]))
    chosen_by, scored_on, whole = (
        np.stack([weighted_metrics(labels, call, number, part, classes)["macro_f1"] for call in calls])
        for part in (drawn, (drawn == 0).astype(np.float64), everything)
    )
    defined = np.isfinite(chosen_by).all(axis=0) & np.isfinite(scored_on).all(axis=0)
    if not defined.any():
        return 0.0
    chosen_by, scored_on = chosen_by[:, defined], scored_on[:, defined]
    best, columns = int(whole[:, 0].argmax()), np.arange(scored_on.shape[1])
    gained = scored_on[best] - scored_on[chosen_by.argmax(axis=0), columns]
    return max(0.0, float(gained.mean()))
