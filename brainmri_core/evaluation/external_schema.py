"""The schema of an external evaluation's ``metrics.json``; the fields are in the order in which they are written."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from brainmri_core.evaluation.label_shift import LabelShift
from brainmri_core.evaluation.metrics_schema import (
    Bootstrap,
    CalibrationScores,
    Identity,
    Interval,
    Part,
    Patients,
    ReaderWarning,
    Reasons,
    Scores,
    Subset,
    TumourVersusNone,
    Unavailable,
)
from brainmri_core.evaluation.shift import ShiftReport
from brainmri_core.system.json_models import read_model


class ImageCounts(Part):
    """All images, and those of them that were taken out, are of a class that the model never learnt, or are scored."""

    predicted: int
    taken_out: int
    never_learnt: int
    scored: int


class TakenOutCounts(Part):
    """The images taken out by reason, or what made that impossible.

    `left_but_in_own_test` counts images left that are copies of the model's own test images or show their patients.
    """

    by_reason: dict[str, int]
    obstacle: str | None
    left_but_in_own_test: int


class PartAccuracy(Part):
    """The accuracy on the scored images that are flagged, or on those that are not."""

    images: int
    accuracy: float | None
    interval: Interval | None


class UnlearntClass(Part):
    """The images of a class that the model never learnt: their number by predicted class, and the share flagged."""

    images: int
    called: dict[str, int]
    flagged_share: float | None
    interval: Interval | None


class FlagRates(Part):
    """The shares of the scored images and of the model's own test images above the outlier score's threshold.

    Without a threshold they are None, with a `reason`.
    """

    threshold: float | None
    flagged_share: float | None
    interval: Interval | None
    own_flagged_share: float | None
    flagged: PartAccuracy
    unflagged: PartAccuracy
    never_learnt: dict[str, UnlearntClass]
    reason: str | None = None


class CarriedCalibration(Part):
    """Calibration before and after dividing the logits by the temperature of the model's own data."""

    temperature: float | None
    before: CalibrationScores
    after: CalibrationScores | None
    reason: str | None = None


class ExternalScores(Scores):
    """The scores on the images of classes that the model knows and that it cannot have seen."""

    reasons: Reasons
    n_groups: int
    n_units: int
    patients: Patients
    intervals: dict[str, Interval | None]
    bootstrap: Bootstrap
    calibration: CarriedCalibration
    tumour_vs_none: TumourVersusNone | Unavailable


class Difference(Part):
    """A measure on the model's own test images and on the other data set; `difference` is external minus own."""

    own: float
    external: float
    difference: float
    interval: Interval | None


class Comparison(Part):
    """The measures of the classes that both sides have; `images` and `n_units` are of the model's own test images."""

    classes: list[str]
    images: int
    n_units: int
    measures: dict[str, Difference]


class Spread(Part):
    """Mean and 95% interval over random draws."""

    mean: float
    interval: Interval | None


class Recalibration(Part):
    """The temperature fitted on `images` labelled images, and the calibration of the rest."""

    images: int
    draws: int
    temperature: Spread
    ece: Spread
    nll: Spread
    nll_gain: Spread


class NoRecalibration(Part):
    """Why so many images cannot be labelled and the rest scored."""

    images: int
    reason: str


class Prevalence(LabelShift):
    """The estimated shares of the classes, and the true ones."""

    true: dict[str, float]


class ExternalMeasured(Part):
    """Everything but the identity and the warnings."""

    left_out_if_none: ClassVar[tuple[str, ...]] = ()

    schema_version: Literal[1] = 1
    trained_on: str
    classes: list[str]
    common_classes: list[str]
    never_learnt: list[str]
    images: ImageCounts
    taken_out: TakenOutCounts
    reason: str | None
    out_of_distribution: FlagRates
    rows: list[Subset]
    scores: ExternalScores | None
    comparison: Comparison | Unavailable
    recalibration: list[Recalibration | NoRecalibration]
    shift: ShiftReport | Unavailable
    prevalence: Prevalence | Unavailable

    @property
    def measures(self) -> dict[str, Difference]:
        """The measures compared with those on the model's own test images; empty where there is no comparison."""
        return self.comparison.measures if isinstance(self.comparison, Comparison) else {}


class ExternalMetrics(ExternalMeasured, Identity):
    """The whole ``metrics.json``; pydantic puts the fields of the last base class first."""

    warnings: list[ReaderWarning]


def read_external_metrics(path: Path) -> ExternalMetrics:
    """Read the ``metrics.json`` of an external evaluation.

    Raises
    ------
    IntegrityError
        If it is damaged, or not of this version.
    """
    return read_model(
        path,
        ExternalMetrics,
        "does not hold the metrics of an external evaluation",
        "make the external evaluation again",
    )
