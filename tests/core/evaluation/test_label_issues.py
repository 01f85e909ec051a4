from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from brainmri_core.evaluation.label_issues import (
    ISSUE_COLUMNS,
    known_error_ranks,
    label_issues,
    split_without,
)
from tests.core.evaluation.metrics_case import CLASSES, table_of


def test_candidates_by_hand() -> None:
    # thresholds, the mean probability of each label among its images: a .6, b .7, c .8
    shares = np.array(
        [
            [0.9, 0.05, 0.05],  # a, agreed
            [0.8, 0.1, 0.1],  # a, agreed
            [0.1, 0.75, 0.15],  # a, b reaches its threshold: disputed
            [0.6, 0.2, 0.2],  # a, agreed, exactly at the threshold
            [0.2, 0.7, 0.1],  # b, agreed, exactly at the threshold
            [0.1, 0.2, 0.7],  # c, below its own threshold, nobody else reaches theirs
            [0.05, 0.05, 0.9],  # c, agreed
        ]
    )
    labels = np.array([0, 0, 0, 0, 1, 2, 2])
    found = label_issues(table_of(labels, np.log(shares), CLASSES), shares, CLASSES)
    assert found.columns.tolist() == list(ISSUE_COLUMNS)
    assert found[["path", "label", "suggested"]].to_numpy().tolist() == [
        ["test/002.png", "glioma", "notumor"]
    ]
    assert found["margin"].tolist() == pytest.approx([0.1 - 0.75])


def test_swapped_labels_are_found_and_come_first() -> None:
    rng = np.random.default_rng(4)
    truth = rng.integers(0, 3, 300)
    shares = rng.dirichlet([1, 1, 1], 300) * 0.04 + 0.96 * np.eye(3)[truth]
    swapped = np.concatenate([np.flatnonzero(truth == k)[10:14] for k in range(3)])
    labels = truth.copy()
    labels[swapped] = (truth[swapped] + 1) % 3
    found = label_issues(table_of(labels, np.log(shares), CLASSES), shares, CLASSES)
    assert {int(path[5:8]) for path in found["path"]} == set(swapped.tolist())
    assert found["rank"].tolist() == list(range(1, 13))
    assert found["margin"].is_monotonic_increasing
    assert (
        found["suggested"].map(CLASSES.index).to_numpy() == truth[[int(p[5:8]) for p in found["path"]]]
    ).all()


def test_a_class_without_an_image_is_never_suggested() -> None:
    shares = np.array([[0.1, 0.1, 0.8], [0.7, 0.2, 0.1], [0.2, 0.7, 0.1]])
    found = label_issues(table_of(np.array([0, 0, 1]), np.log(shares), CLASSES), shares, CLASSES)
    assert "pituitary" not in found["suggested"].tolist()


def test_the_split_without_them_changes_nothing_else() -> None:
    samples = pd.DataFrame(
        {
            "path": ["a", "b", "c"],
            "split": ["train", "test", "excluded"],
            "group": ["1", "2", "3"],
            "row": [0, 1, -1],
            "reason": ["", "", "unreadable"],
        }
    )
    found = split_without(samples, pd.DataFrame({"path": ["b"]}))
    assert found.to_dict("list") == {
        "path": ["a", "b", "c"],
        "split": ["train", "excluded", "excluded"],
        "group": ["1", "2", "3"],
    }
    assert samples["split"].tolist() == ["train", "test", "excluded"]


def test_known_errors_have_ranks_and_what_is_no_candidate_has_none() -> None:
    issues = pd.DataFrame({"path": ["b", "x", "a"], "rank": [1, 2, 3], "suggested": ["u", "v", "w"]})
    ranks = known_error_ranks(issues, {"a": "w", "c": "w", "b": "w"})
    assert ranks["path"].tolist() == ["b", "a", "c"]
    assert ranks["rank"].isna().tolist() == [False, False, True]
    assert ranks["rank"].tolist()[:2] == [1, 3]
    assert (ranks["suggested"] == ranks["right"]).tolist() == [False, True, False]


def test_a_patient_with_two_kinds_of_tumour_comes_first_and_on_less_evidence() -> None:
    # thresholds: glioma .725, pituitary .675: no image reaches that of another class
    labels = np.array([0, 0, 0, 0, 2, 2])
    shares = np.array(
        [
            [0.9, 0.05, 0.05],
            [0.5, 0.4, 0.1],  # its patient also has a slice without a tumour, which says nothing
            [0.8, 0.1, 0.1],
            [0.7, 0.1, 0.2],  # of the patient with two tumours, but its label is the more probable
            [0.4, 0.25, 0.35],  # of the same patient
            [0.0, 0.0, 1.0],
        ]
    )
    table = table_of(labels, np.log(shares + 1e-9), CLASSES)
    assert not len(label_issues(table, shares, CLASSES))
    found = label_issues(table.assign(patient=["a", "b", "", "c", "c", "d"]), shares, CLASSES)
    assert found[["path", "suggested", "patient_has_both"]].to_numpy().tolist() == [
        ["test/004.png", "glioma", True]
    ]


def test_a_slice_without_a_tumour_is_no_reason_to_doubt_the_others_of_its_patient() -> None:
    labels = np.array([0, 1, 0, 1])
    shares = np.array([[0.4, 0.5, 0.1], [0.3, 0.65, 0.05], [0.9, 0.0, 0.1], [0.0, 0.9, 0.1]])
    table = table_of(labels, np.log(shares + 1e-9), CLASSES).assign(patient=["a", "a", "b", "c"])
    assert not len(label_issues(table, shares, CLASSES))


def test_a_patient_with_two_tumours_precedes_what_is_disputed_more() -> None:
    labels = np.array([0, 0, 0, 2, 2, 2])
    shares = np.array(
        [
            [0.9, 0.0, 0.1],
            [0.4, 0.0, 0.6],  # of the patient with two tumours
            [0.0, 0.0, 1.0],  # disputed, of another patient
            [0.1, 0.0, 0.9],
            [0.2, 0.0, 0.8],
            [0.2, 0.0, 0.8],
        ]
    )
    table = table_of(labels, np.log(shares + 1e-9), CLASSES)
    plain = label_issues(table, shares, CLASSES)
    known = label_issues(table.assign(patient=["a", "b", "c", "b", "d", "e"]), shares, CLASSES)
    assert plain["path"].tolist() == ["test/002.png"]
    assert known["path"].tolist() == ["test/001.png", "test/002.png"]
    assert known["rank"].tolist() == [1, 2]
