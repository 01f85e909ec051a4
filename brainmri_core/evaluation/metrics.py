"""Metrics of a classification with class probabilities, as a JSON-ready mapping; undefined values are null with a reason.

The implementations are scikit-learn's where it has them. The selection follows Metrics Reloaded (Maier-Hein et al., Nature
Methods 2024) and CLAIM 2024 (Tejani et al., Radiology: AI 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

from brainmri_core.arrays import I64, Floats, Indices
from brainmri_core.errors import DataError

SPECIFICITIES = (0.90, 0.95, 0.99)
_UNDEFINED = {
    "precision": "the class was never predicted",
    "ppv": "the class was never predicted",
    "npv": "no other class was ever predicted",
    "specificity": "there is no image of another class",
    "auroc": "there is no image of another class",
    "average_precision": "there is no image of another class",
}
_NO_TUMOUR = ("notumor", "no_tumor", "normal", "healthy")


def brief_metrics(labels: I64, probabilities: Floats, classes: Sequence[str]) -> dict[str, Any]:
    """Score predicted class probabilities by a few metrics, for the many subsets and baselines of an evaluation.

    Returns
    -------
    dict
        accuracy, balanced_accuracy, macro_f1, macro_auroc, ``support`` by class and ``reasons``, as in
        `classification_metrics`.
    """
    predicted, present = probabilities.argmax(axis=1), np.unique(labels)
    reasons: dict[str, str] = {}
    areas = {
        classes[index]: {"auroc": float(roc_auc_score(labels == index, probabilities[:, index]))}
        for index in (present if len(present) > 1 else ())
    }
    counts = np.bincount(labels, minlength=len(classes))
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        **_macro(labels, predicted, present),
        "macro_auroc": _mean_of(areas, "auroc", "macro_auroc", reasons),
        "support": dict(zip(classes, counts.tolist(), strict=True)),
        "reasons": reasons,
    }


def _macro(labels: I64, predicted: Indices, present: I64) -> dict[str, float]:
    _, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=present, average="macro", zero_division=0.0
    )
    return {"balanced_accuracy": float(recall), "macro_f1": float(f1)}


def classification_metrics(labels: I64, probabilities: Floats, classes: Sequence[str]) -> dict[str, Any]:
    """Score predicted class probabilities.

    Parameters
    ----------
    labels : numpy.ndarray
        int64 ``(N,)`` true class indices, N of at least 1.
    probabilities : numpy.ndarray
        Floating ``(N, K)``, rows summing to one; the class with the largest value is predicted, the first of equal ones.
    classes : sequence of str
        K class names by index.

    Returns
    -------
    dict
        ``n_images``, accuracy, balanced_accuracy, macro_f1, weighted_f1, mcc, cohen_kappa, macro_auroc,
        macro_average_precision, ``per_class`` (precision, recall, f1, support, sensitivity, specificity, ppv, npv,
        auroc, average_precision), ``confusion_matrix`` (rows truth, columns prediction) and ``reasons`` (dotted name of
        each null value to why it is null). Macro averages are over the classes that occur in `labels`.

    Raises
    ------
    DataError
        If there is no image, or a probability is not finite.
    """
    if not len(labels):
        raise DataError("There is no image to score; the test split is empty.")
    if not np.isfinite(probabilities).all():
        raise DataError(
            "A predicted probability is not a finite number; the checkpoint is damaged, train again."
        )
    k = len(classes)
    predicted = probabilities.argmax(axis=1)
    reasons: dict[str, str] = {}
    present = np.unique(labels)
    matrix = confusion_matrix(labels, predicted, labels=np.arange(k))
    per_class = _per_class(labels, predicted, probabilities, matrix, classes, reasons)
    result: dict[str, Any] = {
        "n_images": len(labels),
        "accuracy": float(accuracy_score(labels, predicted)),
        **_macro(labels, predicted, present),
        "weighted_f1": float(
            f1_score(labels, predicted, labels=present, average="weighted", zero_division=0.0)
        ),
        "mcc": _correlation(matthews_corrcoef, labels, predicted, "mcc", reasons),
        "cohen_kappa": _correlation(cohen_kappa_score, labels, predicted, "cohen_kappa", reasons),
        "macro_auroc": _mean_of(per_class, "auroc", "macro_auroc", reasons),
        "macro_average_precision": _mean_of(
            per_class, "average_precision", "macro_average_precision", reasons
        ),
        "per_class": per_class,
        "confusion_matrix": matrix.tolist(),
    }
    return result | {"reasons": reasons}


def _correlation(
    score: Callable[[I64, Indices], float],
    labels: I64,
    predicted: Indices,
    name: str,
    reasons: dict[str, str],
) -> float | None:
    """Return a chance-corrected agreement; None where a constant truth or prediction leaves it undefined."""
    if len(np.unique(labels)) < 2 or (name == "mcc" and len(np.unique(predicted)) < 2):
        reasons[name] = "undefined where the truth or the prediction is a single class"
        return None
    return float(score(labels, predicted))


def _mean_of(
    per_class: dict[str, dict[str, Any]], key: str, name: str, reasons: dict[str, str]
) -> float | None:
    values = [item[key] for item in per_class.values() if item[key] is not None]
    if not values:
        reasons[name] = "no class has both images of its own and images of others"
        return None
    return float(np.mean(values))


def _per_class(
    labels: I64,
    predicted: Indices,
    probabilities: Floats,
    matrix: I64,
    classes: Sequence[str],
    reasons: dict[str, str],
) -> dict[str, dict[str, Any]]:
    k = len(classes)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=np.arange(k), zero_division=0.0
    )
    result: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(classes):
        truth = labels == index
        hits = int(matrix[index, index])
        missed = int(matrix[index].sum()) - hits
        false = int(matrix[:, index].sum()) - hits
        rest = len(labels) - hits - missed - false
        absent = not support[index]
        ppv = float(precision[index]) if hits + false else None
        both = truth.any() and not truth.all()
        item = {
            "precision": ppv if not absent else None,
            "recall": None if absent else float(recall[index]),
            "f1": None if absent else float(f1[index]),
            "support": int(support[index]),
            "sensitivity": None if absent else float(recall[index]),
            "specificity": rest / (rest + false) if rest + false else None,
            "ppv": ppv if not absent else None,
            "npv": rest / (rest + missed) if rest + missed else None,
            "auroc": float(roc_auc_score(truth, probabilities[:, index])) if both else None,
            "average_precision": (
                float(average_precision_score(truth, probabilities[:, index])) if both else None
            ),
        }
        result[name] = item
        if absent:
            reasons[f"per_class.{name}"] = "the class has no image here; macro averages leave it out"
        else:
            reasons |= {
                f"per_class.{name}.{key}": _UNDEFINED[key] for key, value in item.items() if value is None
            }
    return result


def no_tumour_index(classes: Sequence[str]) -> int | None:
    """Return the index of the class without a tumour, or None if the classes have no such name."""
    return next((index for index, name in enumerate(classes) if name.casefold() in _NO_TUMOUR), None)


def tumour_versus_none(
    labels: I64, probabilities: Floats, classes: Sequence[str], specificities: Sequence[float] = SPECIFICITIES
) -> dict[str, Any]:
    """Score the detection of any tumour, by the summed probability of the tumour classes.

    Parameters
    ----------
    labels, probabilities, classes
        As in `classification_metrics`.
    specificities : sequence of float
        Specificities at which the sensitivity is read from the ROC curve.

    Returns
    -------
    dict
        Scores of the model's own decision (the most probable class), AUROC, average precision,
        ``sensitivity_at_specificity``, and the ``reasons`` of null values; or only ``reason`` where there is nothing to
        distinguish.
    """
    none = no_tumour_index(classes)
    if none is None:
        return {"reason": f"none of the classes ({', '.join(classes)}) stands for no tumour"}
    truth = labels != none
    if truth.all() or not truth.any():
        return {"reason": "these images are all with, or all without, a tumour"}
    called = probabilities.argmax(axis=1) != none
    score = 1.0 - probabilities[:, none].astype(np.float64)
    tn, fp, fn, tp = confusion_matrix(truth, called, labels=[False, True]).ravel().tolist()
    false_rate, true_rate, thresholds = roc_curve(truth, score, drop_intermediate=False)
    return {
        "n_tumour": int(truth.sum()),
        "n_none": int((~truth).sum()),
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "ppv": tp / (tp + fp) if tp + fp else None,
        "npv": tn / (tn + fn) if tn + fn else None,
        "auroc": float(roc_auc_score(truth, score)),
        "average_precision": float(average_precision_score(truth, score)),
        "confusion_matrix": [[tn, fp], [fn, tp]],
        "sensitivity_at_specificity": [
            _operating_point(false_rate, true_rate, thresholds, wanted) for wanted in specificities
        ],
        "reasons": {
            name: f"{which} was ever called"
            for name, which, called_so in (
                ("ppv", "no tumour", tp + fp),
                ("npv", "nothing but tumours", tn + fn),
            )
            if not called_so
        },
    }


def _operating_point(
    false_rate: Floats, true_rate: Floats, thresholds: Floats, wanted: float
) -> dict[str, Any]:
    """Return the operating point of largest sensitivity at a specificity of at least `wanted`."""
    allowed = np.flatnonzero(false_rate <= 1.0 - wanted + 1e-12)
    best = int(allowed[true_rate[allowed].argmax()])
    threshold = float(thresholds[best])
    return {
        "specificity_wanted": wanted,
        "specificity": float(1.0 - false_rate[best]),
        "sensitivity": float(true_rate[best]),
        "threshold": threshold if math.isfinite(threshold) else None,
        **({} if math.isfinite(threshold) else {"reason": "only calling no tumour at all is that specific"}),
    }
