"""The models of all folds: whether they belong to one pack, their networks and their out-of-fold predictions."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import nn

from brainmri_core.errors import IntegrityError
from brainmri_core.evaluation.prediction_table import read_predictions
from brainmri_core.learning.checkpoint import CheckpointMeta, load_model
from brainmri_core.project.job import Job
from brainmri_core.project.pointer_store import follow
from brainmri_core.project.pointers import (
    CheckpointPointer,
    EvaluationPointer,
    FoldPackPointer,
    PackPointer,
)
from brainmri_core.project.sample_table import read_samples
from brainmri_core.system.checksums import check_sha256, sha256_json


def fold_hash(pack: PackPointer, fold: int) -> str:
    """Return the content hash of a pack as one fold sees it."""
    return sha256_json([pack.content_hash, "fold", fold])


def check_folds(
    pack: PackPointer,
    checkpoints: Sequence[CheckpointPointer],
    evaluations: Sequence[EvaluationPointer],
    job: Job,
) -> None:
    """Check that each fold of a pack has a checkpoint that was trained on the current pack and evaluated since.

    Parameters
    ----------
    pack : PackPointer
        The pack whose folds were trained on.
    checkpoints, evaluations : sequence of pointers
        One of each per fold, in order of the folds.
    job : Job
        The run.

    Raises
    ------
    IntegrityError
        If one is missing, was trained on other images than the pack's, or is not the one that was evaluated.
    """
    remedy = f"run `brainmri backfill --select fold_checkpoint,fold_evaluation --dataset {job.dataset}`"
    for fold, (checkpoint, evaluation) in enumerate(zip(checkpoints, evaluations, strict=True)):
        seen = follow(job.layout, FoldPackPointer, checkpoint.pack_pointer)
        if (
            seen.content_hash != fold_hash(pack, fold)
            or evaluation.checkpoint_pointer != checkpoint.pointer_path
        ):
            raise IntegrityError(
                f"The fold checkpoint of run {checkpoint.run_id} was trained on other images or another split than the newest, "
                f"or was not evaluated since; {remedy}."
            )
    folds = int(read_samples(job.layout.absolute(pack.samples), {"fold": "int64"})["fold"].max()) + 1
    if len(checkpoints) != folds:
        raise IntegrityError(
            f"The split of {job.dataset} has {folds} folds, but there are checkpoints of {len(checkpoints)}; {remedy}."
        )


def load_fold(
    checkpoint: CheckpointPointer, fold: int, device: torch.device, job: Job
) -> tuple[nn.Module, CheckpointMeta]:
    """Load the model of a fold.

    Parameters
    ----------
    checkpoint : CheckpointPointer
        The checkpoint of the fold.
    fold : int
        Index of the fold, for the error.
    device : torch.device
        Device to load the model to.
    job : Job
        The run.

    Returns
    -------
    model : torch.nn.Module
        The network.
    meta : CheckpointMeta
        The record in the checkpoint.

    Raises
    ------
    IntegrityError
        If its checkpoint is missing or was changed.
    ModelError
        If its checkpoint is damaged.
    """
    path = job.layout.absolute(checkpoint.checkpoint)
    check_sha256(path, checkpoint.checkpoint_sha256, f"checkpoint of fold {fold}")
    return load_model(path, device)


def held_out(evaluation: EvaluationPointer, job: Job) -> tuple[pd.DataFrame, list[str]]:
    """Return what the model of a fold predicted for the images of that fold, which it was not trained on.

    Returns
    -------
    table : pandas.DataFrame
        The rows of ``predictions.parquet`` that the fold held out.
    classes : list of str
        Class names by index.
    """
    table, classes = read_predictions(job.layout.absolute(evaluation.predictions))
    return table[table["split"] == "test"], classes
