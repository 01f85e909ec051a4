"""Drift: whether new images still look like the images that a model was validated on.

The threshold comes from the validation images themselves: random parts of them, in whole groups, are compared with the rest,
and the threshold is a value that few of these parts exceed.
"""

from __future__ import annotations

import math

import numpy as np
from pydantic import BaseModel, ConfigDict

from brainmri_core.evaluation.discrepancy import GroupSums, Kernel, chance_discrepancies, number_groups
from brainmri_core.evaluation.label_shift import LabelShift
from brainmri_core.evaluation.shift import KINDS, ImageSet, ShiftReport

DRAWS = 1000
MIN_GROUPS = 10
"""Least number of independent groups of validation images for a threshold."""

LEAST = 1e-3
"""Squared discrepancy below which nothing counts as drift, however large the sets; about that of a set with 3% images from
another source."""


class DriftMeasure(BaseModel):
    """The drift in one kind of features.

    Attributes
    ----------
    squared, threshold : float or None
        Squared maximum mean discrepancy from the validation images, and its upper limit.
    reason : str or None
        Why it was not measured; None if it was.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    squared: float | None
    threshold: float | None
    reason: str | None = None

    @property
    def exceeded(self) -> bool:
        """Whether the discrepancy is above its threshold."""
        return self.squared is not None and self.threshold is not None and self.squared > self.threshold


class DriftReport(BaseModel):
    """The drift of images from the model's validation images.

    Attributes
    ----------
    measures : tuple of DriftMeasure
        One for each kind of features.
    shift : ShiftReport or None
        A further description: p values, features, and a model that distinguishes the two sets.
    labels : LabelShift or None
        Estimated shares of the classes.
    reason : str or None
        Why nothing was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    measures: tuple[DriftMeasure, ...] = ()
    shift: ShiftReport | None = None
    labels: LabelShift | None = None
    reason: str | None = None

    @property
    def drifted(self) -> tuple[str, ...]:
        """The kinds of features above their thresholds."""
        return tuple(item.kind for item in self.measures if item.exceeded)

    @property
    def measured(self) -> bool:
        """Whether any kind of features was compared."""
        return any(item.squared is not None for item in self.measures)

    @property
    def unmeasured(self) -> dict[str, str]:
        """The kinds of features that were not measured, each with the reason."""
        if self.reason is not None:
            return dict.fromkeys(KINDS, self.reason)
        return {item.kind: item.reason for item in self.measures if item.reason is not None}

    def sentence(self) -> str:
        """Summarise the result, and what could not be measured."""
        sentences = []
        if self.drifted:
            sentences.append(
                f"The images are unlike the model's validation images in {', '.join(self.drifted)}: its scores, "
                "probabilities and limits may not hold for them."
            )
        elif self.measured:
            sentences.append("The images look like the model's validation images.")
        reasons: dict[str, list[str]] = {}
        for kind, reason in self.unmeasured.items():
            reasons.setdefault(reason, []).append(kind)
        sentences += [f"Not measured in {', '.join(kinds)}: {reason}." for reason, kinds in reasons.items()]
        if self.drifted and self.shift is not None:
            sentences.append(self.shift.summary)
        return " ".join(sentences)


def measure_drift(
    reference: ImageSet,
    other: ImageSet,
    *,
    false_alarms: float,
    seed: int,
    named: str = "the validation images",
) -> tuple[DriftMeasure, ...]:
    """Measure the drift of images from a reference, such as the validation images of a model.

    Parameters
    ----------
    reference : ImageSet
        The reference, with its groups.
    other : ImageSet
        The new images. The threshold is computed for parts of the reference with as many images from as many groups, at
        most half of the reference. Where the groups of the new images are unknown, they are assumed to be like the
        reference's.
    false_alarms : float
        Share of such parts of the reference that may exceed a threshold, for all kinds of features together.
    seed : int
        Seed of the draws, and of the sample of a large set.
    named : str
        Name of the reference in a reason.

    Returns
    -------
    tuple of DriftMeasure
        One for each of `KINDS`.
    """
    first, second = reference.part(seed), other.part(seed)
    return tuple(_measure(kind, first, second, false_alarms / len(KINDS), seed, named) for kind in KINDS)


def _measure(
    kind: str, first: ImageSet, second: ImageSet, level: float, seed: int, named: str
) -> DriftMeasure:
    part = _part_groups(first, second)
    reason = _not_measurable(kind, first, second, named)
    if reason is None and math.comb(first.n_groups, part) * level < 1:
        reason = (
            f"{len(second)} images are too few to tell drift from chance by the {first.n_groups} patients or groups of "
            f"{named}"
        )
    if reason is not None:
        return DriftMeasure(kind=kind, squared=None, threshold=None, reason=reason)
    here, there = first.points(kind), second.points(kind)
    assert here is not None and there is not None
    # The kernel depends only on the reference, so that the results of different days can be compared.
    kernel = Kernel.fit(here, standardise=kind != "embedding")
    own = GroupSums.of(here, number_groups(first.groups), kernel)
    chance = chance_discrepancies(own, part, DRAWS, seed)
    numbers = [number_groups(first.groups), first.n_groups + np.arange(len(second))]
    sums = GroupSums.of(np.concatenate([here, there]), np.concatenate(numbers), kernel)
    side = np.arange(len(sums.sizes)) >= first.n_groups
    return DriftMeasure(
        kind=kind,
        squared=float(sums.discrepancy(side[None])[0]),
        threshold=max(float(np.quantile(chance, 1 - level, method="higher")), LEAST),
    )


def _not_measurable(kind: str, first: ImageSet, second: ImageSet, named: str) -> str | None:
    if kind == "embedding" and (first.embeddings is None or second.embeddings is None):
        return "there are no embeddings of one of the sets"
    if len(second) < 2:
        return "there are fewer than two images"
    if first.n_groups < MIN_GROUPS:
        return f"{named} are of {first.n_groups} patients or groups, fewer than {MIN_GROUPS}"
    return None


def _part_groups(reference: ImageSet, other: ImageSet) -> int:
    """Return how many groups of the reference hold about as many images as `other` has.

    It is at most the number of groups of `other` and half of those of the reference. It is at least 2, or 1 where every group
    has two images or more, since a discrepancy needs two images.
    """
    share = min(len(other) / len(reference), 0.5)
    groups = min(round(share * reference.n_groups), other.n_groups, reference.n_groups // 2)
    least = 1 if np.bincount(number_groups(reference.groups)).min() > 1 else 2
    return max(groups, least)
