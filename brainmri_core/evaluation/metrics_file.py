"""The content of ``metrics.json``, computed from the prediction table without another forward pass.

`metrics_schema` and ``docs/metrics.md`` describe the document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from brainmri_core.arrays import Mask, Objects
from brainmri_core.evaluation.baselines import Baseline, score_baselines
from brainmri_core.evaluation.bootstrap import LEVEL, UNDEFINED, bootstrap_metrics, group_weights, interval
from brainmri_core.evaluation.calibration import calibration_scores, fit_temperature, probabilities
from brainmri_core.evaluation.metrics import classification_metrics, tumour_versus_none
from brainmri_core.evaluation.metrics_schema import (
    BaselineScores,
    Bootstrap,
    Calibration,
    CalibrationScores,
    EvaluationMetrics,
    Explanations,
    Identity,
    Measured,
    NoOutlierScore,
    OutlierShare,
    ReaderWarning,
    Subset,
    TestLooks,
    TestPatients,
    TumourVersusNone,
    Unavailable,
)
from brainmri_core.evaluation.prediction_table import labels_of, logits_of
from brainmri_core.evaluation.subsets import score_subsets
from brainmri_core.evaluation.test_ledger import looks_warning
from brainmri_core.project.sample_table import known_patients
from brainmri_core.splitting.assignment import independent_units
from brainmri_core.system.checksums import sha256_json

SUSPICIOUS_ACCURACY = 0.97
FEW_UNITS = 50
MIN_VALIDATION = 20
HEADLINE = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "mcc")


@dataclass(frozen=True)
class Context:
    """The input of the metrics besides the prediction table.

    Attributes
    ----------
    resamples, seed : int
        Of the bootstrap.
    subsets : iterator
        Names and masks over the test rows, from `subsets.subset_masks`.
    baselines : list of Baseline
        Probabilities for the test rows.
    known_copies, known_patients_in_training : int
        Number of test images with a copy, and with another image of their patient, in the training split.
    seen_in_training : int
        Number of test images that the checkpoint was trained on, or whose patient it was; 0 on its own split.
    """

    resamples: int
    seed: int
    subsets: Iterator[tuple[str, str, Mask]]
    baselines: list[Baseline]
    known_copies: int
    seen_in_training: int
    known_patients_in_training: int = 0


def evaluation_metrics(table: pd.DataFrame, classes: Sequence[str], context: Context) -> Measured:
    """Compute everything that follows from the prediction table.

    Parameters
    ----------
    table : pandas.DataFrame
        The prediction table; rows with split ``test`` are scored, those with ``validation`` set the temperature.
    classes : sequence of str
        Class names by index.
    context : Context
        Settings, subsets and baselines.

    Raises
    ------
    DataError
        If there is no test row.
    """
    test = table[table["split"] == "test"]
    labels, logits = labels_of(test), logits_of(test, classes)
    shares = probabilities(logits)
    scores = classification_metrics(labels, shares, classes)
    number, weights = group_weights(independent_units(test), context.resamples, context.seed)
    patients = known_patients(test)
    resampled = bootstrap_metrics(labels, logits, number, weights, classes) if context.resamples else {}
    intervals = {name: interval(values) for name, values in resampled.items()}
    reasons = scores.pop("reasons")
    reasons |= {f"intervals.{name}": UNDEFINED for name, found in intervals.items() if found is None}
    if not context.baselines:
        reasons["baselines"] = "there is no training image to fit them on"
    binary = tumour_versus_none(labels, shares, classes)
    subsets = score_subsets(
        context.subsets, test, shares, classes, resamples=min(context.resamples, 1000), seed=context.seed
    )
    baselines = score_baselines(context.baselines, labels, shares.argmax(axis=1), number, weights, classes)
    return Measured(
        classes=list(classes),
        **scores,
        n_groups=int(test["group"].nunique()),
        n_units=weights.shape[1],
        patients=TestPatients(**patient_counts(patients), in_training=context.known_patients_in_training),
        intervals=intervals,
        bootstrap=bootstrap_of(patients, context.resamples, context.seed),
        calibration=calibrate(table, classes),
        tumour_vs_none=Unavailable(**binary) if "reason" in binary else TumourVersusNone(**binary),
        subsets=[Subset(**row) for row in subsets],
        baselines=[BaselineScores(**row) for row in baselines],
        known_copies=context.known_copies,
        seen_in_training=context.seen_in_training,
        reasons=reasons,
    )


def patient_counts(patients: Objects) -> dict[str, int]:
    """Count the known patients, and the images with and without one, of each image's patient (empty where unknown)."""
    return {
        "known": len(set(patients) - {""}),
        "images": int((patients != "").sum()),
        "images_unknown": int((patients == "").sum()),
    }


def bootstrap_of(patients: Objects, resamples: int, seed: int) -> Bootstrap:
    """Describe a bootstrap over the patients or, where none is known, over the groups."""
    unit: Literal["patient", "group"] = "patient" if (patients != "").any() else "group"
    return Bootstrap(level=LEVEL, resamples=resamples, unit=unit, seed=seed)


def whole_document(
    measured: Measured,
    *,
    dataset: str,
    run_id: str,
    written_at_utc: str,
    outliers: OutlierShare | NoOutlierScore,
    explanations: Explanations | Unavailable,
    label_issues: int,
    looks: TestLooks | None,
) -> EvaluationMetrics:
    """Assemble the document from the metrics, the results that need the model, and the looks at the test split.

    Parameters
    ----------
    measured : Measured
        From `evaluation_metrics`.
    dataset, run_id, written_at_utc : str
        Identify the evaluation.
    outliers, explanations, label_issues
        Results that need the model.
    looks : TestLooks or None
        None if a fold was measured instead of the test split.
    """
    used_up = looks_warning(looks) if looks is not None else None
    no_looks = {"test_looks": "a fold is measured, not the test split"} if looks is None else {}
    return EvaluationMetrics(
        dataset=dataset,
        run_id=run_id,
        written_at_utc=written_at_utc,
        **{**dict(measured), "reasons": measured.reasons | no_looks},
        warnings=[*warnings_of(measured), *([used_up] if used_up else [])],
        out_of_distribution=outliers,
        explanations=explanations,
        label_issues=label_issues,
        test_looks=looks,
    )


def content_hash(document: EvaluationMetrics, measured: Measured, weights: str, pack: str) -> str:
    """Return the hash of the results, without the run's identity and the looks at the test split by other runs."""
    found = document.model_dump(mode="json", exclude={*Identity.model_fields, "test_looks"})
    found |= {
        "reasons": measured.reasons,
        "warnings": [item.model_dump(mode="json") for item in warnings_of(measured)],
    }
    return sha256_json([weights, pack, found])


def calibrate(table: pd.DataFrame, classes: Sequence[str]) -> Calibration:
    """Fit the temperature on the validation rows, and score the calibration of the test rows before and after."""
    test, validation = (table[table["split"] == side] for side in ("test", "validation"))
    labels, logits = labels_of(test), logits_of(test, classes)
    temperature, reason = None, None
    if len(validation) < MIN_VALIDATION:
        reason = f"there are {len(validation)} validation images of this checkpoint; {MIN_VALIDATION} are needed to fit a temperature"
    else:
        temperature = fit_temperature(logits_of(validation, classes), labels_of(validation))
    return Calibration(
        n_validation=len(validation),
        temperature=temperature,
        before=CalibrationScores(**calibration_scores(logits, labels)),
        after=None
        if temperature is None
        else CalibrationScores(**calibration_scores(logits, labels, temperature)),
        reason=reason,
    )


def warnings_of(metrics: Measured) -> list[ReaderWarning]:
    """Return the warnings for a reader of the numbers: ``red`` puts the result in doubt, ``amber`` limits it."""
    found: list[ReaderWarning] = []

    def add(level: Literal["red", "amber"], text: str) -> None:
        found.append(ReaderWarning(level=level, text=text))

    if metrics.seen_in_training:
        add(
            "red",
            f"{metrics.seen_in_training:,} of {metrics.n_images:,} test images were in this checkpoint's training "
            "data, or show a patient who was: the scores below are not those of unseen images.",
        )
    copies = metrics.known_copies
    if copies and metrics.accuracy > SUSPICIOUS_ACCURACY:
        add(
            "red",
            f"The accuracy of {metrics.accuracy:.1%} is above {SUSPICIOUS_ACCURACY:.0%} on a test split with {copies:,} "
            "known copies of training images: it measures memory, not diagnosis.",
        )
    elif copies:
        add(
            "red",
            f"{copies:,} test images have a copy in the training split; look at the subsets without them.",
        )
    if crossing := metrics.patients.in_training:
        add(
            "red",
            f"{crossing:,} of the {metrics.patients.images:,} test images whose patient is known show a patient who "
            "is in the training split, too: part of the score is recognition of people. Split with split.group_by: auto.",
        )
    own = f"its macro F1 is {metrics.macro_f1:.3f}"
    if unbeaten := _named(metrics.baselines, "no"):
        add("red", f"The model does not beat every simple rule: {own}, against {unbeaten}.")
    if unclear := _named(metrics.baselines, "unclear"):
        add(
            "amber",
            f"The model is not clearly better than every simple rule: {own}, against {unclear}; the 95% interval of the "
            "difference includes zero.",
        )
    absent = [name for name, item in metrics.per_class.items() if not item.support]
    if absent:
        add("amber", f"No test image shows {', '.join(absent)}; averages are over the other classes.")
    if metrics.n_units < FEW_UNITS:
        what = "patients or groups" if metrics.patients.known else "groups"
        add(
            "amber",
            f"The test split has only {metrics.n_units} independent {what}; the intervals are rough.",
        )
    return found


def _named(baselines: Sequence[BaselineScores], beaten: str) -> str:
    return "; ".join(
        f"{item.macro_f1:.3f} of {item.name} ({item.meaning})" for item in baselines if item.beaten == beaten
    )


def headline(metrics: Measured) -> dict[str, float | None]:
    """Return the headline metrics of an evaluation."""
    binary = metrics.tumour_vs_none if isinstance(metrics.tumour_vs_none, TumourVersusNone) else None
    return {
        **{name: getattr(metrics, name) for name in HEADLINE},
        "ece": metrics.calibration.before.ece_equal_width,
        "tumour_sensitivity": binary.sensitivity if binary else None,
        "tumour_specificity": binary.specificity if binary else None,
    }
