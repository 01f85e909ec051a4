"""Label shift: the class shares of unlabelled images, estimated from a model's predictions and its known confusions.

Black-box shift estimation (Lipton et al., Detecting and correcting for label shift with black box predictors, ICML 2018).
It assumes that the images of a class look the same in both sets and only their number differs. With other kinds of shift the
estimate is only a hint.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from brainmri_core.arrays import F64, I64
from brainmri_core.evaluation.bootstrap import LEVEL
from brainmri_core.evaluation.discrepancy import number_groups

RESAMPLES = 1000
MAX_CONDITION = 30.0
"""Condition number of the matrix of mean predictions above which there is no estimate, as errors would be magnified by it."""


class LabelShift(BaseModel):
    """Estimated shares of the classes among unlabelled images.

    Attributes
    ----------
    validation : dict
        Class to its share among the validation images.
    predicted : dict
        Class to its mean predicted probability on the unlabelled images, uncorrected.
    estimated : dict or None
        Class to its estimated share.
    intervals : dict
        Class to the 95% interval of its share, by a bootstrap over the groups of both sets; empty if fewer than half of
        the resamples can be solved, or one of the sets has a single group.
    condition : float or None
        Condition number of the matrix of mean predictions by class.
    reason : str or None
        Why there is no estimate; None if there is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: tuple[str, ...]
    validation: dict[str, float]
    predicted: dict[str, float]
    estimated: dict[str, float] | None
    intervals: dict[str, tuple[float, float]]
    condition: float | None
    reason: str | None = None


def estimate_label_shift(
    labels: I64,
    probabilities: F64,
    groups: Sequence[str],
    unlabelled: F64,
    unlabelled_groups: Sequence[str],
    classes: Sequence[str],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> LabelShift:
    """Estimate the class shares of unlabelled images.

    The validation images give the mean prediction on the images of each class. The estimated shares are those whose mixture
    of these means is closest to the mean prediction on the unlabelled images (non-negative least squares).

    Parameters
    ----------
    labels : numpy.ndarray
        int64 ``(N,)``, true classes of the validation images.
    probabilities, unlabelled : numpy.ndarray
        float64 ``(N, K)`` and ``(M, K)``, predicted by the same model with the same temperature.
    groups, unlabelled_groups : sequence of str
        Independent unit of each image.
    classes : sequence of str
        K class names by index.
    seed : int
        Seed of the resamples.
    resamples : int
        Number of bootstrap resamples.

    Returns
    -------
    LabelShift
        With a reason instead of an estimate where a class has no validation image, or the model confuses classes so much
        that their shares cannot be separated.
    """
    k = len(classes)
    counts = np.bincount(labels, minlength=k).astype(np.float64)
    absent = [name for name, count in zip(classes, counts, strict=True) if not count]
    known = {
        "classes": tuple(classes),
        "validation": _by_class(classes, counts / max(counts.sum(), 1.0)),
        "predicted": _by_class(classes, unlabelled.mean(axis=0) if len(unlabelled) else np.zeros(k)),
    }
    reason = "there are no images to estimate it for" if not len(unlabelled) else None
    if absent:
        reason = f"there are no validation images of {', '.join(absent)}"
    if reason is not None:
        return LabelShift(**known, estimated=None, intervals={}, condition=None, reason=reason)
    means = _class_means(_confusions(labels, probabilities, k).sum(axis=0)[None], k)[0]
    condition = float(np.linalg.cond(means))
    if not condition <= MAX_CONDITION:
        reason = (
            "the model confuses the classes too much to tell their shares apart: the condition number of its mean "
            f"predictions by class is {condition:.3g}, more than {MAX_CONDITION:g}"
        )
        return LabelShift(
            **known,
            estimated=None,
            intervals={},
            condition=condition if np.isfinite(condition) else None,
            reason=reason,
        )
    varied = min(len(set(groups)), len(set(unlabelled_groups))) > 1
    confusions = _resampled(_confusions(labels, probabilities, k), groups, resamples, seed)
    targets = _resampled(unlabelled, unlabelled_groups, resamples, seed + 1)
    targets /= targets.sum(axis=1, keepdims=True)  # each prediction sums to 1
    drawn_means = _class_means(confusions, k)
    drawn = [
        _shares(one, target)
        for one, target in zip(drawn_means, targets, strict=True)
        if np.isfinite(one).all() and np.linalg.cond(one) <= MAX_CONDITION
    ]
    return LabelShift(
        **known,
        estimated=_by_class(classes, _shares(means, unlabelled.mean(axis=0))),
        intervals=_intervals(np.stack(drawn), classes) if varied and len(drawn) * 2 > resamples else {},
        condition=condition,
    )


def _by_class(classes: Sequence[str], values: F64) -> dict[str, float]:
    return dict(zip(classes, values.tolist(), strict=True))


def _confusions(labels: I64, probabilities: F64, k: int) -> F64:
    """Return each image's prediction in the column of its class, flat: ``(N, K * K)``."""
    return np.asarray((probabilities[:, :, None] * np.eye(k)[labels][:, None, :]).reshape(-1, k * k))


def _class_means(confusions: F64, k: int) -> F64:
    """Return the mean prediction on the images of each class (last axis): ``(R, K, K)``; NaN for a class not drawn."""
    sums = confusions.reshape(-1, k, k)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: F64 = sums / sums.sum(axis=1, keepdims=True)
    return found


def _resampled(values: F64, groups: Sequence[str], resamples: int, seed: int) -> F64:
    """Return the sums ``(R, C)`` of values ``(N, C)`` over groups drawn with replacement."""
    number = number_groups(groups)
    by_group = np.zeros((int(number.max()) + 1, values.shape[1]))
    np.add.at(by_group, number, values)
    rng, count = np.random.default_rng([seed, 0x1AB5]), len(by_group)
    # One resample at a time: for 100,000 images all resamples together would fill the memory.
    return np.stack([by_group[rng.integers(0, count, count)].sum(axis=0) for _ in range(resamples)])


def _shares(means: F64, target: F64) -> F64:
    """Return the shares whose mixture of the class means ``(K, K)`` is closest to a mean prediction ``(K,)``."""
    from scipy.optimize import nnls

    found = np.asarray(nnls(means, target)[0], np.float64)
    total = found.sum()
    return found / total if total > 0 else np.full(len(found), 1 / len(found))


def _intervals(drawn: F64, classes: Sequence[str]) -> dict[str, tuple[float, float]]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {name: (float(low[index]), float(high[index])) for index, name in enumerate(classes)}
