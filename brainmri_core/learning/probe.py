"""The probe: a regularised linear classifier on frozen features, fitted in seconds."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score

from brainmri_core.arrays import F32, F64, I64

# Inverse strengths of the penalty to try, strongest penalty first.
STRENGTHS = tuple(float(value) for value in np.logspace(-5, 0, 11))
_TOLERANCE, _ITERATIONS = 1e-6, 1000


@dataclass(frozen=True)
class Probe:
    """A linear classifier of raw features; their standardisation is folded into its weights.

    Attributes
    ----------
    weight : numpy.ndarray
        float64 ``(K, D)``.
    bias : numpy.ndarray
        float64 ``(K,)``.
    strength : float
        Inverse strength of the penalty, scikit-learn's ``C``.
    train_loss, val_loss : float
        Mean cross-entropy.
    val_macro_f1, val_balanced_accuracy : float
        On the validation rows.
    """

    weight: F64
    bias: F64
    strength: float
    train_loss: float
    val_loss: float
    val_macro_f1: float
    val_balanced_accuracy: float

    def logits(self, features: F32) -> F64:
        """Return the logits ``(N, K)`` of features ``(N, D)``."""
        result: F64 = features.astype(np.float64) @ self.weight.T + self.bias
        return result


def fit_probe(features: F32, labels: I64, train: I64, val: I64, *, classes: int, balanced: bool) -> Probe:
    """Fit a multinomial logistic regression with an L2 penalty, whose strength the validation rows choose.

    Parameters
    ----------
    features : numpy.ndarray
        float32 ``(N, D)``.
    labels : numpy.ndarray
        int64 ``(N,)``.
    train, val : numpy.ndarray
        int64 rows; every class must have some in `train`.
    classes : int
        Number of classes K.
    balanced : bool
        Weigh images by inverse class frequency, in the fit and in the choice of the penalty.

    Returns
    -------
    Probe
        With the penalty of least cross-entropy on the validation rows. Cross-entropy depends on all images; macro F1 would
        depend on the few at the border between two classes.
    """
    mean, scale = _standard(features[train])
    seen = (features[train] - mean) / scale
    counts = np.bincount(labels[train], minlength=classes)
    importance = (1.0 / counts if balanced else np.ones(classes))[labels]
    model = LogisticRegression(
        C=STRENGTHS[0],
        class_weight="balanced" if balanced else None,
        warm_start=True,
        tol=_TOLERANCE,
        max_iter=_ITERATIONS,
    )
    best: tuple[float, Probe] | None = None
    worse = 0
    for strength in STRENGTHS:
        model.set_params(C=strength)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # further steps would not change the predictions
            model.fit(seen, labels[train])
        weight, bias = _both_sides(model)
        found = _scored(
            weight / scale, bias - (weight / scale) @ mean, strength, features, labels, train, val
        )
        loss = _loss(found.logits(features[val]), labels[val], importance[val])
        if best is None or loss < best[0]:
            best, worse = (loss, found), 0
            continue
        worse += 1
        if worse == 2:
            break  # weaker penalties overfit more, and take the longest
    assert best is not None
    return best[1]


def _standard(features: F32) -> tuple[F64, F64]:
    """Return mean and standard deviation of each feature, 1 where it never varies."""
    values = features.astype(np.float64)
    scale = values.std(axis=0)
    return values.mean(axis=0), np.where(scale > 1e-12, scale, 1.0)


def _both_sides(model: LogisticRegression) -> tuple[F64, F64]:
    """Return weights and biases of each class; for two classes scikit-learn has only those of the second."""
    weight, bias = model.coef_, model.intercept_
    if len(weight) > 1:
        return weight, bias
    return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2


def _loss(logits: F64, labels: I64, importance: F64) -> float:
    losses = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    return float(np.average(losses, weights=importance))


def _scored(
    weight: F64, bias: F64, strength: float, features: F32, labels: I64, train: I64, val: I64
) -> Probe:
    logits = features[val].astype(np.float64) @ weight.T + bias
    called, truth = logits.argmax(axis=1), labels[val]
    on_train = features[train].astype(np.float64) @ weight.T + bias
    return Probe(
        weight=weight,
        bias=bias,
        strength=strength,
        train_loss=_loss(on_train, labels[train], np.ones(len(train))),
        val_loss=_loss(logits, truth, np.ones(len(val))),
        val_macro_f1=float(
            f1_score(truth, called, average="macro", labels=range(len(bias)), zero_division=0)
        ),
        val_balanced_accuracy=float(balanced_accuracy_score(truth, called)),
    )
