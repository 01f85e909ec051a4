"""Calibration of the predicted probabilities, and temperature scaling.

Guo et al., On calibration of modern neural networks, ICML 2017; adaptive bins from Nguyen and O'Connor, EMNLP 2015.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import brier_score_loss

from brainmri_core.arrays import F64, I64, Floats, Indices, Mask

BINS = 15
_BOUNDS = (-3.0, 4.0)


def probabilities(logits: Floats, temperature: float = 1.0) -> F64:
    """Return class probabilities ``(N, K)`` float64 of logits ``(N, K)`` divided by a temperature."""
    return np.asarray(softmax(logits.astype(np.float64) / temperature, axis=1))


def nll(logits: Floats, labels: I64, temperature: float = 1.0) -> float:
    """Return the mean negative log-likelihood in nats; scikit-learn's ``log_loss`` would clip it at 36 nats."""
    log = log_softmax(logits.astype(np.float64) / temperature, axis=1)
    return float(-log[np.arange(len(labels)), labels].mean())


def fit_temperature(logits: Floats, labels: I64) -> float:
    """Find the temperature that minimises the negative log-likelihood, between e^-3 and e^4.

    Parameters
    ----------
    logits : numpy.ndarray
        Floating ``(N, K)``, of images that the model was not trained on.
    labels : numpy.ndarray
        int64 ``(N,)``, N of at least 1.
    """
    found = minimize_scalar(
        lambda log_t: nll(logits, labels, float(np.exp(log_t))), bounds=_BOUNDS, method="bounded"
    )
    return float(np.exp(found.x))


def brier(predicted: Floats, labels: I64) -> float:
    """Return the multi-class Brier score: mean squared distance to the one-hot truth, 0 to 2."""
    return float(
        brier_score_loss(labels, predicted, labels=np.arange(predicted.shape[1]), scale_by_half=False)
    )


def brier_terms(predicted: Floats, labels: I64) -> F64:
    """Return each image's squared distance to the one-hot truth, float64 ``(N,)``."""
    truth = np.eye(predicted.shape[1])[labels]
    return np.asarray(((predicted - truth) ** 2).sum(axis=1), np.float64)


def equal_width_bins(confidence: Floats, bins: int = BINS) -> Indices:
    """Return the bin of each confidence among bins of equal width on (0, 1]."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    return np.asarray(np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1))


def adaptive_bins(confidence: Floats, bins: int = BINS) -> Indices:
    """Return the bin of each confidence among bins of equal count; equal confidences share a bin."""
    edges = np.quantile(confidence, np.linspace(0.0, 1.0, min(bins, len(confidence)) + 1)[1:-1])
    return np.asarray(np.searchsorted(np.unique(edges), confidence, side="left"))


def expected_calibration_error(confidence: Floats, correct: Mask, bins: Indices) -> float:
    """Return the expected calibration error: the mean gap between confidence and accuracy, weighted by images."""
    gaps = np.bincount(bins, weights=correct.astype(np.float64) - confidence)
    return float(np.abs(gaps).sum() / len(confidence))


def reliability(confidence: Floats, correct: Mask, bins: Indices) -> list[dict[str, float]]:
    """Return, for each bin that holds an image, mean confidence, accuracy and number of images."""
    rows = []
    for index in np.unique(bins):
        inside = bins == index
        rows.append(
            {
                "confidence": float(confidence[inside].mean()),
                "accuracy": float(correct[inside].mean()),
                "images": int(inside.sum()),
            }
        )
    return rows


def calibration_scores(logits: Floats, labels: I64, temperature: float = 1.0) -> dict[str, Any]:
    """Return Brier score, NLL and expected calibration error (equal-width and adaptive), with the reliability bins."""
    predicted = probabilities(logits, temperature)
    confidence, correct = predicted.max(axis=1), predicted.argmax(axis=1) == labels
    width, adaptive = equal_width_bins(confidence), adaptive_bins(confidence)
    return {
        "brier": brier(predicted, labels),
        "nll": nll(logits, labels, temperature),
        "ece_equal_width": expected_calibration_error(confidence, correct, width),
        "ece_adaptive": expected_calibration_error(confidence, correct, adaptive),
        "mean_confidence": float(confidence.mean()),
        "reliability": reliability(confidence, correct, width),
    }
