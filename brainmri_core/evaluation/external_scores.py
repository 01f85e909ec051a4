"""The scores of a model on another data set, compared with those on the test images of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from brainmri_core.arrays import F32, F64, I64, Mask
from brainmri_core.config.external import ExternalConfig
from brainmri_core.evaluation.bootstrap import (
    UNDEFINED,
    bootstrap_metrics,
    group_weights,
    interval,
    proper_scores,
)
from brainmri_core.evaluation.calibration import calibration_scores, probabilities
from brainmri_core.evaluation.external_schema import (
    CarriedCalibration,
    Comparison,
    Difference,
    ExternalMeasured,
    ExternalScores,
    FlagRates,
    PartAccuracy,
    UnlearntClass,
)
from brainmri_core.evaluation.metrics import classification_metrics, tumour_versus_none
from brainmri_core.evaluation.metrics_file import HEADLINE, bootstrap_of, patient_counts
from brainmri_core.evaluation.metrics_schema import (
    CalibrationScores,
    Interval,
    Patients,
    Subset,
    TumourVersusNone,
    Unavailable,
)
from brainmri_core.evaluation.prediction_table import labels_of, logits_of
from brainmri_core.evaluation.subsets import score_subsets
from brainmri_core.project.sample_table import known_patients
from brainmri_core.splitting.assignment import independent_units

Resampled = dict[str, F64]

_BEFORE, _AFTER = "calibration.before.", "calibration.after."
COMPARED = (
    "macro_f1", "balanced_accuracy", "accuracy", "macro_auroc", "tumour_vs_none.sensitivity",
    "tumour_vs_none.specificity", f"{_BEFORE}ece_equal_width", f"{_AFTER}ece_equal_width", f"{_AFTER}nll",
)  # fmt: skip
LOWER_IS_BETTER = frozenset(name for name in COMPARED if name.startswith("calibration."))


@dataclass(frozen=True)
class Carried:
    """What is carried over from the evaluation on the model's own data; nothing is fitted to the other data set.

    Attributes
    ----------
    temperature : float or None
        The fitted temperature.
    threshold : float or None
        Outlier score above which an image is flagged as unlike the training images.
    own : pandas.DataFrame or None
        The prediction table of that evaluation.
    reason : str or None
        Why there is no such evaluation; None if there is.
    """

    temperature: float | None = None
    threshold: float | None = None
    own: pd.DataFrame | None = None
    reason: str | None = None


def full_scores(
    scored: pd.DataFrame, classes: Sequence[str], carried: Carried, config: ExternalConfig
) -> ExternalScores:
    """Score the images of classes that the model knows, without those that it may have seen.

    Parameters
    ----------
    scored : pandas.DataFrame
        Rows of the prediction table, at least one.
    classes : sequence of str
        The model's classes by index. Classes without an image keep their probabilities; predicting one is an error.
    carried : Carried
        Holds the temperature.
    config : ExternalConfig
        Resamples and seed.
    """
    labels, logits = labels_of(scored), logits_of(scored, classes)
    shares = probabilities(logits)
    found = classification_metrics(labels, shares, classes)
    patients = known_patients(scored)
    values = _resampled(
        scored, classes, carried.temperature, config.bootstrap_resamples, config.resolved_seed
    )
    intervals = {name: interval(drawn[1:]) for name, drawn in values.items()}
    found["reasons"] |= {f"intervals.{name}": UNDEFINED for name, item in intervals.items() if item is None}
    binary = tumour_versus_none(labels, shares, classes)
    return ExternalScores(
        **found,
        n_groups=int(scored["group"].nunique()),
        n_units=len(set(independent_units(scored))),
        patients=Patients(**patient_counts(patients)),
        intervals=intervals,
        bootstrap=bootstrap_of(patients, config.bootstrap_resamples, config.resolved_seed),
        calibration=_calibrated(logits, labels, carried),
        tumour_vs_none=Unavailable(**binary) if "reason" in binary else TumourVersusNone(**binary),
    )


def _calibrated(logits: F32, labels: I64, carried: Carried) -> CarriedCalibration:
    temperature = carried.temperature
    return CarriedCalibration(
        temperature=temperature,
        before=CalibrationScores(**calibration_scores(logits, labels)),
        after=None
        if temperature is None
        else CalibrationScores(**calibration_scores(logits, labels, temperature)),
        reason=(carried.reason or "its evaluation fitted none") if temperature is None else None,
    )


def score_rows(
    known: pd.DataFrame, unseen: Mask, classes: Sequence[str], common: Sequence[str], config: ExternalConfig
) -> list[Subset]:
    """Score the unseen images in two ways and, for comparison, all images, which is not an external score.

    Parameters
    ----------
    known : pandas.DataFrame
        N rows of the prediction table, of classes that the model knows.
    unseen : numpy.ndarray
        bool ``(N,)``: images that were not taken out as possibly seen.
    classes : sequence of str
        The model's classes by index.
    common : sequence of str
        Classes that both data sets have. In the second way the model's probabilities are renormalised over these.
    config : ExternalConfig
        Resamples and seed.

    Returns
    -------
    list of Subset
        The results of `subsets.score_subsets` for the kinds ``unseen``, ``common`` and ``all``.
    """
    seed, resamples = config.resolved_seed, config.bootstrap_resamples
    logits = logits_of(known, classes)
    among = np.isin(classes, common)
    shares = probabilities(logits)
    renormalised = probabilities(np.where(among, logits, -np.inf))
    everything = np.ones(len(known), np.bool_)
    parts: list[tuple[str, str, Mask, F64]] = [
        ("unseen", "images left when those the model may have seen are taken out", unseen, shares),
        ("common", "the same, probabilities shared among the common classes", unseen, renormalised),
        ("all", "all images, those the model may have seen included: no external score", everything, shares),
    ]
    rows: list[Subset] = []
    for kind, name, mask, predicted in parts:
        if mask.any():
            one = iter([(kind, name, mask)])
            found = score_subsets(one, known, predicted, classes, resamples=resamples, seed=seed)
            rows += [Subset(**row) for row in found]
    return rows


def compare_with_own(
    scored: pd.DataFrame, classes: Sequence[str], carried: Carried, config: ExternalConfig
) -> Comparison | Unavailable:
    """Compare the external scores with those on the model's own test images of the same classes.

    The two sets are resampled independently.

    Returns
    -------
    Comparison or Unavailable
        The measures that both sets define, or the reason why there is nothing to compare with.
    """
    if carried.own is None:
        return Unavailable(reason=carried.reason or "there is no evaluation on its own data")
    own = carried.own[carried.own["split"] == "test"]
    shared = [name for name in classes if (own["label"] == name).any() and (scored["label"] == name).any()]
    own, other = (part[part["label"].isin(shared)] for part in (own, scored))
    if not shared:
        return Unavailable(reason="its own test images show none of these classes")
    resamples, temperature = config.bootstrap_resamples, carried.temperature
    ours = _resampled(own, classes, temperature, resamples, config.resolved_seed)
    theirs = _resampled(other, classes, temperature, resamples, config.resolved_seed + 1)
    return Comparison(
        classes=shared,
        images=len(own),
        n_units=len(set(independent_units(own))),
        measures={
            name: Difference(
                own=float(ours[name][0]),
                external=float(theirs[name][0]),
                difference=float(theirs[name][0] - ours[name][0]),
                interval=interval(theirs[name][1:] - ours[name][1:]),
            )
            for name in COMPARED
            if all(name in found and np.isfinite(found[name][0]) for found in (ours, theirs))
        },
    )


def _resampled(
    table: pd.DataFrame, classes: Sequence[str], temperature: float | None, resamples: int, seed: int
) -> Resampled:
    """Return each measure on all images, then on every resample: float64 ``(1 + R,)``."""
    number, drawn = group_weights(independent_units(table), resamples, seed)
    weights = np.concatenate([np.ones((1, drawn.shape[1]), np.float32), drawn])
    labels, logits = labels_of(table), logits_of(table, classes)
    values = bootstrap_metrics(labels, logits, number, weights, classes)
    if temperature is not None:
        shares = probabilities(logits, temperature)
        cooled = proper_scores(labels, logits / np.float32(temperature), shares, number, weights)
        values |= {name.replace(_BEFORE, _AFTER): value for name, value in cooled.items()}
    return values


def flag_rates(
    table: pd.DataFrame, scored: Mask, carried: Carried, classes: Sequence[str], config: ExternalConfig
) -> FlagRates:
    """Return the share of images flagged as unlike the training images, and the accuracy on both parts.

    Parameters
    ----------
    table : pandas.DataFrame
        The prediction table without the images taken out, including images of classes that the model never learnt.
    scored : numpy.ndarray
        bool ``(N,)``: the images of classes that it knows.
    carried, classes, config
        As in `full_scores`.
    """
    threshold = carried.threshold
    flagged = np.zeros(len(table), np.bool_)
    if threshold is not None:
        flagged = table["outlier_score"].to_numpy(np.float64) > threshold
    units = np.asarray(independent_units(table), object)
    right = table["correct"].to_numpy(np.bool_)

    def share(of: Mask, among: Mask) -> tuple[float | None, Interval | None]:
        if threshold is None or not among.any():
            return None, None
        number, weights = group_weights(
            units[among].tolist(), config.bootstrap_resamples, config.resolved_seed
        )
        counts = np.bincount(number).astype(np.float64)
        hits = np.bincount(number, of[among]).astype(np.float64)
        drawn = weights.astype(np.float64)
        return float(of[among].mean()), interval((drawn @ hits) / (drawn @ counts))

    def part(among: Mask) -> PartAccuracy:
        accuracy, around = share(right, among)
        return PartAccuracy(images=int(among.sum()), accuracy=accuracy, interval=around)

    never: dict[str, UnlearntClass] = {}
    for name in sorted(set(table["label"][~scored])):
        among = ~scored & (table["label"] == name).to_numpy(np.bool_)
        called = table["predicted"][among].value_counts()
        rate, around = share(flagged, among)
        never[name] = UnlearntClass(
            images=int(among.sum()),
            called={label: int(called.get(label, 0)) for label in classes},
            flagged_share=rate,
            interval=around,
        )
    rate, around = share(flagged, scored)
    own = carried.own[carried.own["split"] == "test"] if carried.own is not None else None
    return FlagRates(
        threshold=threshold,
        flagged_share=rate,
        interval=around,
        own_flagged_share=float((own["outlier_score"] > threshold).mean())
        if own is not None and len(own) and threshold is not None
        else None,
        flagged=part(scored & flagged),
        unflagged=part(scored & ~flagged),
        never_learnt=never,
        reason=(carried.reason or "its evaluation set no limit") if threshold is None else None,
    )


def external_headline(metrics: ExternalMeasured) -> dict[str, float | None]:
    """Return the main figures of an external evaluation; without a score, all but the two shares are None.

    Parameters
    ----------
    metrics : ExternalMeasured
        The content of its ``metrics.json``.

    Returns
    -------
    dict
        Name to value: scores, the difference in macro F1 to the model's own test images, the expected calibration error
        before and after temperature scaling, and the shares of images taken out and flagged as outliers.
    """
    scores, drop, images = metrics.scores, metrics.measures.get("macro_f1"), metrics.images
    before, after = (scores.calibration.before, scores.calibration.after) if scores else (None, None)
    return {
        **{name: getattr(scores, name) if scores else None for name in HEADLINE},
        "macro_f1_difference": drop.difference if drop else None,
        "ece_before": before.ece_equal_width if before else None,
        "ece_after": after.ece_equal_width if after else None,
        "taken_out_share": images.taken_out / max(images.predicted, 1),
        "flagged_share": metrics.out_of_distribution.flagged_share,
    }
