from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from brainmri_core.evaluation.bootstrap import bootstrap_metrics, group_weights, interval, weighted_ranking
from brainmri_core.evaluation.calibration import calibration_scores, probabilities
from brainmri_core.evaluation.metrics import classification_metrics, tumour_versus_none

CLASSES = ["glioma", "meningioma", "notumor", "pituitary"]


def grouped(n: int = 90, seed: int = 3) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels, logits with many ties, and groups of one to five images, out of order."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    logits = rng.normal(0, 1, (n, 4)).round(0)
    logits[np.arange(n), labels] += 1
    groups = [f"g{number}" for number in rng.integers(0, n // 3, n)]
    return labels.astype(np.int64), logits.astype(np.float32), groups


def plain_loop(labels: np.ndarray, logits: np.ndarray, chosen: np.ndarray) -> dict[str, float | None]:
    """Score a resample the slow way: copy the drawn images and ask for the metrics of the copy."""
    labels, logits = labels[chosen], logits[chosen]
    shares = probabilities(logits)
    found = classification_metrics(labels, shares, CLASSES)
    values = {
        key: found[key]
        for key in ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "mcc", "cohen_kappa")
    }
    values |= {key: found[key] for key in ("macro_auroc", "macro_average_precision")}
    values |= {
        f"per_class.{c}.{key}": item for c, row in found["per_class"].items() for key, item in row.items()
    }
    values = {key: item for key, item in values.items() if not key.endswith(".support")}
    scores = calibration_scores(logits, labels)
    values |= {f"calibration.before.{key}": scores[key] for key in ("brier", "nll", "ece_equal_width")}
    binary = tumour_versus_none(labels, shares, CLASSES)
    keys = ("sensitivity", "specificity", "auroc", "average_precision")
    return values | {f"tumour_vs_none.{key}": binary[key] for key in keys}


def test_every_resample_equals_a_plain_loop() -> None:
    labels, logits, groups = grouped()
    number, weights = group_weights(groups, 25, seed=5)
    fast = bootstrap_metrics(labels, logits, number, weights, CLASSES)
    for position, drawn in enumerate(weights.astype(int)):
        slow = plain_loop(labels, logits, np.repeat(np.arange(len(labels)), drawn[number]))
        assert set(fast) == set(slow)
        for name, value in slow.items():
            expected = np.nan if value is None else value
            assert fast[name][position] == pytest.approx(expected, nan_ok=True, abs=1e-9), (name, position)


def test_whole_groups_are_drawn_with_replacement() -> None:
    groups = ["b", "a", "b", "c", "a", "b"]
    number, weights = group_weights(groups, 4000, seed=0)
    assert number.tolist() == [1, 0, 1, 2, 0, 1]
    assert weights.shape == (4000, 3)
    assert (weights.sum(axis=1) == 3).all()
    share_without_a = (weights[:, 0] == 0).mean()
    assert share_without_a == pytest.approx((2 / 3) ** 3, abs=0.03)


def test_the_same_seed_draws_the_same_groups_whatever_the_order_of_images() -> None:
    groups = ["b", "a", "b", "c"]
    _, first = group_weights(groups, 50, seed=1)
    _, again = group_weights(groups[::-1], 50, seed=1)
    _, other = group_weights(groups, 50, seed=2)
    assert (first == again).all()
    assert (first != other).any()


def test_dependent_images_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 4, 40), 8)
    right = np.repeat(rng.random(40) < 0.7, 8)  # all eight images of a group are right or wrong together
    logits = np.eye(4, dtype=np.float32)[np.where(right, labels, (labels + 1) % 4)] * 3
    widths = {}
    for unit, groups in (("group", np.arange(320) // 8), ("image", np.arange(320))):
        number, weights = group_weights([f"{value:03}" for value in groups], 1000, seed=0)
        low, high = interval(bootstrap_metrics(labels, logits, number, weights, CLASSES)["accuracy"]) or (
            0,
            0,
        )
        widths[unit] = high - low
    assert widths["group"] / widths["image"] == pytest.approx(np.sqrt(8), rel=0.15)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        right = np.repeat(rng.random(120) < 0.8, 2)
        labels = np.zeros(240, np.int64)
        logits = np.stack([right, ~right, right, right], axis=1).astype(np.float32)[:, [0, 1, 1, 1]]
        number, weights = group_weights([f"{i // 2:03}" for i in range(240)], 400, seed)
        low, high = interval(bootstrap_metrics(labels, logits, number, weights, CLASSES)["accuracy"]) or (
            0,
            0,
        )
        covered += low <= 0.8 <= high
    assert 88 <= covered <= 99


@pytest.mark.parametrize("ties", [False, True])
def test_ranking_equals_scikit_learn_with_weights(ties: bool) -> None:
    rng = np.random.default_rng(8)
    truth = rng.random(70) < 0.4
    score = rng.random(70) + 0.3 * truth
    score = score.round(1) if ties else score
    number, weights = group_weights([str(i // 2) for i in range(70)], 30, seed=2)
    area, precision = weighted_ranking(truth, score, number, weights)
    for position, drawn in enumerate(weights):
        sample_weight = drawn[number]
        assert area[position] == pytest.approx(sk.roc_auc_score(truth, score, sample_weight=sample_weight))
        expected = sk.average_precision_score(truth, score, sample_weight=sample_weight)
        assert precision[position] == pytest.approx(expected)


def test_a_resample_without_one_side_is_undefined_not_wrong() -> None:
    truth, score = np.array([True, False]), np.array([0.9, 0.1])
    weights = np.array([[2, 0], [0, 2], [1, 1]], np.float32)
    area, precision = weighted_ranking(truth, score, np.array([0, 1]), weights)
    assert np.isnan(area[:2]).all()
    assert area[2] == 1.0
    assert precision[0] == 1.0
    assert np.isnan(precision[1])


def test_work_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, logits, groups = grouped()
    number, weights = group_weights(groups, 40, seed=5)
    whole = bootstrap_metrics(labels, logits, number, weights, CLASSES)
    monkeypatch.setattr("brainmri_core.evaluation.bootstrap._CHUNK_VALUES", 7 * len(labels))
    parts = bootstrap_metrics(labels, logits, number, weights, CLASSES)
    assert whole.keys() == parts.keys()
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, err_msg=name)


def test_an_interval_needs_half_of_the_resamples() -> None:
    values = np.r_[np.full(50, np.nan), np.linspace(0, 1, 50)]
    assert interval(values) is None
    assert interval(np.r_[values, 0.5]) is not None
    assert interval(np.linspace(0, 1, 1001)) == pytest.approx([0.025, 0.975])
    assert interval(np.array([])) is None
