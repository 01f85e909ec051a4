from __future__ import annotations

import numpy as np
import pytest

from brainmri_core.evaluation.label_shift import LabelShift, estimate_label_shift

CLASSES = ["glioma", "meningioma", "notumor"]


def predictions(labels: np.ndarray, seed: int, confusion: float = 0.15) -> np.ndarray:
    """Predictions of a model that takes class k for the next one in a share of the cases, with soft probabilities."""
    rng = np.random.default_rng(seed)
    called = np.where(rng.random(len(labels)) < confusion, (labels + 1) % 3, labels)
    logits = rng.normal(0, 1, (len(labels), 3)) + 3 * np.eye(3)[called]
    shares: np.ndarray = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return shares


def estimated(
    prevalence: list[float], seed: int, *, n: int = 900, confusion: float = 0.15, resamples: int = 200
) -> LabelShift:
    rng = np.random.default_rng([seed, 7])
    labels = np.arange(600) % 3
    there = rng.choice(3, n, p=prevalence)
    return estimate_label_shift(
        labels,
        predictions(labels, seed, confusion),
        [str(i) for i in range(600)],
        predictions(there, seed + 1, confusion),
        [str(i) for i in range(n)],
        CLASSES,
        seed=seed,
        resamples=resamples,
    )


@pytest.mark.parametrize("prevalence", [[0.1, 0.2, 0.7], [0.7, 0.3, 0.0], [1 / 3, 1 / 3, 1 / 3]])
def test_a_planted_prevalence_is_recovered_where_counting_predictions_is_wrong(
    prevalence: list[float],
) -> None:
    found = estimated(prevalence, seed=0, n=4000)
    assert found.estimated is not None
    assert list(found.estimated.values()) == pytest.approx(prevalence, abs=0.05)
    wrong = np.abs(np.array(list(found.predicted.values())) - prevalence).max()
    right = np.abs(np.array(list(found.estimated.values())) - prevalence).max()
    assert right < wrong or prevalence[0] == prevalence[2]


@pytest.mark.full
def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """80 sets: a correct 95% interval covers 69 of them or more in 99.9% of the cases."""
    prevalence = [0.2, 0.3, 0.5]
    covered = 0
    for seed in range(80):
        low, high = estimated(prevalence, seed=10 * seed, n=300).intervals["notumor"]
        covered += low <= 0.5 <= high
        assert high - low < 0.4
    assert covered >= 69


def test_images_of_one_patient_widen_the_interval() -> None:
    labels = np.arange(600) % 3
    there = np.repeat(np.random.default_rng(1).choice(3, 30), 10)
    widths = {}
    for name, groups in {"own": range(300), "patient": np.arange(300) // 10}.items():
        found = estimate_label_shift(
            labels,
            predictions(labels, 0),
            [str(i) for i in range(600)],
            predictions(there, 1),
            [str(i) for i in groups],
            CLASSES,
            seed=0,
            resamples=300,
        )
        low, high = found.intervals["notumor"]
        widths[name] = high - low
    assert widths["patient"] > 1.8 * widths["own"]


def test_one_patient_alone_has_no_interval() -> None:
    labels, names = np.arange(600) % 3, [str(i) for i in range(600)]
    shares = predictions(labels, 0)
    found = estimate_label_shift(labels, shares, names, shares[:30], ["p"] * 30, CLASSES, seed=0)
    assert found.estimated is not None
    assert found.intervals == {}


def test_a_model_that_cannot_tell_two_classes_apart_gives_no_estimate() -> None:
    labels = np.arange(600) % 3
    shares = predictions(labels, 0)
    shares[:, :2] = shares[:, :2].mean(axis=1, keepdims=True)
    names = [str(i) for i in range(600)]
    found = estimate_label_shift(labels, shares, names, shares, names, CLASSES, seed=0)
    assert (found.estimated, found.intervals) == (None, {})
    assert found.reason is not None
    assert found.reason.startswith("the model confuses the classes too much")
    assert LabelShift.model_validate_json(found.model_dump_json()) == found


def test_a_class_without_validation_images_gives_no_estimate() -> None:
    labels = np.arange(600) % 2
    shares, names = predictions(labels, 0), [str(i) for i in range(600)]
    found = estimate_label_shift(labels, shares, names, shares, names, CLASSES, seed=0)
    assert found.reason == "there are no validation images of notumor"
    labels = np.arange(600) % 3
    empty = estimate_label_shift(labels, shares, names, shares[:0], [], CLASSES, seed=0)
    assert empty.reason == "there are no images to estimate it for"


def test_the_estimate_is_the_same_twice() -> None:
    assert estimated([0.2, 0.3, 0.5], 3) == estimated([0.2, 0.3, 0.5], 3)
