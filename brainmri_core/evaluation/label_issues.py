"""Possible label errors by confident learning (Northcutt, Jiang and Chuang, JAIR 2021), for a person to review."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from brainmri_core.arrays import F64, U8, Mask
from brainmri_core.evaluation.metrics import no_tumour_index
from brainmri_core.pictures.thumbnails import Sheet, to_rgb
from brainmri_core.project.sample_table import FOLD_REASON, known_patients

_COLUMNS, _ROWS = 8, 6

ISSUE_COLUMNS = (
    "rank",
    "path",
    "group",
    "split",
    "label",
    "suggested",
    "prob_label",
    "prob_suggested",
    "margin",
    "patient_has_both",
)


def label_issues(table: pd.DataFrame, probabilities: F64, classes: Sequence[str]) -> pd.DataFrame:
    """Rank images whose label the model confidently disputes.

    The threshold of a class is its mean probability on the images with that label (the confident joint). An image is a
    candidate if the most probable of the classes above their threshold is not its label.

    A patient hardly ever has two kinds of tumour. So where the images of a known patient carry several classes, less
    evidence is enough: an image is a candidate if another class of its patient is more probable than its label. These
    candidates come first. A slice without a tumour says nothing about the others of its patient.

    Parameters
    ----------
    table : pandas.DataFrame
        N rows with path, group, split, label, class_index and, where known, patient, of images that the model was not
        trained on.
    probabilities : numpy.ndarray
        float64 ``(N, K)`` of the same rows.
    classes : sequence of str
        K class names.

    Returns
    -------
    pandas.DataFrame
        Columns `ISSUE_COLUMNS`, most disputed first: those whose patient has images of both classes
        (``patient_has_both``), then by ``margin``, prob_label - prob_suggested.
    """
    labels = table["class_index"].to_numpy(np.int64)
    own = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=len(classes))
    sums = np.bincount(labels, weights=own, minlength=len(classes))
    threshold = np.divide(sums, counts, out=np.full(len(classes), np.inf), where=counts > 0)
    confident = np.where(probabilities >= threshold, probabilities, -1.0)
    suggested = confident.argmax(axis=1)
    disputed = (confident.max(axis=1) > 0) & (suggested != labels)
    of_patient = np.where(_other_classes_of_patient(table, classes), probabilities, -1.0)
    both = of_patient.max(axis=1) > own
    suggested = np.where(both, of_patient.argmax(axis=1), suggested)
    rows = np.flatnonzero(disputed | both)
    other = probabilities[rows, suggested[rows]]
    found = table.iloc[rows][["path", "group", "split", "label"]].reset_index(drop=True)
    found["suggested"] = np.asarray(classes, object)[suggested[rows]]
    found["prob_label"], found["prob_suggested"] = own[rows], other
    found["margin"] = own[rows] - other
    found["patient_has_both"] = both[rows]
    found = found.sort_values(
        ["patient_has_both", "margin", "path"], ascending=[False, True, True], ignore_index=True
    )
    found["rank"] = np.arange(1, len(found) + 1)
    return found[list(ISSUE_COLUMNS)]


def _other_classes_of_patient(table: pd.DataFrame, classes: Sequence[str]) -> Mask:
    """Say for each image and class ``(N, K)`` whether other images of its known patient show that other kind of tumour."""
    labels, patients = table["class_index"].to_numpy(np.int64), known_patients(table)
    number, names = pd.factorize(patients)
    has = np.zeros((len(names), len(classes)), np.bool_)
    has[number, labels] = True
    has[names == ""] = False
    others: Mask = has[number]
    others[np.arange(len(labels)), labels] = False
    healthy = no_tumour_index(classes)
    if healthy is not None:
        others[:, healthy] = False
        others[labels == healthy] = False
    return others


def known_error_ranks(issues: pd.DataFrame, known: Mapping[str, str]) -> pd.DataFrame:
    """Return the ranks of known label errors in a list of candidates.

    Parameters
    ----------
    issues : pandas.DataFrame
        From `label_issues`.
    known : mapping
        Path to the right label, for images that were in the table of `label_issues`.

    Returns
    -------
    pandas.DataFrame
        A row per known error, best rank first: ``path``, ``right`` label, ``rank`` (missing if it is not a candidate) and
        ``suggested`` label.
    """
    table = pd.DataFrame({"path": list(known), "right": list(known.values())})
    found = table.merge(issues[["path", "rank", "suggested"]], on="path", how="left").astype(
        {"rank": "Int64"}
    )
    return found.sort_values(["rank", "path"], ignore_index=True)


def issue_sheet(issues: pd.DataFrame, samples: pd.DataFrame, pack: U8) -> Image.Image:
    """Draw the candidates as thumbnails with file, label and suggested class, most disputed first.

    Parameters
    ----------
    issues : pandas.DataFrame
        From `label_issues`, at least one row; the first 48 are drawn.
    samples : pandas.DataFrame
        path and row.
    pack : numpy.ndarray
        uint8 ``(N, S, S)`` or ``(N, S, S, 3)``, the pack to whose rows ``row`` refers.
    """
    shown = issues.head(_COLUMNS * _ROWS).to_dict("records")
    rows = samples.set_index("path")["row"]
    sheet = Sheet(
        "Labels that look wrong, most disputed first", min(len(shown), _COLUMNS), -(-len(shown) // _COLUMNS)
    )
    for place, item in enumerate(shown):
        lines = [
            Path(item["path"]).name,
            f"is {item['label']} {100 * item['prob_label']:.1f}%",
            f"or {item['suggested']} {100 * item['prob_suggested']:.1f}%",
        ]
        sheet.place(*divmod(place, _COLUMNS), to_rgb(pack[rows[item["path"]]]), lines)
    for row in range(-(-len(shown) // _COLUMNS)):
        sheet.heading(row, f"from {row * _COLUMNS + 1}")
    return sheet.image


def split_without(samples: pd.DataFrame, issues: pd.DataFrame) -> pd.DataFrame:
    """Return the split, with the candidates excluded, in the form that ``split.strategy: predefined`` reads.

    Parameters
    ----------
    samples : pandas.DataFrame
        The whole sample table, or a fold's: path, split, group, reason.
    issues : pandas.DataFrame
        With the column path: the images to exclude.

    Returns
    -------
    pandas.DataFrame
        Columns path, split, group.
    """
    result = samples[["path", "split", "group"]].copy()
    held_back = samples["reason"] == FOLD_REASON
    if held_back.any():  # this is the table of a fold, whose test images are training images of the split
        result.loc[result["split"] == "test", "split"] = "train"
        result.loc[held_back, "split"] = "test"
    result.loc[result["path"].isin(issues["path"]), "split"] = "excluded"
    return result
