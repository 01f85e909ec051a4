"""Two models on other data sets: worst and mean macro F1, and the paired interval, against values known by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brainmri_core.evaluation.external_choice import (
    Evaluations,
    compare_elsewhere,
    external_evaluations,
    together,
)
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointers import CheckpointPointer
from tests.core.evaluation.external_choice_case import FAR, HOME, NEAR, measured


def checkpoint(name: str) -> CheckpointPointer:
    return CheckpointPointer(
        dataset=HOME, run_id=name, content_hash=name, written_at_utc="", checkpoint=name, checkpoint_sha256=name * 64,
        history=name, curves=None, model_name="m", best_epoch=1, epochs_run=1, val_macro_f1=0.5, pack_pointer="p",
    )  # fmt: skip


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(root=tmp_path)


def both(layout: Layout) -> tuple[Evaluations, Evaluations]:
    one, other = (external_evaluations(checkpoint(name), layout) for name in "ab")
    return one, other


def test_worst_and_mean_are_of_the_data_sets() -> None:
    scores = np.array([[0.9, 0.2], [0.5, 0.6]])
    assert together(scores, "external_worst").tolist() == [0.5, 0.2]
    assert together(scores, "external_mean").tolist() == pytest.approx([0.7, 0.4])


def test_a_model_that_is_good_everywhere_beats_one_that_fails_somewhere(layout: Layout) -> None:
    """Of 160 images in two classes of 80, w wrong ones in equal parts are a macro F1 of 1 - w / 160."""
    measured(layout, "a", NEAR, list(range(40)), images=160)
    measured(layout, "a", FAR, list(range(32)), images=160)
    measured(layout, "b", NEAR, [], images=160)
    measured(layout, "b", FAR, list(range(96)), images=160)
    one, other = both(layout)
    assert list(one) == list(other) == [FAR, NEAR]
    worst = compare_elsewhere(one, other, "external_worst", layout, resamples=300, seed=1)
    mean = compare_elsewhere(one, other, "external_mean", layout, resamples=300, seed=1)
    assert not isinstance(worst, str) and not isinstance(mean, str)
    assert (worst.images, worst.ours, worst.theirs) == (320, pytest.approx(0.75), pytest.approx(0.4))
    assert (mean.ours, mean.theirs) == (pytest.approx(0.775), pytest.approx(0.7))
    assert worst.interval is not None and worst.interval[0] > 0
    assert mean.interval is not None and mean.interval[0] < 0.075 < mean.interval[1]
    back = compare_elsewhere(other, one, "external_worst", layout, resamples=300, seed=1)
    assert not isinstance(back, str) and back.interval is not None
    assert back.interval == pytest.approx([-worst.interval[1], -worst.interval[0]])


def test_only_images_that_neither_has_seen_and_whose_class_both_know_count(layout: Layout) -> None:
    measured(layout, "a", FAR, [0, 1, 2, 3, 10, 11], taken_out=(0, 1), never_learnt=(4, 5))
    measured(layout, "b", FAR, [], taken_out=(2, 3), never_learnt=(4, 5))
    found = compare_elsewhere(*both(layout), "external_worst", layout, resamples=100, seed=1)
    assert not isinstance(found, str)
    assert (found.images, found.ours, found.theirs) == (34, pytest.approx(1 - 2 / 34), 1.0)


def test_the_newest_score_of_this_very_checkpoint_counts(layout: Layout) -> None:
    measured(layout, "a", FAR, [], run_id="r1")
    measured(layout, "a", FAR, [0, 1], run_id="r2")
    measured(layout, "b", FAR, [], run_id="r3")
    measured(layout, "a", NEAR, [], obstacle="its pack is gone")
    measured(layout, "a", "third/set", [], reason="nothing is left")
    (found,) = both(layout)[0].values()
    assert (found.dataset, found.run_id) == (FAR, "r2")


def test_what_cannot_be_compared_says_why(layout: Layout) -> None:
    measured(layout, "a", FAR, [])
    measured(layout, "b", NEAR, [])
    answer = compare_elsewhere(*both(layout), "external_mean", layout, resamples=100, seed=1)
    assert answer == "they were not both measured on another data set"
    measured(layout, "b", FAR, [], images=4, taken_out=(0, 1, 2, 3))
    answer = compare_elsewhere(*both(layout), "external_mean", layout, resamples=100, seed=1)
    assert answer == f"neither was measured on an image of {FAR} that the other was measured on"
    measured(layout, "b", FAR, [], classes=["tumour", "none"], run_id="r2")
    assert (
        compare_elsewhere(*both(layout), "external_mean", layout, resamples=100, seed=1)
        == "they know other classes"
    )
