"""The prediction table, ``predictions.parquet``: one row per image, the source of all metrics and galleries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from brainmri_core.arrays import F32, F64, I64
from brainmri_core.errors import IntegrityError
from brainmri_core.evaluation.calibration import probabilities
from brainmri_core.project.sample_table import known_patients, read_samples

PREDICTION_COLUMNS = {
    "row": "int64",
    "path": "str",
    "group": "str",
    "split": "str",
    "label": "str",
    "class_index": "int64",
    "predicted": "str",
    "predicted_index": "int64",
    "correct": "bool",
    "outlier_score": "float64",
}
"""Required columns. There are also ``patient``, which older tables lack, and for each class ``prob_<class>`` (uncalibrated
softmax) and ``logit_<class>``, float32."""


def prediction_table(
    samples: pd.DataFrame, logits: F32, classes: Sequence[str], outlier_score: F64
) -> pd.DataFrame:
    """Make the prediction table.

    Parameters
    ----------
    samples : pandas.DataFrame
        N rows: row, path, group, split, label, class_index and, where known, patient; ``split`` says ``test`` or
        ``validation``.
    logits : numpy.ndarray
        float32 ``(N, K)``.
    classes : sequence of str
        K class names by index.
    outlier_score : numpy.ndarray
        float64 ``(N,)``; NaN where there is none.
    """
    table = samples[["row", "path", "group", "split", "label", "class_index"]].reset_index(drop=True)
    table["patient"] = known_patients(samples)
    called = logits.argmax(axis=1)
    table["predicted"] = np.asarray(classes, dtype=object)[called]
    table["predicted_index"] = called.astype(np.int64)
    table["correct"] = called == table["class_index"].to_numpy()
    table["outlier_score"] = outlier_score
    shares = probabilities(logits).astype(np.float32)
    columns = {f"prob_{name}": shares[:, index] for index, name in enumerate(classes)}
    columns |= {f"logit_{name}": logits[:, index] for index, name in enumerate(classes)}
    return pd.concat([table, pd.DataFrame(columns)], axis=1)


def read_predictions(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read a prediction table and its class names in order.

    Raises
    ------
    IntegrityError
        If the file is missing, damaged or not a prediction table.
    """
    table = read_samples(path, PREDICTION_COLUMNS)
    classes = [name.removeprefix("logit_") for name in table.columns if name.startswith("logit_")]
    if len(classes) < 2 or any(f"prob_{name}" not in table for name in classes):
        raise IntegrityError(f"The prediction table {path} lacks its class columns; run evaluate again.")
    return table, classes


def logits_of(table: pd.DataFrame, classes: Sequence[str]) -> F32:
    """Return the logits ``(N, K)`` float32 of a prediction table."""
    logits: F32 = table[[f"logit_{name}" for name in classes]].to_numpy(np.float32)
    return logits


def labels_of(table: pd.DataFrame) -> I64:
    """Return the true class indices ``(N,)`` of a prediction table."""
    labels: I64 = table["class_index"].to_numpy(np.int64)
    return labels
