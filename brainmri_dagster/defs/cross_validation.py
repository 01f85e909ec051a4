"""Cross-validation: training and evaluation partitioned by data set and fold, one report over all folds, and their ensemble."""

# No postponed annotations here: Dagster reads the type of `context` from the function itself.

from dataclasses import replace
from typing import Any

import dagster as dg

from brainmri_core.config.training import TrainConfig
from brainmri_core.errors import MissingUpstreamError
from brainmri_core.project.pointer_store import follow
from brainmri_core.project.pointers import (
    CrossValidationPointer,
    EvaluationPointer,
    FoldCheckpointPointer,
    FoldEnsemblePointer,
    FoldEvaluationPointer,
    FoldPackPointer,
    PackPointer,
    Pointer,
)
from brainmri_dagster.defs import model_metadata
from brainmri_dagster.defs.assets import stage_asset
from brainmri_dagster.graph.partitions import folds
from brainmri_dagster.running.stage_run import stage_run
from brainmri_dagster.running.upstream import pack_for, require


def _apart(config: TrainConfig) -> TrainConfig:
    """Put the folds' checkpoints into a folder of their own, so that ``models/best.pth`` is never a fold's."""
    io = config.io.model_copy(update={"out_models": f"{config.io.out_models}/cross_validation"})
    return config.model_copy(update={"io": io})


@stage_asset("fold_checkpoint", "cross_validation", {"pytorch"}, ("validation_report",), partitions=folds)
def fold_checkpoint(
    context: dg.AssetExecutionContext, resized_images: PackPointer | None
) -> dg.MaterializeResult[FoldCheckpointPointer]:
    """The best checkpoint of a training that leaves one fold out."""
    with stage_run(context) as run:
        pack = pack_for("train", run.config, resized_images, run.job)
        from brainmri_core.cross_validation import fold_pack
        from brainmri_dagster.training.distributed import run_training

        seen = fold_pack(pack, int(str(context.partition_key).partition("|")[2]), run.job)
        trained = run_training(_apart(run.config.train), seen, run, context)
        pointer = FoldCheckpointPointer(**trained.model_dump() | {"experiment": run.experiment})
        score = {"val_macro_f1": pointer.val_macro_f1, "best_epoch": pointer.best_epoch}
        return run.result(pointer, model_metadata.of_train(run.job.layout, pointer), score)


@stage_asset("fold_evaluation", "cross_validation", {"pytorch", "html"}, partitions=folds)
def fold_evaluation(
    context: dg.AssetExecutionContext, fold_checkpoint: FoldCheckpointPointer | None
) -> dg.MaterializeResult[FoldEvaluationPointer]:
    """How well a fold's checkpoint does on the fold that was left out."""
    with stage_run(context) as run:
        checkpoint = require(fold_checkpoint, "fold_checkpoint", run.job)
        from brainmri_core.evaluate import evaluate

        seen = follow(run.job.layout, FoldPackPointer, checkpoint.pack_pointer)
        measured = evaluate(run.config.evaluate, checkpoint, seen, run.job)
        pointer = FoldEvaluationPointer(**measured.model_dump())
        return run.result(pointer, model_metadata.of_evaluate(run.job.layout, pointer), pointer.headline)


@stage_asset("cross_validation_report", "cross_validation", {"pytorch", "json"})
def cross_validation_report(
    context: dg.AssetExecutionContext,
    fold_checkpoint: dict[str, Any],
    fold_evaluation: dict[str, Any],
    resized_images: PackPointer | None,
) -> dg.MaterializeResult[CrossValidationPointer]:
    """All folds together: every training image predicted by a model that never saw its group, and the ensemble of folds."""
    with stage_run(context) as run:
        pack = require(resized_images, "resized_images", run.job)
        checkpoints = _complete("fold_checkpoint", fold_checkpoint, run.job.dataset)
        evaluations = _complete("fold_evaluation", fold_evaluation, run.job.dataset)
        from brainmri_core.cross_validation import cross_validate

        pointer = cross_validate(run.config.evaluate, pack, checkpoints, evaluations, run.job)
        return run.result(
            pointer, model_metadata.of_cross_validation(run.job.layout, pointer), pointer.headline
        )


@stage_asset("fold_ensemble", "cross_validation", {"python"})
def fold_ensemble(
    context: dg.AssetExecutionContext,
    fold_checkpoint: dict[str, Any],
    fold_evaluation: dict[str, Any],
    resized_images: PackPointer | None,
) -> dg.MaterializeResult[FoldEnsemblePointer]:
    """The models of all folds as one predictor, their mean probability: a checkpoint like any other."""
    with stage_run(context) as run:
        pack = require(resized_images, "resized_images", run.job)
        checkpoints = _complete("fold_checkpoint", fold_checkpoint, run.job.dataset)
        evaluations = _complete("fold_evaluation", fold_evaluation, run.job.dataset)
        from brainmri_core.ensemble import fold_ensemble as join

        pointer = join(run.config.train.io.out_models, pack, checkpoints, evaluations, run.job)
        shown = model_metadata.of_ensemble(run.job.layout, pointer)
        return run.result(pointer, shown, {"val_macro_f1": pointer.val_macro_f1, "members": len(checkpoints)})


@stage_asset("ensemble_evaluation", "cross_validation", {"pytorch", "html"})
def ensemble_evaluation(
    context: dg.AssetExecutionContext,
    fold_ensemble: FoldEnsemblePointer | None,
    resized_images: PackPointer | None,
) -> dg.MaterializeResult[EvaluationPointer]:
    """How well the ensemble of folds does on the test split, with a report."""
    with stage_run(context) as run:
        pack = pack_for("evaluate", run.config, resized_images, run.job)
        ensemble = require(fold_ensemble, "fold_ensemble", run.job)
        from brainmri_core.evaluate import evaluate

        run = replace(run, experiment=ensemble.experiment)
        pointer = evaluate(run.config.evaluate, ensemble, pack, run.job)
        return run.result(pointer, model_metadata.of_evaluate(run.job.layout, pointer), pointer.headline)


def _complete(asset: str, found: dict[str, Pointer | None], dataset: str) -> list[Any]:
    """Return the pointers of all folds in order, or say which are missing."""
    missing = [key.partition("|")[2] for key, pointer in sorted(found.items()) if pointer is None]
    if missing:
        raise MissingUpstreamError(
            f"The {asset} of {dataset} is missing for the folds {', '.join(missing)}; "
            f"make them with `brainmri backfill --select fold_evaluation --dataset {dataset}`."
        )
    return [found[key] for key in sorted(found, key=lambda key: int(key.partition("|")[2]))]


CROSS_VALIDATION = [
    fold_checkpoint,
    fold_evaluation,
    cross_validation_report,
    fold_ensemble,
    ensemble_evaluation,
]
