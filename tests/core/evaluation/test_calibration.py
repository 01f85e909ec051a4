from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from brainmri_core.evaluation.calibration import (
    adaptive_bins,
    brier,
    brier_terms,
    calibration_scores,
    equal_width_bins,
    expected_calibration_error,
    fit_temperature,
    nll,
    probabilities,
    reliability,
)
from brainmri_core.evaluation.metrics_file import MIN_VALIDATION, calibrate
from tests.core.evaluation.metrics_case import CLASSES, table_of


def honest(n: int, seed: int, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the very distribution the labels are drawn from."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, k))
    shares = probabilities(logits)
    labels = (shares.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return labels.astype(np.int64), logits


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_that_was_put_in_comes_out(temperature: float) -> None:
    labels, logits = honest(6000, 1)
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.06)


def test_the_temperature_minimises_the_likelihood_scikit_learn_measures() -> None:
    labels, logits = honest(300, 2)
    logits = logits * 3
    best = fit_temperature(logits, labels)
    at = {
        t: log_loss(labels, probabilities(logits, t), labels=[0, 1, 2])
        for t in (best, best * 0.97, best * 1.03)
    }
    assert min(at, key=at.__getitem__) == best


def test_a_temperature_stays_finite_where_likelihood_has_no_minimum() -> None:
    labels = np.arange(30) % 3
    assert fit_temperature(np.eye(3)[labels], labels) == pytest.approx(np.exp(-3), rel=0.01)
    assert fit_temperature(np.eye(3)[(labels + 1) % 3], labels) == pytest.approx(np.exp(4), rel=0.01)


def test_scaling_corrects_an_overconfident_model_and_changes_no_prediction() -> None:
    (labels, logits), (other_labels, other) = honest(3000, 3), honest(3000, 4)
    temperature = fit_temperature(other * 4, other_labels)
    before, after = (
        calibration_scores(logits * 4, labels),
        calibration_scores(logits * 4, labels, temperature),
    )
    assert before["ece_equal_width"] > 0.1 > 0.04 > after["ece_equal_width"]
    assert before["ece_adaptive"] > 0.1 > 0.04 > after["ece_adaptive"]
    assert after["nll"] < before["nll"]
    assert after["brier"] < before["brier"]
    same = probabilities(logits * 4, temperature).argmax(axis=1) == logits.argmax(axis=1)
    assert same.all()


def test_brier_and_likelihood_by_hand_and_against_scikit_learn() -> None:
    shares = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    labels = np.array([0, 1])
    expected = ((0.3**2 + 0.2**2 + 0.1**2) + (0.1**2 + 0.7**2 + 0.6**2)) / 2
    assert brier(shares, labels) == pytest.approx(expected)
    assert nll(np.log(shares), labels) == pytest.approx(-(np.log(0.7) + np.log(0.3)) / 2)
    labels, logits = honest(200, 5, k=4)
    shares = probabilities(logits)
    assert nll(logits, labels) == pytest.approx(log_loss(labels, shares, labels=range(4)))
    assert brier_terms(shares, labels).mean() == pytest.approx(
        brier_score_loss(labels, shares, labels=range(4), scale_by_half=False)
    )
    assert brier(shares[labels < 3], labels[labels < 3]) == pytest.approx(
        brier_terms(shares, labels)[labels < 3].mean()
    )


def test_two_classes_have_the_same_brier_score_as_any_number() -> None:
    shares, labels = np.array([[0.8, 0.2], [0.4, 0.6]]), np.array([0, 0])
    assert brier(shares, labels) == pytest.approx((2 * 0.2**2 + 2 * 0.6**2) / 2)


def test_a_saturated_wrong_answer_keeps_its_full_cost() -> None:
    assert nll(np.array([[1000.0, 0.0]]), np.array([1])) == pytest.approx(1000.0)


def test_calibration_error_by_hand_in_both_kinds_of_bins() -> None:
    # equal width, 5 bins: (.2, .4] holds two, (.8, 1] holds four
    confidence = np.array([0.3, 0.4, 0.85, 0.9, 0.95, 1.0])
    correct = np.array([True, False, True, True, False, True])
    width = equal_width_bins(confidence, 5)
    assert width.tolist() == [1, 1, 4, 4, 4, 4]
    gaps = abs(1 - 0.7) + abs(3 - 3.7)
    assert expected_calibration_error(confidence, correct, width) == pytest.approx(gaps / 6)
    # adaptive, 3 bins of two images each
    adaptive = adaptive_bins(confidence, 3)
    assert np.bincount(adaptive).tolist() == [2, 2, 2]
    gaps = abs(1 - 0.7) + abs(2 - 1.75) + abs(1 - 1.95)
    assert expected_calibration_error(confidence, correct, adaptive) == pytest.approx(gaps / 6)


def test_bins_at_their_edges_and_with_equal_confidences() -> None:
    assert equal_width_bins(np.array([0.0, 0.5, 0.5000001, 1.0]), 2).tolist() == [0, 0, 1, 1]
    assert len(set(adaptive_bins(np.full(40, 0.7), 15).tolist())) == 1
    assert adaptive_bins(np.array([0.5]), 15).tolist() == [0]
    many = adaptive_bins(np.random.default_rng(0).random(1500), 15)
    assert set(np.bincount(many).tolist()) == {100}


def test_the_reliability_curve_is_scikit_learns() -> None:
    rng = np.random.default_rng(6)
    confidence = rng.uniform(0.25, 1, 500)
    correct = rng.random(500) < confidence**2
    rows = reliability(confidence, correct, equal_width_bins(confidence, 10))
    accuracy, mean = calibration_curve(correct, confidence, n_bins=10)
    assert [row["accuracy"] for row in rows] == pytest.approx(accuracy.tolist())
    assert [row["confidence"] for row in rows] == pytest.approx(mean.tolist())
    assert sum(row["images"] for row in rows) == 500


def test_a_sure_and_always_right_model_has_no_error() -> None:
    scores = calibration_scores(np.eye(3)[[0, 1, 2]] * 100, np.array([0, 1, 2]))
    assert scores["ece_equal_width"] == pytest.approx(0)
    assert scores["brier"] == pytest.approx(0)
    assert scores["nll"] == pytest.approx(0)


def test_the_temperature_comes_from_validation_rows_alone() -> None:
    import pandas as pd

    labels, logits = honest(MIN_VALIDATION + 20, 7)
    wrong = (labels + 1) % 3
    test, validation = table_of(wrong, logits, CLASSES), table_of(labels, logits * 2, CLASSES, "validation")
    found = calibrate(pd.concat([test, validation], ignore_index=True), CLASSES)
    assert found.temperature == pytest.approx(fit_temperature((logits * 2).astype(np.float32), labels))
    assert found.n_validation == MIN_VALIDATION + 20
    few = pd.concat([test, validation.head(MIN_VALIDATION - 1)], ignore_index=True)
    assert calibrate(few, CLASSES).temperature is None
    assert "19 validation images" in str(calibrate(few, CLASSES).reason)
