"""The baseline of frozen features: a linear model on the features of a pretrained network without training."""

from __future__ import annotations

import pandas as pd

from brainmri_core.errors import BrainMRIError
from brainmri_core.evaluation.baselines import Baseline
from brainmri_core.evaluation.probe_folds import fit_on_training, probe_shares
from brainmri_core.evaluation.tested_data import TestedData
from brainmri_core.learning.encoder import read_features
from brainmri_core.project.job import Job
from brainmri_core.project.pointer_store import latest_pointer
from brainmri_core.project.pointers import EmbeddingsPointer

FROZEN = "frozen features"
_VAL_FRAC = 0.2


def frozen_baseline(
    tested_data: TestedData, classes: list[str], trained_by: str, seed: int, job: Job
) -> Baseline | str:
    """Fit a probe on the training images of an evaluation's data and apply it to the test images.

    Parameters
    ----------
    tested_data : TestedData
        The data.
    classes : list of str
        Class names.
    trained_by : str
        ``train.method`` of the model that is evaluated.
    seed : int
        Seed of the validation groups that choose the probe's penalty.
    job : Job
        The run.

    Returns
    -------
    Baseline or str
        The baseline, or the reason why there is none: there are no embeddings of these pixels by a pretrained network, they
        are missing or do not fit these training images, or the evaluated model is a probe itself.
    """
    if trained_by == "probe":
        return "the model is a linear model on frozen features itself"
    pointer = latest_pointer(job.layout, EmbeddingsPointer, job.dataset)
    if pointer is None or pointer.pack_sha256 != tested_data.pack.pack_sha256 or not pointer.pretrained:
        found = (
            "no embeddings" if pointer is None else "no embeddings of these images by a pretrained network"
        )
        return f"there are {found}; `brainmri embeddings --dataset {job.dataset}` makes them"
    samples: pd.DataFrame = tested_data.samples
    used = samples[(samples["row"] >= 0) & samples["split"].isin(["train", "test"])]
    used = used.sort_values("row", ignore_index=True)
    try:
        features = read_features(job.layout.absolute(pointer.features).parent)
        probe = fit_on_training(features, used, classes, val_frac=_VAL_FRAC, seed=seed, balanced=True)
    except BrainMRIError as error:
        return str(error).rstrip(".")
    rows = samples["row"].to_numpy()[tested_data.positions("test")]
    meaning = f"a linear model on the features of {pointer.model_name} as the embeddings have it, without training here"
    return Baseline(FROZEN, meaning, probe_shares(probe, features[rows]), True)
