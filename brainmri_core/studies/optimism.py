"""By how much the best of several trials looks too good, because it is the best on the images it was chosen by."""

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
    """Return by how much the greatest out-of-fold macro F1 of several trials is too high.

    The trials are chosen anew on each resample of patients or groups, and the chosen one is scored on those that the resample
    left out (bootstrap bias corrected cross-validation, Tsamardinos et al., Machine Learning 2018). The mean by which it
    falls behind the trial that is best on all images, scored on the same ones, is what choosing has added.

    Parameters
    ----------
    labels : numpy.ndarray
        int64 ``(N,)``.
    calls : sequence of numpy.ndarray
        int64 ``(N,)`` for each trial: the class index that it calls out of fold.
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
