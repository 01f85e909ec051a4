"""What a choice between models rests on: out-of-fold predictions, else those of the validation groups, never the test split.

The out-of-fold predictions of a cross-validation stand for every checkpoint that was trained with its settings on its data:
each training image is called by a model that saw no image of its group. The validation images of a checkpoint chose its
best epoch, so that a score on them is a little too high; between models that were chosen by the same images it is fair.
"""

from __future__ import annotations

from typing import Literal

import pandas as pd

from brainmri_core.evaluation.prediction_table import read_predictions
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import follow, history, read_pointer
from brainmri_core.project.pointers import (
    CheckpointPointer,
    CrossValidationPointer,
    EvaluationPointer,
    PackPointer,
)

Basis = Literal["out_of_fold", "validation", "external_worst", "external_mean"]
BASIS_NAMES: dict[Basis, str] = {
    "out_of_fold": "out-of-fold",
    "validation": "validation",
    "external_worst": "external (worst data set)",
    "external_mean": "external (mean of data sets)",
}


def data_of(checkpoint: CheckpointPointer, layout: Layout) -> str | None:
    """Return the content hash of the pack that a checkpoint was trained on; None where the record of it is gone."""
    pack = layout.absolute(checkpoint.pack_pointer)
    return read_pointer(layout, PackPointer, pack).content_hash if pack.is_file() else None


def folds_of(checkpoint: CheckpointPointer, layout: Layout) -> CrossValidationPointer | None:
    """Return the newest cross-validation with a checkpoint's settings on its data; None where there is none on record."""
    data = data_of(checkpoint, layout)
    if checkpoint.recipe is None or data is None:
        return None
    for found in history(layout, CrossValidationPointer, checkpoint.dataset):
        pack = layout.absolute(found.pack_pointer)
        if (
            found.recipe == checkpoint.recipe
            and layout.absolute(found.predictions).is_file()
            and pack.is_file()
            and read_pointer(layout, PackPointer, pack).content_hash == data
        ):
            return found
    return None


def folds_of_both(
    one: CheckpointPointer, other: CheckpointPointer, layout: Layout
) -> tuple[CrossValidationPointer, CrossValidationPointer] | None:
    """Return the cross-validations by which two checkpoints are compared, or None where folds cannot tell them apart.

    Two trainings with the same settings share their folds; folds of other data, or predicted otherwise, do not compare.
    """
    first, second = folds_of(one, layout), folds_of(other, layout)
    if first is None or second is None or first.pointer_path == second.pointer_path:
        return None
    packs = [follow(layout, PackPointer, item.pack_pointer).content_hash for item in (first, second)]
    alike = packs[0] == packs[1] and first.inference == second.inference is not None
    return (first, second) if alike else None


def predictions_for(
    basis: Basis, found: EvaluationPointer | CrossValidationPointer, layout: Layout
) -> tuple[pd.DataFrame, list[str]]:
    """Read the predictions that a choice may rest on, sorted by path, and the class names.

    Parameters
    ----------
    basis : {"out_of_fold", "validation"}
        Of a cross-validation every row counts; of an evaluation the rows of the validation groups.
    found : pointer
        A cross-validation, or an evaluation.
    """
    table, classes = read_predictions(layout.absolute(found.predictions))
    if basis == "validation":
        table = table[table["split"] == "validation"]
    return table.sort_values("path", ignore_index=True), classes


def same_images(ours: pd.DataFrame, theirs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of both prediction tables for the images that are in both with the same class and group."""
    keys = ["path", "class_index", "group"]
    common = ours[keys].merge(theirs[keys], on=keys)["path"]
    first, second = (
        table[table["path"].isin(common)].sort_values("path", ignore_index=True) for table in (ours, theirs)
    )
    return first, second
