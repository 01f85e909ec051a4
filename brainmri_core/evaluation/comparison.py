"""Two evaluations side by side: each measure, its difference, and whether the difference is significant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

LOWER_IS_BETTER = frozenset({"calibration.before.brier", "calibration.before.nll"})


@dataclass(frozen=True)
class Difference:
    """One measure of both evaluations.

    Attributes
    ----------
    key, name : str
        Name in ``metrics.json``, and name for people.
    a, b : float
        Its values in the two evaluations.
    interval : list of float or None
        95% interval of ``b - a``; None where fewer than half of the resamples define it.
    """

    key: str
    name: str
    a: float
    b: float
    interval: list[float] | None

    @property
    def difference(self) -> float:
        """``b - a``."""
        return self.b - self.a

    @property
    def verdict(self) -> str:
        """Which evaluation is better, if the interval excludes zero."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "no difference beyond noise"
        return "B is better" if (self.interval[0] > 0) != (self.key in LOWER_IS_BETTER) else "A is better"


@dataclass(frozen=True)
class Comparison:
    """Two evaluations side by side.

    Attributes
    ----------
    name_a, name_b : str
        Names of the two evaluations.
    images, groups : int
        Size of the common test split in images and in independent units (`assignment.independent_units`).
    resamples : int
        Number of bootstrap resamples.
    differences : list of Difference
        Measures of the whole test split, then the sensitivity of each class.
    both, only_a, only_b, neither : int
        Number of images predicted correctly by both, by one, and by neither.
    p_value : float or None
        Of McNemar's exact two-sided test; None where no image is correct in only one evaluation.
    changed : pandas.DataFrame
        path, truth, a, b, prob_a, prob_b of the images with different predictions, most confident first.
    """

    name_a: str
    name_b: str
    classes: list[str]
    images: int
    groups: int
    resamples: int
    differences: list[Difference]
    both: int
    only_a: int
    only_b: int
    neither: int
    p_value: float | None
    changed: pd.DataFrame

    def record(self) -> dict[str, Any]:
        """Return all figures as plain JSON values."""
        return {
            "a": self.name_a,
            "b": self.name_b,
            "images": self.images,
            "groups": self.groups,
            "resamples": self.resamples,
            "differences": [
                {
                    "measure": item.key,
                    "a": item.a,
                    "b": item.b,
                    "difference": item.difference,
                    "interval": item.interval,
                    "verdict": item.verdict,
                }
                for item in self.differences
            ],
            "right": {
                "both": self.both,
                "only_a": self.only_a,
                "only_b": self.only_b,
                "neither": self.neither,
            },
            "mcnemar_exact_p": self.p_value,
        }
