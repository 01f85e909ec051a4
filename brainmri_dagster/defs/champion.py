"""The champion asset: which checkpoint is in use, and why."""

# No postponed annotations here: Dagster reads the type of `context` from the function itself.

import dagster as dg

from brainmri_core.project.pointers import ChampionPointer, CheckpointPointer, EvaluationPointer
from brainmri_dagster.defs import metadata
from brainmri_dagster.defs.assets import stage_asset
from brainmri_dagster.running.stage_run import stage_run
from brainmri_dagster.running.upstream import require


@stage_asset("champion", "model", {"pytorch"})
def champion(
    context: dg.AssetExecutionContext,
    model_checkpoint: CheckpointPointer | None,
    evaluation: EvaluationPointer | None,
) -> dg.MaterializeResult[ChampionPointer]:
    """The checkpoint in use: replaced only by one that is better beyond noise on images neither was trained on."""
    with stage_run(context) as run:
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
