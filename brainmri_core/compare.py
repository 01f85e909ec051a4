"""Compare two evaluations on the same test images, in pairs, so that the noise that both share cancels out.

McNemar's exact test (McNemar, Psychometrika 1947) takes single images as independent, which slices of one patient are
not. The intervals resample whole groups: rely on them.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from brainmri_core.arrays import F64
from brainmri_core.errors import ConfigError, DataError, MissingUpstreamError
from brainmri_core.evaluation.bootstrap import bootstrap_metrics, group_weights, interval
from brainmri_core.evaluation.comparison import Comparison, Difference
from brainmri_core.evaluation.prediction_table import labels_of, logits_of, read_predictions
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import history
from brainmri_core.project.pointers import EvaluationPointer
from brainmri_core.project.sample_table import known_patients
from brainmri_core.splitting.assignment import independent_units

PREDICTIONS_NAME = "predictions.parquet"
MEASURES = {
    "macro_f1": "Macro F1",
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "mcc": "Matthews correlation",
    "macro_auroc": "Macro AUROC",
    "macro_average_precision": "Macro average precision",
    "calibration.before.brier": "Brier score",
    "calibration.before.nll": "Negative log-likelihood",
}


def find_evaluation(layout: Layout, name: str) -> Path:
    """Return the folder of an evaluation.

    Parameters
    ----------
    layout : Layout
        The project.
    name : str
        A run id, or a folder that holds ``predictions.parquet``.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    ConfigError
        If that run evaluated several data sets.
    MissingUpstreamError
        If there is no such evaluation; the nearest run ids are named.
    """
    if (Path(name) / PREDICTIONS_NAME).is_file():
        return Path(name)
    known = list(history(layout, EvaluationPointer))[::-1]
    found = {pointer.dataset: pointer for pointer in known if pointer.run_id == name}  # the newest of each
    if len(found) > 1:
        raise ConfigError(
            f"The run {name!r} evaluated {', '.join(found)}; give the folder of one evaluation."
        )
    if not found:
        near = difflib.get_close_matches(name, [pointer.run_id for pointer in known], n=3, cutoff=0.3)
        hint = (
            f"did you mean {' or '.join(near)}?" if near else "give a run id or the folder of an evaluation."
        )
        raise MissingUpstreamError(f"There is no evaluation {name!r} in {layout.root}; {hint}")
    return layout.absolute(next(iter(found.values())).folder)


def compare(a: Path, b: Path, names: tuple[str, str], *, resamples: int, seed: int) -> Comparison:
    """Compare two evaluations.

    Parameters
    ----------
    a, b : pathlib.Path
        Their folders.
    names : tuple of str
        The names to show for them.
    resamples, seed : int
        Settings of the paired bootstrap, which scores both on the same draws of groups.

    Returns
    -------
    Comparison
        Differences (second minus first) with 95% intervals, McNemar's test, and the images predicted differently.

    Raises
    ------
    DataError
        If their classes, test images, labels or groups differ.
    IntegrityError
        If a prediction table is missing or damaged.
    """
    table_a, table_b, classes = _paired(a, b, names)
    labels = labels_of(table_a)
    # the older of both evaluations may have been made before the patients were known
    units = independent_units(table_a if known_patients(table_a).any() else table_b)
    number, weights = group_weights(units, resamples, seed)
    every = np.ones((1, weights.shape[1]), np.float32)
    logits = [logits_of(table, classes) for table in (table_a, table_b)]
    point = [bootstrap_metrics(labels, values, number, every, classes) for values in logits]
    drawn = [bootstrap_metrics(labels, values, number, weights, classes) for values in logits]
    wanted = MEASURES | {f"per_class.{name}.sensitivity": f"Sensitivity, {name}" for name in classes}
    differences = [
        Difference(
            key,
            title,
            float(point[0][key][0]),
            float(point[1][key][0]),
            interval(drawn[1][key] - drawn[0][key]),
        )
        for key, title in wanted.items()
        if key in point[0] and np.isfinite([point[0][key][0], point[1][key][0]]).all()
    ]
    right_a, right_b = (table["correct"].to_numpy(np.bool_) for table in (table_a, table_b))
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return Comparison(
        *names,
        classes,
        len(table_a),
        weights.shape[1],
        resamples,
        differences,
        int((right_a & right_b).sum()),
        only_a,
        only_b,
        int((~right_a & ~right_b).sum()),
        float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else None,
        _changed(table_a, table_b, classes),
    )


def _paired(a: Path, b: Path, names: tuple[str, str]) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Return the test rows of both evaluations, sorted so that each row of one is the same image in the other."""
    (table_a, classes), (table_b, others) = (read_predictions(folder / PREDICTIONS_NAME) for folder in (a, b))
    if classes != others:
        raise DataError(
            f"{names[0]} knows the classes {', '.join(classes)} and {names[1]} {', '.join(others)}; they cannot be compared."
        )
    table_a, table_b = (
        table[table["split"] == "test"].sort_values("path", kind="stable", ignore_index=True)
        for table in (table_a, table_b)
    )
    paths_a, paths_b = set(table_a["path"]), set(table_b["path"])
    if paths_a != paths_b:
        raise DataError(
            f"{names[0]} and {names[1]} have different test sets: {len(paths_a & paths_b)} images in common, "
            f"{len(paths_a - paths_b)} only in the first, {len(paths_b - paths_a)} only in the second; evaluate both on one split."
        )
    for column, what in (("class_index", "labels"), ("group", "groups")):
        if (differing := int((table_a[column] != table_b[column]).sum())) > 0:
            raise DataError(
                f"{names[0]} and {names[1]} give {differing} of their test images different {what}; evaluate both on one split."
            )
    return table_a, table_b, classes


def _changed(table_a: pd.DataFrame, table_b: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    differing = (table_a["predicted_index"] != table_b["predicted_index"]).to_numpy()
    found = pd.DataFrame(
        {
            "path": table_a["path"],
            "truth": table_a["label"],
            "a": table_a["predicted"],
            "b": table_b["predicted"],
            "prob_a": _confidence(table_a, classes),
            "prob_b": _confidence(table_b, classes),
        }
    )[differing]
    order = np.argsort(-np.maximum(found["prob_a"], found["prob_b"]).to_numpy(), kind="stable")
    return found.iloc[order].reset_index(drop=True)


def _confidence(table: pd.DataFrame, classes: Sequence[str]) -> F64:
    shares = table[[f"prob_{name}" for name in classes]].to_numpy(np.float64)
    return np.asarray(shares.max(axis=1), np.float64)
