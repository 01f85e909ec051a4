"""The warnings of an external evaluation: what a reader must know before trusting its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pandas as pd

from brainmri_core.escaping import printable
from brainmri_core.evaluation.external_schema import ExternalMeasured
from brainmri_core.evaluation.metrics_file import FEW_UNITS
from brainmri_core.evaluation.metrics_schema import ReaderWarning, Unavailable
from brainmri_core.evaluation.taken_out import REASONS, TakenOut
from brainmri_core.learning.checkpoint import CheckpointMeta
from brainmri_core.learning.weights_package import PACKAGES

MOST = 0.5


def no_score(table: pd.DataFrame, taken: TakenOut, scored: int) -> str | None:
    """Say in one sentence why there is no image to score; None if there is one.

    Parameters
    ----------
    table : pandas.DataFrame
        The prediction table.
    taken : TakenOut
        The images that the model may have seen.
    scored : int
        Number of remaining images of a class that the model knows.
    """
    if scored:
        return None
    by_reason = ", ".join(f"{count:,} {text(name, count)}" for name, count in taken.counts().items() if count)
    if not by_reason:
        return "No image is of a class that the model knows, so that there is no score."
    gone = f"The model may have seen {len(taken.table):,} of the {len(table):,} images ({by_reason})"
    if len(taken.table) == len(table):
        return f"{gone}: nothing is left that could be scored."
    return f"{gone}, and no other is of a class that it knows: nothing is left that could be scored."


def text(reason: str, count: int) -> str:
    """Return a reason of `taken_out.REASONS` in the singular or plural."""
    words = REASONS[reason]
    if count == 1:
        return words
    return words.replace("copy of a", "copies of a").replace("shows a", "show a")


def external_warnings(
    metrics: ExternalMeasured, meta: CheckpointMeta, taken: TakenOut
) -> list[ReaderWarning]:
    """Return the warnings: ``red`` puts the result in doubt, ``amber`` limits it."""
    found: list[ReaderWarning] = []

    def add(level: Literal["red", "amber"], sentence: str) -> None:
        found.append(ReaderWarning(level=level, text=sentence))

    images, scores = metrics.images, metrics.scores
    if metrics.reason is not None:
        add("red", metrics.reason)
    if taken.obstacle is not None:
        add(
            "red",
            f"Nothing could be taken out, as {taken.obstacle}: the model may have seen any of these images.",
        )
    elif images.taken_out > MOST * images.predicted:
        add(
            "amber",
            f"The model may have seen {images.taken_out:,} of the {images.predicted:,} images, which were taken out; "
            "the rest may be unlike the whole.",
        )
    if started := _unknown_start(meta.train_config):
        add(
            "amber",
            f"The training began from the weights of {printable(started)}; what those were trained on is not known and was "
            "not taken out.",
        )
    if scores is None:
        return found
    if taken.tested:
        add(
            "amber",
            f"{taken.tested:,} of the images left are copies of the model's own test images or show their patients: it has "
            "not learnt from them, but they are in both scores.",
        )
    if unknown := scores.patients.images_unknown:
        add(
            "amber",
            f"The patient of {unknown:,} of the {images.scored:,} images scored is unknown: some may show people of the "
            "training images on other slices than those, which no search finds.",
        )
    if absent := [name for name in metrics.common_classes if not scores.per_class[name].support]:
        add("amber", f"No image of {', '.join(absent)} is left; averages are over the other classes.")
    if scores.n_units < FEW_UNITS:
        add(
            "amber",
            f"Only {scores.n_units} independent patients or groups are left; the intervals are rough.",
        )
    if isinstance(metrics.comparison, Unavailable):
        add(
            "amber",
            f"There is no comparison with the model's own test images: {metrics.comparison.reason}.",
        )
    return found


def _unknown_start(train_config: Mapping[str, Any]) -> str | None:
    """Return the file or package of a training's first weights, unless they are known to be of ImageNet."""
    model = train_config.get("model")
    if not isinstance(model, dict):
        return None
    package = model.get("weights_package")
    started = model.get("weights_file") or (None if package in PACKAGES else package)
    return None if started is None else str(started)
