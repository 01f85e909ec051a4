"""The schema of ``metrics.json``; ``docs/metrics.md`` describes every field.

No number is NaN or infinite. An undefined value is None, and its reason is in the ``reason`` or ``reasons`` of the same
mapping or, under its dotted name, of the whole document. The fields are in the order in which they are written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from brainmri_core.system.json_models import read_model

Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
Reasons = dict[str, str]


class Part(BaseModel):
    """Base of the document and of its parts; fields in `left_out_if_none` are written only if they have a value."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    left_out_if_none: ClassVar[tuple[str, ...]] = ("reason",)

    @model_serializer(mode="wrap")
    def _without_the_optional(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        made: dict[str, Any] = write(self)
        return {
            name: value
            for name, value in made.items()
            if value is not None or name not in self.left_out_if_none
        }


class Unavailable(Part):
    """Replaces figures that could not be computed."""

    reason: str


class ReaderWarning(Part):
    """A warning for readers: ``red`` puts the result in doubt, ``amber`` limits it."""

    level: Literal["red", "amber"]
    text: str


class Patients(Part):
    """Number of known patients, and of images with and without a known patient."""

    known: int
    images: int
    images_unknown: int


class TestPatients(Patients):
    """The patients of a test split; `in_training` counts images whose patient is in the training split, too."""

    __test__ = False  # pytest would collect any class named Test...

    in_training: int


class ClassScores(Part):
    """One class against the rest."""

    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    sensitivity: float | None
    specificity: float | None
    ppv: float | None
    npv: float | None
    auroc: float | None
    average_precision: float | None


class Bootstrap(Part):
    """How the intervals were made."""

    level: float
    resamples: int
    unit: Literal["patient", "group"]
    seed: int


class ReliabilityBin(Part):
    """Mean confidence and accuracy of the images in one bin."""

    confidence: float
    accuracy: float
    images: int


class CalibrationScores(Part):
    """How well the probabilities agree with the observed accuracy."""

    brier: float
    nll: float
    ece_equal_width: float
    ece_adaptive: float
    mean_confidence: float
    reliability: list[ReliabilityBin]


class Calibration(Part):
    """Calibration of the test images before and after dividing the logits by a temperature."""

    n_validation: int
    temperature: float | None
    before: CalibrationScores
    after: CalibrationScores | None
    reason: str | None = None


class OperatingPoint(Part):
    """The largest sensitivity at a specificity of at least `specificity_wanted`."""

    specificity_wanted: float
    specificity: float
    sensitivity: float
    threshold: float | None
    reason: str | None = None


class TumourVersusNone(Part):
    """Any tumour class against the class without one."""

    n_tumour: int
    n_none: int
    sensitivity: float
    specificity: float
    ppv: float | None
    npv: float | None
    auroc: float
    average_precision: float
    confusion_matrix: list[list[int]]
    sensitivity_at_specificity: list[OperatingPoint]
    reasons: Reasons


class Subset(Part):
    """The scores of one part of the test split."""

    kind: str
    name: str
    n_images: int
    n_groups: int
    n_units: int
    support: dict[str, int]
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    macro_auroc: float | None
    intervals: dict[str, Interval | None]
    reasons: Reasons


class BaselineScores(Part):
    """The scores of a simple rule, and the model's gain over it."""

    name: str
    meaning: str
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    macro_auroc: float | None
    macro_f1_interval: Interval | None
    macro_f1_gain: float
    macro_f1_gain_interval: Interval | None
    beaten: Literal["yes", "no", "unclear"]
    reasons: Reasons


class OutlierShare(Part):
    """The outlier score's threshold, and the share of the test images above it."""

    method: str
    threshold: float
    flagged_test_share: float


class NoOutlierScore(Part):
    """Why there is no outlier score."""

    threshold: None = None
    reason: str


class Randomisation(Part):
    """Whether the maps change when the model's parameters are replaced by random ones."""

    images: int
    spearman: dict[str, float | None]
    passed: bool | None
    reasons: Reasons


class MapScores(Part):
    """Scores of maps against known tumour masks."""

    images: int
    pointing_game: float
    iou: float
    energy_inside: float
    mask_share: float


class Localisation(Part):
    """Whether the maps of one class find the tumour."""

    images: int
    explained: str
    gradcam: MapScores
    gradcam_plus_plus: MapScores
    other_image: MapScores


class NoLocalisation(Part):
    """Why the maps could not be compared with tumour masks."""

    images: Literal[0] = 0
    reason: str


class Explanations(Part):
    """The checks of the explanation maps."""

    methods: list[str]
    grid: int
    randomisation: Randomisation
    localisation: Localisation | NoLocalisation


class TestLooks(Part):
    """How often the test split was looked at, and what that means for a score on it."""

    __test__ = False

    split: str
    looks: int
    checkpoints: int
    optimism: float | None
    checkpoints_allowed: int | None
    reason: str | None = None


class Identity(Part):
    """The identity of an evaluation."""

    dataset: str
    run_id: str
    written_at_utc: str


class Version(Part):
    """The version of the document, and the class names by index."""

    schema_version: Literal[1] = 1
    classes: list[str]


class Scores(Part):
    """The result of `metrics.classification_metrics`."""

    n_images: int
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    weighted_f1: float
    mcc: float | None
    cohen_kappa: float | None
    macro_auroc: float | None
    macro_average_precision: float | None
    per_class: dict[str, ClassScores]
    confusion_matrix: list[list[int]]


class Measured(Scores, Version):
    """Everything that follows from the prediction table and its split."""

    n_groups: int
    n_units: int
    patients: TestPatients
    intervals: dict[str, Interval | None]
    bootstrap: Bootstrap
    calibration: Calibration
    tumour_vs_none: TumourVersusNone | Unavailable
    subsets: list[Subset]
    baselines: list[BaselineScores]
    known_copies: int
    seen_in_training: int
    reasons: Reasons


class EvaluationMetrics(Measured, Identity):
    """The whole ``metrics.json``; pydantic puts the fields of the last base class first."""

    warnings: list[ReaderWarning]
    out_of_distribution: OutlierShare | NoOutlierScore
    explanations: Explanations | Unavailable
    label_issues: int
    test_looks: TestLooks | None = None


def read_metrics(path: Path) -> EvaluationMetrics:
    """Read the ``metrics.json`` of an evaluation.

    Raises
    ------
    IntegrityError
        If it is damaged, or not of this version.
    """
    return read_model(
        path, EvaluationMetrics, "does not hold the metrics of an evaluation", "run evaluate again"
    )
