"""95% intervals by a cluster bootstrap: patients or groups are resampled, not images.

Images of one patient or group are not independent (Field and Welsh, JRSS B 2007). All resamples are computed at once as
weighted sums over groups, so that 2,000 of them take seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from brainmri_core.arrays import F32, F64, I64, Floats, Mask
from brainmri_core.evaluation.calibration import BINS, brier_terms, equal_width_bins, probabilities
from brainmri_core.evaluation.metrics import no_tumour_index

LEVEL = 0.95
UNDEFINED = "undefined in half of the resamples"
_CHUNK_VALUES = 16_000_000


def group_weights(groups: Sequence[str], resamples: int, seed: int) -> tuple[I64, F32]:
    """Draw groups with replacement.

    Parameters
    ----------
    groups : sequence of str
        Independent unit of each of N images (`assignment.independent_units`), here called a group.
    resamples : int
        Number of resamples R.
    seed : int
        Seed of the draw. The same groups and seed give the same draw, so that two models can be compared on it.

    Returns
    -------
    number : numpy.ndarray
        int64 ``(N,)``: index of each image's group among the sorted names.
    weights : numpy.ndarray
        float32 ``(R, G)``: how often each group was drawn.
    """
    names, number = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    rng = np.random.default_rng([seed, 0xB007])
    drawn = rng.integers(0, len(names), (resamples, len(names)))
    flat = drawn + np.arange(resamples)[:, None] * len(names)
    counts = np.bincount(flat.ravel(), minlength=resamples * len(names)).reshape(resamples, len(names))
    return np.asarray(number, np.int64), counts.astype(np.float32)


def bootstrap_metrics(
    labels: I64, logits: Floats, number: I64, weights: F32, classes: Sequence[str]
) -> dict[str, F64]:
    """Compute the metrics of every resample.

    Parameters
    ----------
    labels : numpy.ndarray
        int64 ``(N,)``.
    logits : numpy.ndarray
        Floating ``(N, K)``.
    number, weights : numpy.ndarray
        From `group_weights`.
    classes : sequence of str
        K class names.

    Returns
    -------
    dict
        Dotted metric name, as in ``metrics.json``, to float64 ``(R,)``; NaN where a resample leaves it undefined.
    """
    predicted = probabilities(logits)
    values = weighted_metrics(labels, predicted.argmax(axis=1), number, weights, classes)
    values |= proper_scores(labels, logits, predicted, number, weights)
    values |= _ranking(labels, predicted, number, weights, classes)
    return values


def weighted_metrics(
    labels: I64, called: I64, number: I64, weights: Floats, classes: Sequence[str]
) -> dict[str, F64]:
    """Compute the metrics that follow from the confusion matrix, for each row of group weights.

    Parameters
    ----------
    labels, called : numpy.ndarray
        int64 ``(N,)``: true and predicted class index.
    number : numpy.ndarray
        int64 ``(N,)``: index of each image's group, from `group_weights`.
    weights : numpy.ndarray
        Floating ``(R, G)``: weight of each group.
    classes : sequence of str
        K class names.

    Returns
    -------
    dict
        Dotted metric name to float64 ``(R,)``; NaN where a class of `labels` has no weight.
    """
    k = len(classes)
    cells = np.zeros((weights.shape[1], k * k))
    np.add.at(cells, (number, labels * k + called), 1.0)
    confusion = (weights.astype(np.float64) @ cells).reshape(-1, k, k)
    return confusion_metrics(confusion, classes, present=np.bincount(labels, minlength=k) > 0)


def confusion_metrics(confusion: F64, classes: Sequence[str], present: Mask) -> dict[str, F64]:
    """Compute the metrics that follow from R confusion matrices.

    Parameters
    ----------
    confusion : numpy.ndarray
        float64 ``(R, K, K)``, rows truth.
    classes : sequence of str
        K class names.
    present : numpy.ndarray
        bool ``(K,)``: classes that occur; macro averages are over these.

    Returns
    -------
    dict
        Dotted metric name to float64 ``(R,)``.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        total = confusion.sum(axis=(1, 2))
        truth, called = confusion.sum(axis=2), confusion.sum(axis=1)
        hits = np.diagonal(confusion, axis1=1, axis2=2)
        recall, precision = hits / truth, hits / called
        f1 = np.where(truth > 0, 2 * hits / (truth + called), np.nan)
        rest = total[:, None] - truth - called + hits
        specificity, npv = rest / (total[:, None] - truth), rest / (total[:, None] - called)
        agreement = hits.sum(axis=1) / total
        chance = (truth * called).sum(axis=1) / total**2
        spread = np.sqrt((1 - (truth**2).sum(axis=1) / total**2) * (1 - (called**2).sum(axis=1) / total**2))
        values = {
            "accuracy": agreement,
            "balanced_accuracy": recall[:, present].mean(axis=1),
            "macro_f1": f1[:, present].mean(axis=1),
            "weighted_f1": np.nansum(f1 * truth, axis=1) / total,
            "cohen_kappa": (agreement - chance) / (1 - chance),
            "mcc": (agreement - chance) / spread,
        }
        values |= _binary(confusion, classes)
    for index in np.flatnonzero(present).tolist():
        columns = {
            "precision": precision, "recall": recall, "f1": f1, "sensitivity": recall,
            "specificity": specificity, "ppv": precision, "npv": npv,
        }  # fmt: skip
        values |= {f"per_class.{classes[index]}.{key}": column[:, index] for key, column in columns.items()}
    return values


def _binary(confusion: F64, classes: Sequence[str]) -> dict[str, F64]:
    none = no_tumour_index(classes)
    if none is None:
        return {}
    total, without = confusion.sum(axis=(1, 2)), confusion[:, none].sum(axis=1)
    kept = confusion[:, none, none]
    missed = confusion[:, :, none].sum(axis=1) - kept
    return {
        "tumour_vs_none.sensitivity": 1 - missed / (total - without),
        "tumour_vs_none.specificity": kept / without,
    }


def proper_scores(labels: I64, logits: Floats, predicted: F64, number: I64, weights: F32) -> dict[str, F64]:
    """Compute Brier score, NLL and calibration error of every resample, named as those before temperature scaling.

    Parameters
    ----------
    labels, logits, number, weights
        As in `bootstrap_metrics`.
    predicted : numpy.ndarray
        float64 ``(N, K)``: the probabilities of the logits.
    """
    confidence, correct = predicted.max(axis=1), predicted.argmax(axis=1) == labels
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    terms = np.stack([np.ones(len(labels)), brier_terms(predicted, labels), losses], axis=1)
    sums = np.zeros((weights.shape[1], 3 + BINS))
    np.add.at(sums[:, :3], number, terms)
    np.add.at(sums, (number, 3 + equal_width_bins(confidence)), correct - confidence)
    drawn = weights.astype(np.float64) @ sums
    return {
        "calibration.before.brier": drawn[:, 1] / drawn[:, 0],
        "calibration.before.nll": drawn[:, 2] / drawn[:, 0],
        "calibration.before.ece_equal_width": np.abs(drawn[:, 3:]).sum(axis=1) / drawn[:, 0],
    }


def _ranking(
    labels: I64, predicted: F64, number: I64, weights: F32, classes: Sequence[str]
) -> dict[str, F64]:
    auroc, precision = [], []
    values: dict[str, F64] = {}
    for index, name in enumerate(classes):
        truth = labels == index
        if truth.any() and not truth.all():
            area, average = weighted_ranking(truth, predicted[:, index], number, weights)
            values[f"per_class.{name}.auroc"] = area
            values[f"per_class.{name}.average_precision"] = average
            auroc.append(area)
            precision.append(average)
    if auroc:
        values["macro_auroc"] = np.mean(auroc, axis=0)
        values["macro_average_precision"] = np.mean(precision, axis=0)
    none = no_tumour_index(classes)
    if none is not None and len(np.unique(labels == none)) == 2:
        area, average = weighted_ranking(labels != none, 1.0 - predicted[:, none], number, weights)
        values["tumour_vs_none.auroc"], values["tumour_vs_none.average_precision"] = area, average
    return values


def weighted_ranking(truth: Mask, score: Floats, number: I64, weights: F32) -> tuple[F64, F64]:
    """Compute the area under the ROC curve and the average precision of every resample.

    Equals scikit-learn's ``roc_auc_score`` and ``average_precision_score`` with each image weighted by how often its
    group was drawn; ties count as there.

    Parameters
    ----------
    truth, score : numpy.ndarray
        ``(N,)``.
    number, weights : numpy.ndarray
        From `group_weights`.

    Returns
    -------
    auroc, average_precision : numpy.ndarray
        float64 ``(R,)``; NaN where a resample has only positives or only negatives.
    """
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    areas, averages = [], []
    for part in _chunks(weights, len(truth)):
        drawn = part[:, number[order]].astype(np.float64)
        hits = np.add.reduceat(drawn * truth[order], starts, axis=1)
        false = np.add.reduceat(drawn * ~truth[order], starts, axis=1)
        true_sum, false_sum = hits.cumsum(axis=1), false.cumsum(axis=1)
        positives, negatives = true_sum[:, -1], false_sum[:, -1]
        with np.errstate(divide="ignore", invalid="ignore"):
            above = false * (true_sum - hits / 2)
            areas.append(above.sum(axis=1) / (positives * negatives))
            found = true_sum + false_sum
            precision = np.divide(true_sum, found, out=np.zeros_like(found), where=found > 0)
            averages.append((hits * precision).sum(axis=1) / positives)
    return np.concatenate(areas), np.concatenate(averages)


def _chunks(weights: F32, images: int) -> Iterator[F32]:
    step = max(1, _CHUNK_VALUES // max(images, 1))
    for start in range(0, len(weights), step):
        yield weights[start : start + step]


def interval(values: F64, level: float = LEVEL) -> list[float] | None:
    """Return the percentile interval of the defined resamples; None where fewer than half are defined."""
    defined = values[np.isfinite(values)]
    if len(defined) * 2 <= len(values):
        return None
    tail = (1 - level) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return [float(low), float(high)]
