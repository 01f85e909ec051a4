from __future__ import annotations

import numpy as np
import pytest

from brainmri_core.evaluation.metrics import classification_metrics
from brainmri_core.studies.optimism import optimism_of_best

CLASSES = ["a", "b", "c", "d"]
IMAGES, ACCURACY = 400, 0.8


def trials_of_chance(count: int, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Trials that are equally good, so that the best is the best by luck alone."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, IMAGES)
    return labels, [
        np.where(rng.random(IMAGES) < ACCURACY, labels, (labels + rng.integers(1, 4, IMAGES)) % 4)
        for _ in range(count)
    ]


def macro_f1(labels: np.ndarray, called: np.ndarray) -> float:
    return float(classification_metrics(labels, np.eye(4)[called], CLASSES)["macro_f1"])


@pytest.mark.full
def test_what_the_best_of_equals_has_gained_by_luck_is_found_again() -> None:
    gained, estimated = [], []
    for seed in range(12):
        labels, calls = trials_of_chance(20, seed)
        best = max(macro_f1(labels, called) for called in calls)
        gained.append(best - ACCURACY)
        units = [str(image) for image in range(IMAGES)]
        estimated.append(optimism_of_best(labels, calls, units, CLASSES, resamples=200, seed=1))
    assert np.mean(gained) > 0.025, "the case has something to find"
    assert np.mean(estimated) == pytest.approx(np.mean(gained), abs=0.008)


def test_a_single_trial_and_a_clear_winner_have_gained_nothing() -> None:
    labels, calls = trials_of_chance(5, 3)
    units = [str(image // 2) for image in range(IMAGES)]
    assert optimism_of_best(labels, calls[:1], units, CLASSES, resamples=100, seed=1) == 0
    assert optimism_of_best(labels, [*calls, labels], units, CLASSES, resamples=100, seed=1) == 0
