"""Subsets: the scores of a model on parts of the test split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from brainmri_core.arrays import F64, I64, Mask
from brainmri_core.copies.leaks import find_leaks, find_twins, patient_twins
from brainmri_core.evaluation.bootstrap import UNDEFINED, group_weights, interval, weighted_metrics
from brainmri_core.evaluation.metrics import brief_metrics
from brainmri_core.evaluation.prediction_table import labels_of
from brainmri_core.project.sample_table import known_patients
from brainmri_core.splitting.assignment import independent_units

_SIZES_SHOWN = 4
_SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc")


def subset_masks(
    samples: pd.DataFrame, copies: pd.DataFrame, test: I64, planes: Mapping[str, str] | None = None
) -> Iterator[tuple[str, str, Mask]]:
    """Name the parts of the test split.

    Parameters
    ----------
    samples : pandas.DataFrame
        The sample table, with origin, split, width, height, pixel_sha256, group and, where known, patient.
    copies : pandas.DataFrame
        Confirmed copies: path_a, path_b, ncc, orientation.
    test : numpy.ndarray
        int64 positions of the test images in `samples`.
    planes : mapping or None
        Path to image plane, where known.

    Yields
    ------
    kind, name : str
        Heading and name.
    mask : numpy.ndarray
        bool ``(len(test),)``; never empty.
    """
    everything = np.ones(len(test), np.bool_)
    candidates: list[tuple[str, str, Mask]] = [("all", "whole test split", everything)]
    side, origin = samples["split"].to_numpy(object), samples["origin"].to_numpy(object)
    is_test = np.zeros(len(samples), np.bool_)
    is_test[test] = True
    tied = find_leaks(samples, copies, side == "train", is_test)
    leaked = np.isin(test, tied.loc[tied["kind"] != "same patient", "test"].to_numpy(np.int64))
    if leaked.any():
        candidates.append(("copies", "with a copy in this training split", leaked))
        candidates.append(("copies", "without a copy in this training split", ~leaked))
    known = known_patients(samples)[test] != ""
    if known.any():
        met = np.isin(test, patient_twins(samples, side == "train", is_test)["test"].to_numpy(np.int64))
        candidates.append(("patients", "patient known, also in this training split", met))
        candidates.append(("patients", "patient known, not in this training split", known & ~met))
        candidates.append(("patients", "patient unknown", ~known))
    official = origin[test] == "testing"
    if official.any():
        twins = find_twins(samples, copies, origin == "training", is_test & (origin == "testing"))
        twin = np.isin(test, twins["test"].to_numpy(np.int64))
        candidates.append(("official", "official Testing folder", official))
        candidates.append(("official", "official Testing, with a copy in official Training", official & twin))
        candidates.append(("official", "official Testing, without such a copy", official & ~twin))
        candidates.append(("official", "official Training folder", ~official))
    candidates += _sizes(samples, test)
    if planes:
        plane = np.asarray([planes.get(path, "") for path in samples["path"].to_numpy(object)[test]], object)
        candidates += [("plane", str(name), plane == name) for name in np.unique(plane.astype(str)) if name]
    for kind, name, mask in candidates:
        if mask.any():
            yield kind, name, mask


def _sizes(samples: pd.DataFrame, test: I64) -> list[tuple[str, str, Mask]]:
    width, height = samples["width"].to_numpy()[test], samples["height"].to_numpy()[test]
    size = np.asarray([f"{w} × {h}" for w, h in zip(width, height, strict=True)], object)
    counts = pd.Series(size).value_counts(sort=True)
    frequent = [str(name) for name in counts.index[:_SIZES_SHOWN] if counts[name] * 50 >= len(test)]
    if len(counts) < 2:
        return []
    found: list[tuple[str, str, Mask]] = [("size", f"{name} px", size == name) for name in frequent]
    return [*found, ("size", "other sizes", ~np.isin(size.astype(str), frequent))]


def score_subsets(
    masks: Iterator[tuple[str, str, Mask]],
    table: pd.DataFrame,
    probabilities: F64,
    classes: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Score each subset, with intervals over its own independent units.

    Parameters
    ----------
    masks : iterator
        From `subset_masks`.
    table : pandas.DataFrame
        The test rows of the prediction table.
    probabilities : numpy.ndarray
        float64 ``(N, K)`` of the same rows.
    classes : sequence of str
        K class names.
    resamples, seed : int
        Of the bootstrap; 0 resamples give no intervals.

    Returns
    -------
    list of dict
        kind, name, n_images, n_groups, n_units, support by class, accuracy, balanced_accuracy, macro_f1, macro_auroc,
        ``intervals`` of the first three scores, and the ``reasons`` of null values. Classes without an image in a subset
        are left out of its averages.
    """
    rows = []
    units = np.asarray(independent_units(table), object)
    for kind, name, mask in masks:
        labels = labels_of(table[mask])
        part = probabilities[mask]
        scores = brief_metrics(labels, part, classes)
        number, weights = group_weights(units[mask].tolist(), resamples, seed)
        values = weighted_metrics(labels, part.argmax(axis=1), number, weights, classes)
        intervals = {key: interval(values[key]) for key in _SCORES[:3]} if resamples else {}
        rows.append(
            {
                "kind": kind,
                "name": name,
                "n_images": int(mask.sum()),
                "n_groups": int(table["group"][mask].nunique()),
                "n_units": weights.shape[1],
                "support": scores["support"],
                **{key: scores[key] for key in _SCORES},
                "intervals": intervals,
                "reasons": {key: scores["reasons"][key] for key in _SCORES if scores[key] is None}
                | {f"intervals.{key}": UNDEFINED for key, found in intervals.items() if found is None},
            }
        )
    return rows
