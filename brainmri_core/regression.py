"""Regression: is a checkpoint worse than the one before it, on the same test images and beyond noise?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brainmri_core.config.evaluation import EvaluateConfig
from brainmri_core.grouping import independent_units
from brainmri_core.layout import Layout
from brainmri_core.pointers import EvaluationPointer
from brainmri_core.reporting.paired import paired_macro_f1
from brainmri_core.reporting.predictions import read_predictions


@dataclass(frozen=True)
class Regression:
    """Macro F1 now and before on the same images, the 95% interval of the difference, and whether all of it is below zero."""

    now: float
    before: float
    interval: list[float] | None
    images: int

    @property
    def worse(self) -> bool:
        """Whether the whole interval lies below zero."""
        return self.interval is not None and self.interval[1] < 0


def regression(
    config: EvaluateConfig, before: EvaluationPointer, now: EvaluationPointer, layout: Layout
) -> Regression | None:
    """Compare two evaluations of the same test images.

    Parameters
    ----------
    config : EvaluateConfig
        Resamples and seed.
    before, now : EvaluationPointer
        Evaluations of two checkpoints.
    layout : Layout
        The project root.

    Returns
    -------
    Regression or None
        None where they measured other images or other classes.
    """
    table, classes = read_predictions(layout.absolute(now.predictions))
    earlier, known = read_predictions(layout.absolute(before.predictions))
    table, earlier = (item[item["split"] == "test"].sort_values("path") for item in (table, earlier))
    same = ["path", "class_index", "group"]
    if classes != known or not np.array_equal(table[same].to_numpy(), earlier[same].to_numpy()):
        return None
    current, previous, difference = paired_macro_f1(
        table["class_index"].to_numpy(np.int64),
        table["predicted_index"].to_numpy(np.int64),
        earlier["predicted_index"].to_numpy(np.int64),
        independent_units(table),
        classes,
        resamples=config.bootstrap_resamples,
        seed=int(config.data.seed or 0),
    )
    return Regression(current, previous, difference, len(table))
