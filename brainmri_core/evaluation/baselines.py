"""Baselines: the scores of simpler rules on the same test images, and the model's gain over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from brainmri_core.arrays import F32, F64, I64, U8
from brainmri_core.copies.lookup import nearest_neighbour_baseline
from brainmri_core.evaluation.bootstrap import UNDEFINED, interval, weighted_metrics
from brainmri_core.evaluation.metrics import brief_metrics
from brainmri_core.images.statistics import intensity_statistics, to_gray
from brainmri_core.validation.shortcuts import metadata_features, shortcut_baseline

SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc")
_CHUNK = 256


@dataclass(frozen=True)
class Baseline:
    """One rule's class probabilities for the test images.

    Attributes
    ----------
    name, meaning : str
        The rule, and its description.
    probabilities : numpy.ndarray
        float64 ``(N, K)``.
    ranks : bool
        Whether the probabilities rank images; False for rules that only vote for a class.
    """

    name: str
    meaning: str
    probabilities: F64
    ranks: bool


def make_baselines(
    samples: pd.DataFrame, thumbs: U8, pack: U8, train: I64, test: I64, num_classes: int
) -> list[Baseline]:
    """Fit the baselines on the training split and apply them to test images.

    Parameters
    ----------
    samples : pandas.DataFrame
        The sample table: row, class_index, width, height, bytes, mode.
    thumbs : numpy.ndarray
        uint8 ``(len(samples), 64, 64)``.
    pack : numpy.ndarray
        The packed pixels, uint8 ``(M, S, S)`` or ``(M, S, S, 3)``.
    train, test : numpy.ndarray
        int64 positions in `samples`.
    num_classes : int
        Number of classes K.

    Returns
    -------
    list of Baseline
        Majority class, 1-nearest neighbour on pixels, and small models on file metadata, on intensity statistics and on
        both; empty without training images.
    """
    if not len(train) or not len(test):
        return []
    labels = samples["class_index"].to_numpy(np.int64)
    common = np.bincount(labels[train], minlength=num_classes).argmax()
    nearest = nearest_neighbour_baseline(thumbs[train], labels[train], thumbs[test])
    rows = samples["row"].to_numpy(np.int64)
    metadata = metadata_features(samples)
    intensity = np.zeros((len(samples), 0))
    used = np.concatenate([train, test])
    parts = [
        intensity_statistics(to_gray(pack[rows[used[start : start + _CHUNK]]]))
        for start in range(0, len(used), _CHUNK)
    ]
    stacked = np.concatenate(parts)
    intensity = np.zeros((len(samples), stacked.shape[1]))
    intensity[used] = stacked
    features = {
        "file metadata": (metadata, "a small model that sees width, height, file size and pixel mode only"),
        "intensity statistics": (intensity, "a small model that sees ten statistics of the gray levels only"),
        "both shortcuts": (
            np.concatenate([metadata, intensity], axis=1),
            "a small model that sees file metadata and intensity statistics only",
        ),
    }
    votes = np.eye(num_classes)
    made = [
        Baseline("majority class", "always the commonest class of the training split", votes[[common] * len(test)], False),
        Baseline("nearest neighbour", "the class of the training image with the most similar pixels", votes[nearest], False),
    ]  # fmt: skip
    for name, (columns, meaning) in features.items():
        shares = shortcut_baseline(columns[train], labels[train], columns[test], num_classes=num_classes)
        made.append(Baseline(name, meaning, shares, True))
    return made


def score_baselines(
    baselines: Sequence[Baseline],
    labels: I64,
    predicted: I64,
    number: I64,
    weights: F32,
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """Score baselines and compare each with the model on the same bootstrap resamples.

    Parameters
    ----------
    baselines : sequence of Baseline
        From `make_baselines`.
    labels, predicted : numpy.ndarray
        int64 ``(N,)``: the true classes and the model's predictions.
    number, weights : numpy.ndarray
        From `bootstrap.group_weights`.
    classes : sequence of str
        Class names.

    Returns
    -------
    list of dict
        name, meaning, the `SCORES`, ``macro_f1_interval``, ``macro_f1_gain`` (the model's macro F1 minus the baseline's)
        and its interval, ``beaten`` (yes, no, or unclear where that interval includes zero), and the ``reasons`` of null
        values.
    """
    own = weighted_metrics(labels, predicted, number, weights, classes)["macro_f1"]
    own_f1 = brief_metrics(labels, np.eye(len(classes))[predicted], classes)["macro_f1"]
    rows = []
    for baseline in baselines:
        scores = brief_metrics(labels, baseline.probabilities, classes)
        called = baseline.probabilities.argmax(axis=1)
        theirs = weighted_metrics(labels, called, number, weights, classes)["macro_f1"]
        gain = own_f1 - scores["macro_f1"]
        between = interval(own - theirs) if len(own) else None
        unclear = between is not None and between[0] <= 0
        row = {
            "name": baseline.name,
            "meaning": baseline.meaning,
            **{key: scores[key] for key in SCORES},
            **({} if baseline.ranks else {"macro_auroc": None}),
            "macro_f1_interval": interval(theirs) if len(theirs) else None,
            "macro_f1_gain": gain,
            "macro_f1_gain_interval": between,
            "beaten": "no" if gain <= 0 else "unclear" if unclear else "yes",
        }
        undefined = UNDEFINED if len(theirs) else "no resamples were asked for"
        because = {"macro_auroc": scores["reasons"].get("macro_auroc", "it votes and does not rank")}
        row["reasons"] = {key: because.get(key, undefined) for key, value in row.items() if value is None}
        rows.append(row)
    return rows
