from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from brainmri_core.config import with_seed
from brainmri_core.config.external import ExternalConfig
from brainmri_core.evaluation.calibration import nll
from brainmri_core.evaluation.external_schema import Comparison, NoRecalibration, Recalibration
from brainmri_core.evaluation.external_scores import Carried, compare_with_own, flag_rates
from brainmri_core.evaluation.metrics_schema import Unavailable
from brainmri_core.evaluation.prediction_table import prediction_table
from brainmri_core.evaluation.recalibration import labelled_part, plan_recalibration

CLASSES = ["glioma", "meningioma", "notumor"]
PER_GROUP = 4


def config(**fields: object) -> ExternalConfig:
    filled = with_seed(ExternalConfig.model_validate({"bootstrap_resamples": 1000, **fields}), 7)
    assert isinstance(filled, ExternalConfig)
    return filled


def drawn(groups: int, right: float, seed: int, split: str = "test") -> pd.DataFrame:
    """Draw predictions that are right for a share of the groups, all images of a group alike."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), PER_GROUP)
    labels = group % len(CLASSES)
    wrong = rng.permuted(np.arange(groups) >= round(right * groups))[group]
    called = (labels + wrong) % len(CLASSES)
    samples = pd.DataFrame(
        {
            "row": np.arange(len(group)), "path": [f"{row}.png" for row in range(len(group))],
            "group": [f"g{number}" for number in group], "split": split,
            "label": np.array(CLASSES)[labels], "class_index": labels,
        }
    )  # fmt: skip
    logits = np.eye(3, dtype=np.float32)[called] * 4
    return prediction_table(samples, logits, CLASSES, np.zeros(len(group)))


def compared(other: pd.DataFrame, own: pd.DataFrame, **fields: object) -> Comparison:
    found = compare_with_own(other, CLASSES, Carried(own=own), config(**fields))
    assert isinstance(found, Comparison)
    return found


def test_the_interval_of_a_planted_drop_holds_the_truth_as_often_as_it_says() -> None:
    truth = 0.6 - 0.9
    hits = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        own, other = (drawn(120, rng.binomial(120, p) / 120, 2 * seed + n) for n, p in enumerate((0.9, 0.6)))
        found = compared(other, own, bootstrap_resamples=300)
        low, high = found.measures["accuracy"].interval or (np.inf, -np.inf)
        hits += low <= truth <= high
    assert 34 <= hits <= 40


def test_the_interval_is_over_groups_and_not_over_images() -> None:
    own, other = drawn(60, 0.8, 1), drawn(60, 0.8, 2)
    low, high = compared(other, own).measures["accuracy"].interval or (0.0, 0.0)
    by_groups = 2 * 1.96 * np.sqrt(2 * 0.8 * 0.2 / 60)
    assert high - low == pytest.approx(by_groups, rel=0.15)


def test_two_equal_sets_are_not_resampled_with_one_draw() -> None:
    own = drawn(60, 0.8, 1)
    item = compared(own.copy(), own).measures["accuracy"]
    assert item.interval is not None
    assert item.difference == 0 and item.interval[1] - item.interval[0] > 0.1


def test_only_classes_of_both_sets_are_compared() -> None:
    own, other = drawn(60, 1.0, 1), drawn(60, 1.0, 2)
    own = own[own["label"] != "glioma"]
    found = compared(other, own)
    assert found.classes == ["meningioma", "notumor"]
    assert found.measures["accuracy"].external == 1.0
    absent = compare_with_own(other[other["label"] == "glioma"], CLASSES, Carried(own=own), config())
    assert absent == Unavailable(reason="its own test images show none of these classes")


def test_what_one_side_leaves_undefined_is_not_compared() -> None:
    """Without images of no tumour there is no specificity, on either side."""
    own, other = drawn(60, 0.9, 1), drawn(60, 0.8, 2)
    other = other[other["label"] != "notumor"]
    found = compared(other, own)
    assert "tumour_vs_none.specificity" not in found.measures
    json.dumps(found.model_dump(mode="json"), allow_nan=False)


def test_the_share_of_own_images_flagged_is_undefined_without_own_test_images() -> None:
    other = drawn(30, 0.8, 2)
    everything = np.ones(len(other), np.bool_)
    for split, share in (("test", 0.0), ("validation", None)):
        carried = Carried(threshold=0.5, own=drawn(30, 0.8, 1, split))
        assert flag_rates(other, everything, carried, CLASSES, config()).own_flagged_share == share


def over_confident(images: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels from a model's probabilities, then make its logits too large by a factor."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 1.5, (images, 3))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random((images, 1)) > shares.cumsum(axis=1)).sum(axis=1)
    return (logits * factor).astype(np.float32), labels.astype(np.int64)


def test_recalibration_finds_the_planted_temperature_better_with_more_images() -> None:
    logits, labels = over_confident(3000, 3.0)
    groups = [f"g{row // 3}" for row in range(len(labels))]
    few, many = plan_recalibration(logits, labels, groups, [50, 500], temperature=1.0, resamples=100, seed=5)
    assert isinstance(few, Recalibration) and isinstance(many, Recalibration)
    wide, narrow, gained = few.temperature.interval, many.temperature.interval, many.nll_gain.interval
    assert wide is not None and narrow is not None and gained is not None
    assert narrow[0] < 3.0 < narrow[1] and wide[1] - wide[0] > narrow[1] - narrow[0]
    assert many.ece.mean < few.ece.mean < 0.2
    gain = nll(logits, labels, 1.0) - nll(logits, labels, 3.0)
    assert many.nll_gain.mean == pytest.approx(gain, rel=0.1)
    assert gained[0] > 0


def test_no_group_is_both_labelled_and_scored() -> None:
    rng = np.random.default_rng(1)
    number = rng.integers(0, 40, 300)
    for size in (1, 10, 120):
        chosen, rest = labelled_part(number, size, rng)
        assert len(set(chosen)) == size and not set(number[chosen]) & set(number[rest])
        assert len(rest) > 300 - size - 2 * np.bincount(number).max(), "no more groups than needed"


def test_too_few_images_to_label_are_named() -> None:
    logits, labels = over_confident(90, 1.0)
    (one_patient,) = plan_recalibration(
        logits, labels, ["p"] * 90, [20], temperature=1.0, resamples=20, seed=0
    )
    groups = list(map(str, range(90)))
    few = plan_recalibration(logits, labels, groups, [50], temperature=1.0, resamples=20, seed=0)
    assert few == [NoRecalibration(images=50, reason="90 images are too few to label 50 and score the rest")]
    assert isinstance(one_patient, NoRecalibration)
    assert one_patient.reason.startswith("a few patients or groups hold most")
