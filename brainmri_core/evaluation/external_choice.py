"""Comparison of models by their external evaluations: by the worst score over data sets, or by the mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from brainmri_core.arrays import F64
from brainmri_core.evaluation.bootstrap import interval
from brainmri_core.evaluation.external_schema import read_external_metrics
from brainmri_core.evaluation.paired import macro_f1_draws
from brainmri_core.evaluation.prediction_table import read_predictions
from brainmri_core.evaluation.selection import same_images
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import history
from brainmri_core.project.pointers import CheckpointPointer, ExternalEvaluationPointer
from brainmri_core.splitting.assignment import independent_units

ExternalBasis = Literal["external_worst", "external_mean"]
Evaluations = dict[str, ExternalEvaluationPointer]


@dataclass(frozen=True)
class ExternalComparison:
    """Two models on the images of the data sets on which both were evaluated.

    Attributes
    ----------
    images : int
        Number of images.
    ours, theirs : float
        Worst or mean macro F1 over the data sets.
    interval : list of float or None
        95% interval of ours minus theirs.
    """

    images: int
    ours: float
    theirs: float
    interval: list[float] | None


def external_evaluations(checkpoint: CheckpointPointer, layout: Layout) -> Evaluations:
    """Return the newest external evaluation of a checkpoint on each data set.

    Evaluations without a score are left out, as are those in which the images that the model has seen are unknown.
    """
    found: Evaluations = {}
    for pointer in history(layout, ExternalEvaluationPointer):
        if (
            pointer.checkpoint_sha256 == checkpoint.checkpoint_sha256
            and pointer.reason is None
            and pointer.dataset not in found
            and layout.absolute(pointer.predictions).is_file()
            and read_external_metrics(layout.absolute(pointer.metrics)).taken_out.obstacle is None
        ):
            found[pointer.dataset] = pointer
    return dict(sorted(found.items()))


def together(scores: F64, basis: ExternalBasis) -> F64:
    """Return the worst or the mean over the data sets: float64 ``(S, ...)`` to ``(...)``."""
    result: F64 = scores.min(axis=0) if basis == "external_worst" else scores.mean(axis=0)
    return result


def compare_elsewhere(
    ours: Mapping[str, ExternalEvaluationPointer],
    theirs: Mapping[str, ExternalEvaluationPointer],
    basis: ExternalBasis,
    layout: Layout,
    *,
    resamples: int,
    seed: int,
) -> ExternalComparison | str:
    """Compare two models on the same images of the data sets on which both were evaluated.

    Parameters
    ----------
    ours, theirs : mapping
        From `external_evaluations`.
    basis : str
        ``external_worst`` compares each model's worst macro F1, possibly on different data sets; ``external_mean``
        compares the means, with the same weight for each data set.
    layout : Layout
        The project.
    resamples, seed : int
        Of the bootstrap. Patients or groups are drawn separately in each data set, and both models are scored on the same
        draws.

    Returns
    -------
    ExternalComparison or str
        The comparison, or the reason why there is none.
    """
    common = sorted(ours.keys() & theirs.keys())
    images, drawn = 0, []
    for place, name in enumerate(common):
        (first, classes), (second, known) = (
            read_predictions(layout.absolute(item.predictions)) for item in (ours[name], theirs[name])
        )
        if classes != known:
            return "they know other classes"
        counted = [
            table[(table["taken_out"] == "") & (table["class_index"] >= 0)] for table in (first, second)
        ]
        first, second = same_images(*counted)
        if not len(first):
            return f"neither was measured on an image of {name} that the other was measured on"
        images += len(first)
        calls = [table["predicted_index"].to_numpy(np.int64) for table in (first, second)]
        labels, units = first["class_index"].to_numpy(np.int64), independent_units(first)
        drawn.append(macro_f1_draws(labels, calls, units, classes, resamples=resamples, seed=seed + place))
    if not drawn:
        return "they were not both measured on another data set"
    one, other = (together(np.stack([draws[model] for draws in drawn]), basis) for model in (0, 1))
    return ExternalComparison(images, float(one[0]), float(other[0]), interval(one[1:] - other[1:]))
