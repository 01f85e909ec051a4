"""The fold ensemble: the models of all folds as one network, saved as a checkpoint like any other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from brainmri_core.errors import ModelError
from brainmri_core.evaluation.calibration import fit_temperature
from brainmri_core.evaluation.metrics_file import MIN_VALIDATION
from brainmri_core.evaluation.prediction_table import labels_of, logits_of
from brainmri_core.evaluation.trained_folds import check_folds, held_out, load_fold
from brainmri_core.learning.checkpoint import (
    CheckpointMeta,
    EnsembleRecord,
    MemberRecord,
    Preprocessing,
    save_checkpoint,
)
from brainmri_core.learning.ensemble import Ensemble, Member
from brainmri_core.learning.outcome import weights_hash
from brainmri_core.project.job import Job
from brainmri_core.project.layout import ENSEMBLE_FOLDER
from brainmri_core.project.pointers import (
    CheckpointPointer,
    EvaluationPointer,
    FoldEnsemblePointer,
    PackPointer,
)
from brainmri_core.project.provenance import code_version
from brainmri_core.project.sample_table import write_samples
from brainmri_core.system.checksums import sha256_file, sha256_json
from brainmri_core.system.clock import timestamp, utc_now


def fold_ensemble(
    out_models: str,
    pack: PackPointer,
    checkpoints: Sequence[CheckpointPointer],
    evaluations: Sequence[EvaluationPointer],
    job: Job,
) -> FoldEnsemblePointer:
    """Join the models of all folds into one network that predicts their mean probability.

    Each model's logits are divided by a temperature, which is fitted on its held-out fold. Nothing is trained, and the
    test split is not used.

    Parameters
    ----------
    out_models : str
        ``train.io.out_models``; the ensemble lies below it in ``ensemble/<owner>/<slug>/<run>``.
    pack : PackPointer
        The pack whose folds were trained on.
    checkpoints, evaluations : sequence of pointers
        One of each per fold, in order of the folds.
    job : Job
        The run.

    Returns
    -------
    FoldEnsemblePointer
        ``best.pth`` is a checkpoint like any other; its record names the members' pointers, hashes and temperatures, and
        the ensemble's parameters, bytes and forward passes. ``history.parquet`` has a row per member. The validation score
        is the mean of the members' scores.

    Raises
    ------
    IntegrityError
        If a fold is missing, was trained on other images, or its checkpoint is gone or was changed.
    ModelError
        If the members differ in classes, encoder, preprocessing or settings.
    """
    check_folds(pack, checkpoints, evaluations, job)
    members, metas = _members(checkpoints, evaluations, job)
    _check_alike(metas, checkpoints)
    ensemble = Ensemble([member for member, _ in members])
    weights = ensemble.state_dict().values()
    record = EnsembleRecord(
        members=[item for _, item in members],
        parameters=sum(parameter.numel() for parameter in ensemble.parameters()),
        weights_bytes=sum(tensor.numel() * tensor.element_size() for tensor in weights),
        forward_passes=len(members),
    )
    meta = _meta(record, metas, pack, job)
    table = _table(record, checkpoints)
    target = job.layout.checkpoint_dir(f"{out_models}/{ENSEMBLE_FOLDER}", job.dataset, job.run_id)
    with job.staged(target) as folder:
        save_checkpoint(folder / "best.pth", ensemble.state_dict(), meta)
        write_samples(folder / "history.parquet", table)
    best = target / "best.pth"
    job.log.info(
        "ensemble made of the folds",
        members=len(members),
        parameters=record.parameters,
        bytes=record.weights_bytes,
    )
    return _pointer(best, meta, checkpoints, pack, job)


def _members(
    checkpoints: Sequence[CheckpointPointer], evaluations: Sequence[EvaluationPointer], job: Job
) -> tuple[list[tuple[Member, MemberRecord]], list[CheckpointMeta]]:
    """Load the model of each fold, and fit its temperature on its own fold."""
    members, metas = [], []
    for fold, (checkpoint, evaluation) in enumerate(zip(checkpoints, evaluations, strict=True)):
        network, meta = load_fold(checkpoint, fold, torch.device("cpu"), job)
        temperature = _temperature(evaluation, job)
        if temperature is None:
            job.log.warning("too few images to fit a temperature", fold=fold, needed=MIN_VALIDATION)
        how = meta.preprocessing
        record = MemberRecord(
            fold=fold,
            checkpoint_pointer=str(checkpoint.pointer_path),
            checkpoint_sha256=checkpoint.checkpoint_sha256,
            temperature=temperature,
        )
        members.append((Member(network, how.mean, how.std, temperature or 1.0), record))
        metas.append(meta)
    return members, metas


def _temperature(evaluation: EvaluationPointer, job: Job) -> float | None:
    """Fit a temperature on the predictions of the held-out fold; None where there are too few."""
    table, classes = held_out(evaluation, job)
    enough = len(table) >= MIN_VALIDATION
    return fit_temperature(logits_of(table, classes), labels_of(table)) if enough else None


def _check_alike(metas: Sequence[CheckpointMeta], checkpoints: Sequence[CheckpointPointer]) -> None:
    """Raise ModelError where members differ in classes, encoder, input size, preprocessing or training settings."""
    first = metas[0]
    for fold, meta in enumerate(metas[1:], 1):
        compared = {
            "knows the classes": (", ".join(first.classes), ", ".join(meta.classes)),
            "is a": (_encoder(first), _encoder(meta)),
            "sees images of": (_size(first), _size(meta)),
            "prepares images by": (_preparation(first.preprocessing), _preparation(meta.preprocessing)),
            "was trained with": ("settings", "other settings")
            if checkpoints[0].recipe != checkpoints[fold].recipe
            else ("", ""),
        }
        for what, (wanted, found) in compared.items():
            if wanted != found:
                raise ModelError(
                    f"The checkpoint of fold {fold} {what} {found}, but that of fold 0 {what} {wanted}, so that they make no "
                    f"ensemble; run `brainmri backfill --select fold_checkpoint,fold_evaluation --dataset {first.dataset}`."
                )


def _encoder(meta: CheckpointMeta) -> str:
    return f"{meta.model_name} whose head sees {meta.depths} depth(s)"


def _size(meta: CheckpointMeta) -> str:
    return f"{meta.preprocessing.image_size} px"


def _preparation(how: Preprocessing) -> str:
    """Describe a preprocessing without its normalisation, which may differ: each member keeps its own."""
    return str(how.model_dump(exclude={"mean", "std", "image_size"}))


def _meta(
    record: EnsembleRecord, metas: Sequence[CheckpointMeta], pack: PackPointer, job: Job
) -> CheckpointMeta:
    first = metas[0]
    how = first.preprocessing
    pixels = {"mean": [0.0] * how.channels, "std": [1.0] * how.channels}
    precisions = {meta.precision for meta in metas}
    return CheckpointMeta(
        model_name=first.model_name,
        classes=first.classes,
        preprocessing=how.model_copy(update=pixels),
        train_config=first.train_config,
        env_config=job.env.model_dump(mode="json"),
        data_hash=pack.content_hash,
        pack_pointer=pack.pointer_path,
        dataset=job.dataset,
        run_id=job.run_id,
        epoch=max(meta.epoch for meta in metas),
        val_macro_f1=sum(meta.val_macro_f1 for meta in metas) / len(metas),
        precision=first.precision if len(precisions) == 1 else None,
        depths=first.depths,
        code=code_version(),
        ensemble=record,
    )


def _table(record: EnsembleRecord, checkpoints: Sequence[CheckpointPointer]) -> pd.DataFrame:
    """Return a row per member: its fold, where it comes from, its temperature, epochs and validation score."""
    shown = {"run_id", "best_epoch", "epochs_run", "val_macro_f1"}
    trained = pd.DataFrame([item.model_dump(include=shown) for item in checkpoints])
    return pd.concat([pd.DataFrame([item.model_dump() for item in record.members]), trained], axis=1)


def _pointer(
    best: Path,
    meta: CheckpointMeta,
    checkpoints: Sequence[CheckpointPointer],
    pack: PackPointer,
    job: Job,
) -> FoldEnsemblePointer:
    experiments = {item.experiment for item in checkpoints}
    recipe = checkpoints[0].recipe
    return FoldEnsemblePointer(
        dataset=job.dataset,
        run_id=job.run_id,
        content_hash=weights_hash(best),
        written_at_utc=timestamp(utc_now()),
        checkpoint=job.layout.relative(best),
        checkpoint_sha256=sha256_file(best),
        history=job.layout.relative(best.with_name("history.parquet")),
        curves=None,
        model_name=meta.model_name,
        best_epoch=meta.epoch,
        epochs_run=sum(item.epochs_run for item in checkpoints),
        val_macro_f1=meta.val_macro_f1,
        precision=meta.precision,
        pack_pointer=pack.pointer_path or "",
        experiment=experiments.pop() if len(experiments) == 1 else "default",
        # a recipe of its own: the members' out-of-fold predictions do not measure the ensemble
        recipe=None if recipe is None else sha256_json([ENSEMBLE_FOLDER, recipe]),
    )
