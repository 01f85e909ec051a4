"""The predictions that models are selected by: out-of-fold ones, else those on the validation groups, never the test split.

The out-of-fold predictions of a cross-validation represent every checkpoint that was trained with the same settings on the
same data: a model predicts each training image without having seen its group. The validation images of a checkpoint chose
its best epoch, so a score on them is slightly too high; between models selected on the same images the comparison is fair.
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
    """Return the content hash of the pack that a checkpoint was trained on; None if its pointer is missing."""
    pack = layout.absolute(checkpoint.pack_pointer)
    return read_pointer(layout, PackPointer, pack).content_hash if pack.is_file() else None


def folds_of(checkpoint: CheckpointPointer, layout: Layout) -> CrossValidationPointer | None:
    """Return the newest cross-validation with a checkpoint's settings on its data, or None."""
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
    """Return the cross-validations by which two checkpoints can be compared, or None.

    Two trainings with the same settings have the same cross-validation, so it cannot distinguish them. Cross-validations on
    different data, or with different inference, cannot be compared.
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
    """Read the predictions for selecting a model, sorted by path, and the class names.

    Parameters
    ----------
    basis : {"out_of_fold", "validation"}
        All rows of a cross-validation, or the rows of the validation groups of an evaluation.
    found : pointer
        A cross-validation, or an evaluation.
    layout : Layout
        The project.
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
