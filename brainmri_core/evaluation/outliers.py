"""Outliers: how unlike the validation images an image is, by the model's embeddings.

The score is the Mahalanobis distance to the nearest class mean of the embeddings (Lee et al., A simple unified framework for
detecting out-of-distribution samples, NeurIPS 2018), with a shrunk covariance (Ledoit and Wolf, JMVA 2004).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brainmri_core.arrays import F32, F64, I64
from brainmri_core.splitting.assignment import assign_folds

FLAGGED_SHARE = 0.01
MIN_IMAGES = 20
_FOLDS = 5


@dataclass(frozen=True)
class OutlierModel:
    """Class means and whitening of the embeddings, and the score above which an image is flagged.

    Attributes
    ----------
    means : numpy.ndarray
        float32 ``(C, D)``: whitened means of the classes that have images.
    whitening : numpy.ndarray
        float32 ``(D, D)``: whitening matrix.
    threshold : float
        The share `FLAGGED_SHARE` of the images it was fitted on exceed it, each scored by a fit without its group.
    """

    means: F32
    whitening: F32
    threshold: float

    def score(self, embeddings: F32) -> F64:
        """Return the distance ``(N,)`` of embeddings ``(N, D)`` to the nearest class mean, in standard deviations."""
        return _distance(embeddings, self.means, self.whitening)


def fit_outliers(embeddings: F32, labels: I64, groups: Sequence[str], seed: int) -> OutlierModel | None:
    """Fit the outlier score on validation images; see `fit_with_scores`."""
    fitted = fit_with_scores(embeddings, labels, groups, seed)
    return None if fitted is None else fitted[0]


def fit_with_scores(
    embeddings: F32, labels: I64, groups: Sequence[str], seed: int
) -> tuple[OutlierModel, F64] | None:
    """Fit the outlier score, and score each image by a fit without its group.

    Parameters
    ----------
    embeddings : numpy.ndarray
        float32 ``(N, D)``.
    labels : numpy.ndarray
        int64 ``(N,)``.
    groups : sequence of str
        Independent unit of each image; a unit is never divided between folds.
    seed : int
        Seed of the folds.

    Returns
    -------
    tuple of OutlierModel and numpy.ndarray, or None
        The scores are float64 ``(N,)``. None where there are fewer than `MIN_IMAGES` images or two groups.
    """
    if len(embeddings) < MIN_IMAGES or len(set(groups)) < 2:
        return None
    fold = assign_folds(groups, labels, _FOLDS, seed)
    held_out = np.zeros(len(embeddings))
    for index in np.unique(fold):
        inside = fold == index
        if inside.all():
            return None
        held_out[inside] = _distance(embeddings[inside], *_fit(embeddings[~inside], labels[~inside]))
    threshold = float(np.quantile(held_out, 1 - FLAGGED_SHARE, method="higher"))
    return OutlierModel(*_fit(embeddings, labels), threshold), held_out


def _fit(embeddings: F32, labels: I64) -> tuple[F32, F32]:
    from sklearn.covariance import ledoit_wolf

    values = embeddings.astype(np.float64)
    present = np.unique(labels)
    means = np.stack([values[labels == index].mean(axis=0) for index in present])
    centred = values - means[np.searchsorted(present, labels)]
    covariance, _ = ledoit_wolf(centred, assume_centered=True)
    variance, directions = np.linalg.eigh(covariance)
    # In a direction without variance every rounding error would be an outlier.
    floor = max(float(variance.max()) * 1e-6, 1e-12)
    whitening = directions / np.sqrt(np.maximum(variance, floor))
    return (means @ whitening).astype(np.float32), whitening.astype(np.float32)


def _distance(embeddings: F32, means: F32, whitening: F32) -> F64:
    white, centres = embeddings.astype(np.float64) @ whitening.astype(np.float64), means.astype(np.float64)
    squared = (white**2).sum(axis=1)[:, None] - 2 * white @ centres.T + (centres**2).sum(axis=1)
    distance: F64 = np.sqrt(np.maximum(squared.min(axis=1), 0.0) / whitening.shape[1])
    return distance
