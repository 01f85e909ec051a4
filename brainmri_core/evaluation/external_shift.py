"""The shift of another data set from a model's validation images, and the estimated class shares in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from brainmri_core.arrays import F32, F64, Mask
from brainmri_core.config.external import ExternalConfig
from brainmri_core.evaluation.calibration import probabilities
from brainmri_core.evaluation.contender import Contender
from brainmri_core.evaluation.external_schema import Prevalence
from brainmri_core.evaluation.external_scores import Carried
from brainmri_core.evaluation.label_shift import estimate_label_shift
from brainmri_core.evaluation.metrics_schema import Unavailable
from brainmri_core.evaluation.shift import ImageSet, ShiftReport, image_features, measure_shift
from brainmri_core.evaluation.taken_out import TrainingImages
from brainmri_core.project.job import Job
from brainmri_core.project.pointers import PackPointer
from brainmri_core.splitting.assignment import independent_units


@dataclass(frozen=True)
class ExternalPredictions:
    """Images and a model's output for them.

    Attributes
    ----------
    table : pandas.DataFrame
        N rows of the sample table, those whose file could be decoded.
    logits, embeddings : numpy.ndarray
        float32 ``(N, K)`` and ``(N, D)``.
    features : numpy.ndarray
        float64 ``(N, F)``, from `shift.image_features`.
    """

    table: pd.DataFrame
    logits: F32
    embeddings: F32
    features: F64

    def images(self, mask: Mask) -> ImageSet:
        """Return some of the images for the measures of shift."""
        groups = tuple(independent_units(self.table[mask]))
        return ImageSet(self.features[mask], groups, self.embeddings[mask])


def predict_external(model: Contender, table: pd.DataFrame, pack: PackPointer) -> ExternalPredictions:
    """Run a model on images of a pack, with its own preprocessing."""
    width, height = (table[name].to_numpy(np.int64) for name in ("width", "height"))
    places, logits, embeddings, features = [], [], [], []
    for positions, pixels, found in model.outputs(table, pack):
        places.append(positions)
        logits.append(found.logits)
        embeddings.append(found.asked_embeddings)
        features.append(image_features(pixels, width[positions], height[positions]))
    order = np.concatenate(places)
    return ExternalPredictions(
        table.iloc[order].reset_index(drop=True),
        np.concatenate(logits),
        np.concatenate(embeddings),
        np.concatenate(features),
    )


def describe_shift(
    config: ExternalConfig,
    model: Contender,
    carried: Carried,
    learnt: TrainingImages | str,
    seen: ExternalPredictions,
    scored: Mask,
    job: Job,
) -> tuple[ShiftReport | Unavailable, Prevalence | Unavailable]:
    """Compare the scored images with the validation images of the model.

    Parameters
    ----------
    config : ExternalConfig
        Its seed must be set.
    model : Contender
        The model.
    carried : Carried
        What is carried over from the model's evaluation on its own data.
    learnt : TrainingImages or str
        The training and validation images of the model, or why they are not available.
    seen : ExternalPredictions
        The images of the other data set, with the model's output for them.
    scored : numpy.ndarray
        bool ``(N,)``: the images that are scored.
    job : Job
        The run.

    Returns
    -------
    shift : ShiftReport or Unavailable
        The result of `shift.measure_shift`, or why there is nothing to compare.
    prevalence : Prevalence or Unavailable
        The estimate of `label_shift` with the true share of each class, or the same reason.
    """
    reason = learnt if isinstance(learnt, str) else None
    if reason is None and not scored.any():
        reason = "there is no image to compare"
    if isinstance(learnt, str) or reason is not None or not learnt.validation.any():
        reason = reason or "the checkpoint does not say which images it was selected by"
        return Unavailable(reason=reason), Unavailable(reason=reason)
    own = learnt.images.table[learnt.validation].reset_index(drop=True)
    at_home = predict_external(model, own, learnt.images.pack)
    everything = np.ones(len(at_home.table), np.bool_)
    report = measure_shift(
        at_home.images(everything),
        seen.images(scored),
        (f"the validation images of {model.meta.dataset}", job.dataset),
        seed=config.resolved_seed,
        permutations=config.shift_permutations,
    )
    classes, temperature = model.meta.classes, carried.temperature or 1.0
    elsewhere = seen.table[scored]
    estimate = estimate_label_shift(
        at_home.table["class_index"].to_numpy(np.int64),
        probabilities(at_home.logits, temperature),
        independent_units(at_home.table),
        probabilities(seen.logits[scored], temperature),
        independent_units(elsewhere),
        classes,
        seed=config.resolved_seed,
    )
    truth = np.bincount(elsewhere["class_index"].to_numpy(np.int64), minlength=len(classes)) / len(elsewhere)
    shares = dict(zip(classes, truth.tolist(), strict=True))
    return report, Prevalence(**dict(estimate), true=shares)
