"""The champion asset: which checkpoint is in use, and why."""

# No postponed annotations here: Dagster reads the type of `context` from the function itself.

import dagster as dg

from brainmri_core.project.job import Job
from brainmri_core.project.pointer_store import history
from brainmri_core.project.pointers import ChampionPointer, CheckpointPointer, EvaluationPointer
from brainmri_dagster.defs import metadata
from brainmri_dagster.defs.assets import stage_asset
from brainmri_dagster.running.stage_run import stage_run
from brainmri_dagster.running.upstream import recorded_pointer, require


@stage_asset("champion", "model", {"pytorch"})
def champion(
    context: dg.AssetExecutionContext,
    model_checkpoint: CheckpointPointer | None,
    evaluation: EvaluationPointer | None,
) -> dg.MaterializeResult[ChampionPointer]:
    """The checkpoint in use. It is replaced only by one that is better beyond noise, on images that neither was trained on."""
    with stage_run(context) as run:
        if run.config.evaluate.challenger == "fold_ensemble":
            checkpoint, measured = _fold_ensemble(context.instance, run.job)
        else:
            checkpoint = require(model_checkpoint, "model_checkpoint", run.job)
            measured = require(evaluation, "evaluation", run.job)
        from brainmri_core.champion import crown

        pointer = crown(run.config.evaluate, run.config.train.io.out_models, checkpoint, measured, run.job)
        shown = {
            "crowned": pointer.crowned,
            "reason": pointer.reason,
            "weights": metadata.path_of(run.job.layout, pointer.weights),
            "decision": metadata.path_of(run.job.layout, pointer.decision),
        }
        return run.result(pointer, shown, {"crowned": int(pointer.crowned)})


def _fold_ensemble(instance: dg.DagsterInstance, job: Job) -> tuple[CheckpointPointer, EvaluationPointer]:
    """Return the newest ensemble of folds and its newest evaluation.

    They are not inputs of the asset, because few data sets have an ensemble.
    """
    ensemble = require(
        recorded_pointer(instance, job.layout, "fold_ensemble", job.dataset), "fold_ensemble", job
    )
    assert isinstance(ensemble, CheckpointPointer)
    own = (
        item
        for item in history(job.layout, EvaluationPointer, job.dataset)
        if item.checkpoint_pointer == ensemble.pointer_path
    )
    return ensemble, require(next(own, None), "ensemble_evaluation", job)
