from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from brainmri_core.errors import DataError
from brainmri_core.evaluation.baselines import Baseline, make_baselines, score_baselines
from brainmri_core.evaluation.bootstrap import group_weights
from brainmri_core.evaluation.calibration import probabilities
from brainmri_core.evaluation.metrics import brief_metrics, classification_metrics, tumour_versus_none
from brainmri_core.evaluation.metrics_file import Context, evaluation_metrics, headline, warnings_of
from brainmri_core.evaluation.metrics_schema import Measured
from brainmri_core.evaluation.subsets import score_subsets, subset_masks
from tests import ROOT
from tests.core.evaluation.metrics_case import CLASSES, made_up, nulls, table_of, votes


def context(
    baselines: list[Baseline] | None = None, *, copies: int = 0, seen: int = 0, resamples: int = 50
) -> Context:
    return Context(
        resamples=resamples, seed=1, subsets=iter(()), baselines=baselines or [], known_copies=copies, seen_in_training=seen
    )  # fmt: skip


def test_a_case_small_enough_for_paper() -> None:
    # truth     g g g g n n n p p p      right: 3 of 4, 2 of 3, 1 of 3
    # predicted g g g n n n p p g n
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    found = classification_metrics(labels, votes([0, 0, 0, 1, 1, 1, 2, 2, 0, 1]), CLASSES)
    assert found["confusion_matrix"] == [[3, 1, 0], [0, 2, 1], [1, 1, 1]]
    assert found["n_images"] == 10
    assert found["accuracy"] == pytest.approx(6 / 10)
    assert found["balanced_accuracy"] == pytest.approx((3 / 4 + 2 / 3 + 1 / 3) / 3)
    glioma, none, pituitary = found["per_class"].values()
    assert (glioma["support"], none["support"], pituitary["support"]) == (4, 3, 3)
    assert (glioma["sensitivity"], glioma["specificity"]) == pytest.approx((3 / 4, 5 / 6))
    assert (glioma["ppv"], glioma["npv"]) == pytest.approx((3 / 4, 5 / 6))
    assert (none["ppv"], none["npv"]) == pytest.approx((2 / 4, 5 / 6))
    f1 = (3 / 4, 2 * 2 / (4 + 3), 2 * 1 / (2 + 3))
    assert (glioma["f1"], none["f1"], pituitary["f1"]) == pytest.approx(f1)
    assert found["macro_f1"] == pytest.approx(sum(f1) / 3)
    assert found["weighted_f1"] == pytest.approx((4 * f1[0] + 3 * f1[1] + 3 * f1[2]) / 10)
    expected = (4 * 4 + 3 * 4 + 3 * 2) / 100
    assert found["cohen_kappa"] == pytest.approx((0.6 - expected) / (1 - expected))
    # Gorodkin 2004: the covariance of truth and prediction over their spreads
    assert found["mcc"] == pytest.approx((6 * 10 - 34) / np.sqrt((100 - 34) * (100 - 36)))
    # of 4 x 6 pairs of a glioma and another, the glioma scores higher in 15, and equal in 8
    assert glioma["auroc"] == pytest.approx((15 + 0.5 * 8) / 24)
    assert found["reasons"] == {}


def test_a_model_that_always_predicts_the_same_class() -> None:
    found = classification_metrics(np.array([0, 0, 1, 1, 2]), votes([0, 0, 0, 0, 0]), CLASSES)
    assert found["mcc"] is None and "single class" in found["reasons"]["mcc"]
    assert found["cohen_kappa"] == 0.0, "no better than chance, which is a number"
    assert found["per_class"]["glioma"]["ppv"] == pytest.approx(2 / 5)
    for name in ("notumor", "pituitary"):
        assert found["per_class"][name]["ppv"] is None and found["per_class"][name]["f1"] == 0.0
        assert f"per_class.{name}.ppv" in found["reasons"]


def test_a_class_without_images_has_no_numbers_though_it_was_predicted() -> None:
    # truth g g n n, predicted g n g p: as many right as wrong for glioma and for the rest
    found = classification_metrics(np.array([0, 0, 1, 1]), votes([0, 1, 0, 2]), CLASSES)
    absent = found["per_class"]["pituitary"]
    numbers = ("precision", "recall", "f1", "sensitivity", "ppv", "auroc", "average_precision")
    assert absent["support"] == 0 and all(absent[name] is None for name in numbers)
    assert absent["specificity"] == pytest.approx(3 / 4)
    glioma = found["per_class"]["glioma"]
    assert (glioma["specificity"], glioma["npv"]) == pytest.approx((1 / 2, 1 / 2))
    assert found["macro_f1"] == pytest.approx((1 / 2 + 0) / 2), "over the classes that occur"


def test_two_classes_are_enough_for_a_correlation() -> None:
    found = classification_metrics(np.array([0, 0, 0, 1, 1]), votes([0, 0, 1, 1, 1]), CLASSES)
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef([0, 0, 0, 1, 1], [0, 0, 1, 1, 1]))
    assert found["cohen_kappa"] == pytest.approx(8 / 13)
    assert "mcc" not in found["reasons"]


@pytest.mark.parametrize(
    ("called", "ppv", "npv"),
    [([0, 2, 1, 0, 0, 1, 1], 2 / 4, 2 / 3), ([0, 1, 1, 0, 0, 1, 1], 1 / 3, 2 / 4)],
    ids=["as many right as false alarms", "as many right as missed"],
)
def test_tumour_or_none_is_counted_by_hand(called: list[int], ppv: float, npv: float) -> None:
    found = tumour_versus_none(np.array([0, 0, 2, 1, 1, 1, 1]), votes(called), CLASSES)
    assert (found["n_tumour"], found["n_none"]) == (3, 4)
    assert (found["ppv"], found["npv"]) == pytest.approx((ppv, npv))
    assert found["reasons"] == {}


@pytest.mark.parametrize(
    ("always", "undefined", "reason"),
    [(0, "npv", "nothing but tumours was ever called"), (1, "ppv", "no tumour was ever called")],
)
def test_a_predictive_value_of_a_class_never_predicted_has_its_reason(
    always: int, undefined: str, reason: str
) -> None:
    found = tumour_versus_none(np.array([0, 0, 2, 1]), votes([always] * 4), CLASSES)
    assert found[undefined] is None and found["reasons"] == {undefined: reason}


def test_an_operating_point_that_needs_no_model_says_so() -> None:
    labels = np.array([0, 2, 1, 1, 1])
    shares = np.array(
        [[0.5, 0.4, 0.1], [0.1, 0.3, 0.6], [0.05, 0.9, 0.05], [0.7, 0.2, 0.1], [0.1, 0.85, 0.05]]
    )
    loose, strict = tumour_versus_none(labels, shares, CLASSES, (2 / 3, 1.0))["sensitivity_at_specificity"]
    assert (loose["specificity"], loose["sensitivity"], loose["threshold"]) == pytest.approx(
        (2 / 3, 1.0, 0.6)
    )
    assert "reason" not in loose
    assert (strict["sensitivity"], strict["threshold"]) == (0.0, None)
    assert strict["reason"] == "only calling no tumour at all is that specific"


def test_equals_scikit_learn_on_a_larger_case() -> None:
    labels, logits = made_up()
    shares, classes = probabilities(logits), list("abcd")
    called = shares.argmax(axis=1)
    found = classification_metrics(labels, shares, classes)
    expected = {
        "accuracy": sk.accuracy_score(labels, called),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, called),
        "macro_f1": sk.f1_score(labels, called, average="macro"),
        "weighted_f1": sk.f1_score(labels, called, average="weighted"),
        "mcc": sk.matthews_corrcoef(labels, called),
        "cohen_kappa": sk.cohen_kappa_score(labels, called),
        "macro_auroc": sk.roc_auc_score(labels, shares, multi_class="ovr"),
        "macro_average_precision": sk.average_precision_score(np.eye(4)[labels], shares, average="macro"),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    for index, name in enumerate(classes):
        truth, hit = labels == index, called == index
        assert found["per_class"][name] == pytest.approx(
            {
                "precision": sk.precision_score(truth, hit),
                "recall": sk.recall_score(truth, hit),
                "f1": sk.f1_score(truth, hit),
                "support": truth.sum(),
                "sensitivity": sk.recall_score(truth, hit),
                "specificity": sk.recall_score(truth, hit, pos_label=0),
                "ppv": sk.precision_score(truth, hit),
                "npv": sk.precision_score(truth, hit, pos_label=0),
                "auroc": sk.roc_auc_score(truth, shares[:, index]),
                "average_precision": sk.average_precision_score(truth, shares[:, index]),
            }
        )


def test_tumour_or_none_by_hand() -> None:
    labels = np.array([0, 0, 2, 2, 1, 1, 1, 1])
    none = np.array([0.1, 0.3, 0.35, 0.7, 0.2, 0.6, 0.8, 0.9])
    shares = np.stack([1 - none, none, np.zeros(8)], axis=1)
    found = tumour_versus_none(labels, shares, CLASSES, specificities=(0.75, 0.99))
    assert found["confusion_matrix"] == [[3, 1], [1, 3]]
    assert (found["sensitivity"], found["specificity"], found["ppv"], found["npv"]) == (0.75,) * 4
    # a tumour's score beats a normal's in 4 + 3 + 3 + 2 of 16 pairs
    assert found["auroc"] == pytest.approx(12 / 16)
    loose, strict = found["sensitivity_at_specificity"]
    assert (loose["sensitivity"], loose["specificity"]) == (0.75, 0.75)
    assert loose["threshold"] == pytest.approx(0.65)
    assert (strict["sensitivity"], strict["specificity"]) == (0.25, 1.0)
    assert found["reasons"] == {}


def test_an_operating_point_out_of_reach_has_a_reason_instead_of_a_threshold() -> None:
    shares = np.array([[0.2, 0.8], [0.9, 0.1]])
    found = tumour_versus_none(np.array([0, 1]), shares, ["glioma", "normal"], specificities=(0.9,))
    (point,) = found["sensitivity_at_specificity"]
    assert (point["sensitivity"], point["specificity"], point["threshold"]) == (0.0, 1.0, None)
    assert point["reason"]


@pytest.mark.parametrize(
    ("labels", "classes", "reason"),
    [
        ([0, 1], ["glioma", "meningioma"], "glioma, meningioma"),
        ([0, 0], ["glioma", "notumor"], "all with, or all without"),
        ([1, 1], ["glioma", "no_tumor"], "all with, or all without"),
    ],
)
def test_images_all_with_or_all_without_a_tumour_give_a_reason_and_no_score(
    labels: list[int], classes: list[str], reason: str
) -> None:
    found = tumour_versus_none(np.array(labels), votes([0, 1], 2), classes)
    assert list(found) == ["reason"]
    assert reason in found["reason"]


HARD_CASES = {
    "a class without an image": ([0, 0, 1, 1, 0], [0, 1, 1, 2, 0]),
    "a class never called": ([0, 1, 2, 2, 1], [0, 0, 2, 2, 2]),
    "one class only, all right": ([1, 1, 1], [1, 1, 1]),
    "one class only, all wrong": ([1, 1, 1], [0, 2, 0]),
    "one answer only": ([0, 1, 2, 0], [2, 2, 2, 2]),
    "a single image": ([2], [0]),
}


@pytest.mark.parametrize("case", HARD_CASES)
def test_every_null_has_a_reason_and_the_document_is_json(case: str) -> None:
    labels, called = (np.array(part, np.int64) for part in HARD_CASES[case])
    logits = np.log(votes(called.tolist())).astype(np.float32)
    baselines = [Baseline("majority class", "", votes([0] * len(labels)), False)]
    table = table_of(labels, logits, CLASSES)
    masks = iter([("all", "whole test split", np.ones(len(labels), bool))])
    made = Context(50, 1, masks, baselines, 0, 0)
    found = evaluation_metrics(table, CLASSES, made)
    written = found.model_dump(mode="json")
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert Measured.model_validate(written) == found
    assert list(nulls(written)) == []
    assert list(nulls({"a": {"b": None}, "reasons": {}})) == ["a.b"], "the check itself can fail"


def test_an_absent_class_is_left_out_of_the_averages() -> None:
    labels = np.array([0, 0, 1, 1])
    found = classification_metrics(labels, votes([0, 0, 1, 2]), CLASSES)
    absent = found["per_class"]["pituitary"]
    assert (absent["support"], absent["recall"], absent["f1"], absent["auroc"]) == (0, None, None, None)
    assert "no image here" in found["reasons"]["per_class.pituitary"]
    assert found["balanced_accuracy"] == pytest.approx(0.75)
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)


def test_no_image_and_no_number_are_errors() -> None:
    with pytest.raises(DataError, match="test split is empty"):
        classification_metrics(np.zeros(0, np.int64), np.zeros((0, 3)), CLASSES)
    with pytest.raises(DataError, match="not a finite number"):
        classification_metrics(np.array([0]), np.array([[np.nan, 0.5, 0.5]]), CLASSES)


def test_the_documentation_names_every_field() -> None:
    labels, logits = made_up(n=200, k=3)
    test, validation = table_of(labels, logits, CLASSES), table_of(labels, logits, CLASSES, "validation")
    everything = np.ones(200, bool)
    made = Context(
        50, 1, iter([("all", "whole", everything)]), [Baseline("b", "", votes([0] * 200), True)], 0, 0
    )
    found = evaluation_metrics(pd.concat([test, validation], ignore_index=True), CLASSES, made)
    text = (ROOT / "docs" / "metrics.md").read_text()

    def names(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for key, item in value.items():
                if key not in CLASSES and "." not in key:
                    yield key
                yield from names(item)
        elif isinstance(value, list):
            for item in value:
                yield from names(item)

    missing = {
        name for name in names({**found.model_dump(mode="json"), "intervals": {}}) if f"`{name}`" not in text
    }
    assert missing == set()
    assert f"Version {found.schema_version}" in text


def test_a_model_that_beats_no_baseline_gets_a_red_box() -> None:
    labels, logits = made_up(n=300, k=3)
    table = table_of(labels, logits, CLASSES)
    better = Baseline("nearest neighbour", "the most similar image", votes(labels.tolist()), False)
    worse = Baseline("majority class", "always the same", votes([0] * 300), False)
    found = evaluation_metrics(table, CLASSES, context([better, worse]))
    assert [row.beaten for row in found.baselines] == ["no", "yes"]
    red = [item.text for item in warnings_of(found) if item.level == "red"]
    assert len(red) == 1
    assert "does not beat every simple rule" in red[0]
    assert "1.000 of nearest neighbour" in red[0]
    assert "majority class" not in red[0]
    assert found.baselines[0].macro_f1 == 1.0
    assert found.baselines[0].macro_f1_gain == pytest.approx(found.macro_f1 - 1.0)


def test_a_gain_within_noise_is_called_unclear() -> None:
    labels, logits = made_up(n=60, k=3)
    called = probabilities(logits).argmax(axis=1)
    nearly = called.copy()
    hit = int(np.flatnonzero(called == labels)[0])
    nearly[hit] = (labels[hit] + 1) % 3
    table = table_of(labels, logits, CLASSES)
    baseline = Baseline("nearly the model", "one error more", votes(nearly.tolist()), False)
    found = evaluation_metrics(table, CLASSES, context([baseline]))
    assert found.baselines[0].beaten == "unclear"
    low, high = found.baselines[0].macro_f1_gain_interval
    assert low <= 0 < high
    assert any("not clearly better" in item.text and item.level == "amber" for item in warnings_of(found))


@pytest.mark.parametrize(
    ("accuracy", "copies", "seen", "red"),
    [
        (0.99, 12, 0, "above 97%"),
        (0.90, 12, 0, "have a copy in the training split"),
        (0.99, 0, 3, "were in this checkpoint's training"),
        (0.99, 0, 0, None),
    ],
)
def test_known_copies_and_seen_images_get_a_red_box(
    accuracy: float, copies: int, seen: int, red: str | None
) -> None:
    labels, logits = made_up(n=400, k=3)
    measured = evaluation_metrics(table_of(labels, logits, CLASSES), CLASSES, context())
    metrics = measured.model_copy(
        update={"accuracy": accuracy, "known_copies": copies, "seen_in_training": seen}
    )
    found = [item.text for item in warnings_of(metrics) if item.level == "red"]
    assert [red in text for text in found] == ([] if red is None else [True])


def test_intervals_draw_whole_patients_where_they_are_known() -> None:
    labels, logits = made_up(n=240, k=3)
    logits[:] = logits[
        np.arange(240) // 8 * 8
    ]  # a model that is right or wrong about all of a patient's images
    labels[:] = labels[np.arange(240) // 8 * 8]
    table = table_of(labels, logits, CLASSES)
    known = table.assign(patient=[f"p{i // 8}" if i < 160 else "" for i in range(240)])
    by_group, by_patient = (
        evaluation_metrics(item, CLASSES, context(resamples=400)) for item in (table, known)
    )
    assert (by_group.n_units, by_group.bootstrap.unit) == (120, "group")
    assert (by_patient.n_units, by_patient.bootstrap.unit) == (20 + 40, "patient")
    assert by_patient.n_groups == 120
    assert by_patient.patients.model_dump() == {
        "known": 20,
        "images": 160,
        "images_unknown": 80,
        "in_training": 0,
    }
    width = [np.ptp(item.intervals["accuracy"]) for item in (by_group, by_patient)]
    assert width[1] > 1.3 * width[0]


def test_a_score_whose_split_lets_patients_cross_gets_a_red_box() -> None:
    labels, logits = made_up(n=200, k=3)
    table = table_of(labels, logits, CLASSES).assign(patient=[f"p{i // 4}" for i in range(200)])
    crossing = replace(context(), known_patients_in_training=180)
    red = [
        item.text for item in warnings_of(evaluation_metrics(table, CLASSES, crossing)) if item.level == "red"
    ]
    assert (
        "180 of the 200 test images whose patient is known show a patient who is in the training split"
        in red[0]
    )
    assert not [
        item
        for item in warnings_of(evaluation_metrics(table, CLASSES, context()))
        if "patient who" in item.text
    ]


def test_absent_classes_and_few_groups_are_said() -> None:
    labels, logits = made_up(n=40, k=2)
    found = evaluation_metrics(
        table_of(labels, np.pad(logits, ((0, 0), (0, 1))), CLASSES), CLASSES, context()
    )
    amber = " ".join(item.text for item in warnings_of(found) if item.level == "amber")
    assert "No test image shows pituitary" in amber
    assert "20 independent groups" in amber


def test_the_headline_stands_for_the_whole() -> None:
    labels, logits = made_up(n=200, k=3)
    found = evaluation_metrics(table_of(labels, logits, CLASSES), CLASSES, context())
    short = headline(found)
    assert short["macro_f1"] == found.macro_f1
    assert short["ece"] == found.calibration.before.ece_equal_width
    assert short["tumour_sensitivity"] == found.tumour_vs_none.sensitivity


def samples_with_copies() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Eight images: 0-3 train, 4-7 test; 4 is a pixel copy of 0, 5 a near copy of 1, 6 and 7 have none."""
    samples = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(8)],
            "origin": ["training"] * 4 + ["testing"] * 3 + ["training"],
            "split": ["train"] * 4 + ["test"] * 4,
            "width": [256] * 6 + [300, 300],
            "height": [256] * 8,
            "pixel_sha256": ["a", "b", "c", "d", "a", "e", "f", "g"],
            "group": [f"g{i}" for i in range(8)],
            "class_index": [0, 1, 2, 0, 0, 1, 2, 0],
        }
    )
    copies = pd.DataFrame(
        {"path_a": ["1.png"], "path_b": ["5.png"], "ncc": [0.99], "orientation": ["identity"]}
    )
    return samples, copies


def test_subsets_separate_copies_folders_sizes_and_planes() -> None:
    samples, copies = samples_with_copies()
    test = np.arange(4, 8)
    planes = {"4.png": "axial", "5.png": "axial", "6.png": "coronal"}
    found = {name: mask.tolist() for _, name, mask in subset_masks(samples, copies, test, planes)}
    assert found == {
        "whole test split": [True] * 4,
        "with a copy in this training split": [True, True, False, False],
        "without a copy in this training split": [False, False, True, True],
        "official Testing folder": [True, True, True, False],
        "official Testing, with a copy in official Training": [True, True, False, False],
        "official Testing, without such a copy": [False, False, True, False],
        "official Training folder": [False, False, False, True],
        "256 × 256 px": [True, True, False, False],
        "300 × 256 px": [False, False, True, True],
        "axial": [True, True, False, False],
        "coronal": [False, False, True, False],
    }


def test_subsets_tell_known_patients_from_unknown_ones() -> None:
    samples, copies = samples_with_copies()
    samples["patient"] = ["p1", "p2", "", "", "p1", "p3", "p3", ""]
    found = {
        name: mask.tolist()
        for kind, name, mask in subset_masks(samples, copies, np.arange(4, 8))
        if kind == "patients"
    }
    assert found == {
        "patient known, also in this training split": [True, False, False, False],
        "patient known, not in this training split": [False, True, True, False],
        "patient unknown": [False, False, False, True],
    }


def test_each_subset_is_scored_on_its_own_images() -> None:
    labels, logits = made_up(n=80, k=3)
    table, shares = table_of(labels, logits, CLASSES), probabilities(logits)
    right = shares.argmax(axis=1) == labels
    masks = [("x", "right", right), ("x", "wrong", ~right)]
    good, bad = score_subsets(iter(masks), table, shares, CLASSES, resamples=40, seed=0)
    assert (good["accuracy"], bad["accuracy"]) == (1.0, 0.0)
    assert good["n_images"] + bad["n_images"] == 80
    assert good["intervals"]["accuracy"] == [1.0, 1.0]
    assert good["n_groups"] == table["group"][right].nunique()
    assert good["support"] == dict(
        zip(CLASSES, np.bincount(labels[right], minlength=3).tolist(), strict=True)
    )


def test_baselines_are_fitted_on_training_images_alone() -> None:
    rng = np.random.default_rng(0)
    n, labels = 60, np.arange(60) % 3
    pack = np.stack([np.clip(rng.normal(60 + 60 * label, 8, (16, 16)), 0, 255) for label in labels]).astype(
        np.uint8
    )
    thumbs = rng.integers(0, 255, (n, 64, 64), dtype=np.uint8)
    train, test = np.arange(0, 45), np.arange(45, 60)
    thumbs[test] = thumbs[test - 45]  # each test image equals a training image of its own class
    samples = pd.DataFrame(
        {"row": np.arange(n), "class_index": labels, "width": 100, "height": 100, "bytes": 5000, "mode": "L"}
    )
    found = {item.name: item for item in make_baselines(samples, thumbs, pack, train, test, 3)}
    assert list(found) == [
        "majority class", "nearest neighbour", "file metadata", "intensity statistics", "both shortcuts",
    ]  # fmt: skip
    called = {name: item.probabilities.argmax(axis=1) for name, item in found.items()}
    assert set(called["majority class"].tolist()) == {0}
    assert (called["nearest neighbour"] == labels[test]).all()
    assert (called["intensity statistics"] == labels[test]).mean() > 0.9
    assert (called["file metadata"] == labels[test]).mean() < 0.5
    number, weights = group_weights([str(i) for i in range(15)], 20, 0)
    rows = score_baselines(list(found.values()), labels[test], labels[test], number, weights, CLASSES)
    assert rows[0]["macro_auroc"] is None
    assert rows[0]["reasons"]["macro_auroc"]
    assert rows[3]["macro_auroc"] > 0.9
    assert make_baselines(samples, thumbs, pack, train[:0], test, 3) == []


def test_the_brief_numbers_are_those_of_the_full_ones() -> None:
    for labels, logits in (
        made_up(k=3),
        (np.array([1, 1]), np.eye(3)[[1, 0]]),
        (np.array([0, 2, 2]), np.eye(3)[[0, 2, 1]]),
    ):
        full, brief = (
            score(labels, probabilities(logits), CLASSES) for score in (classification_metrics, brief_metrics)
        )
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc"):
            assert brief[name] == full[name], name
        assert brief["support"] == {name: row["support"] for name, row in full["per_class"].items()}
        assert brief["reasons"].get("macro_auroc") == full["reasons"].get("macro_auroc")
