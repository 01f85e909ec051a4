"""Regression: whether a checkpoint is significantly worse than its predecessor on images that neither was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brainmri_core.config.evaluation import EvaluateConfig
from brainmri_core.evaluation.paired import paired_macro_f1
from brainmri_core.evaluation.selection import BASIS_NAMES, Basis, folds_of_both, predictions_for, same_images
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import follow
from brainmri_core.project.pointers import CheckpointPointer, EvaluationPointer
from brainmri_core.splitting.assignment import independent_units


@dataclass(frozen=True)
class Regression:
    """Macro F1 of a checkpoint and of its predecessor on the same images.

    Attributes
    ----------
    now, before : float
        Macro F1.
    interval : list of float or None
        95% interval of now minus before.
    images : int
        Number of images.
    basis : str
        Which predictions were compared.
    """

    now: float
    before: float
    interval: list[float] | None
    images: int
    basis: Basis = "validation"

    @property
    def worse(self) -> bool:
        """Whether the whole interval is below zero."""
        return self.interval is not None and self.interval[1] < 0

    @property
    def images_of(self) -> str:
        """Which images these are, in words."""
        return BASIS_NAMES[self.basis]


def regression(
    config: EvaluateConfig, before: EvaluationPointer, now: EvaluationPointer, layout: Layout
) -> Regression | None:
    """Compare two evaluated checkpoints of the same data without using the test split.

    Parameters
    ----------
    config : EvaluateConfig
        Resamples and seed.
    before, now : EvaluationPointer
        Evaluations of two checkpoints that were trained on the same pack.
    layout : Layout
        The project root.

    Returns
    -------
    Regression or None
        On out-of-fold predictions if both trainings have them, else on the common validation images. None if there are
        none, or if inference or classes differ.
    """
    folds = None
    if now.checkpoint_pointer is not None and before.checkpoint_pointer is not None:
        new, old = (
            follow(layout, CheckpointPointer, path)
            for path in (now.checkpoint_pointer, before.checkpoint_pointer)
        )
        folds = folds_of_both(new, old, layout)
    basis: Basis = "validation" if folds is None else "out_of_fold"
    if folds is None and now.inference != before.inference:
        return None
    (ours, classes), (theirs, known) = (
        predictions_for(basis, found, layout) for found in folds or (now, before)
    )
    ours, theirs = same_images(ours, theirs)
    if classes != known or not len(ours):
        return None
    current, previous, difference = paired_macro_f1(
        ours["class_index"].to_numpy(np.int64),
        ours["predicted_index"].to_numpy(np.int64),
        theirs["predicted_index"].to_numpy(np.int64),
        independent_units(ours),
        classes,
        resamples=config.bootstrap_resamples,
        seed=config.data.resolved_seed,
    )
    return Regression(current, previous, difference, len(ours), basis)
