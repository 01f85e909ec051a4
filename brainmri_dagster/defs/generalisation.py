"""The matrix of every model on every data set, an asset without partitions."""

# No postponed annotations here: Dagster reads the type of `context` from the function itself.

import dagster as dg

from brainmri_core.project.pointers import GeneralisationPointer
from brainmri_dagster.defs import model_metadata
from brainmri_dagster.defs.assets import stage_asset
from brainmri_dagster.running.stage_run import stage_run


@stage_asset("generalisation", "external", {"html"}, deps=("external_evaluation",), partitions=None)
def generalisation(context: dg.AssetExecutionContext) -> dg.MaterializeResult[GeneralisationPointer]:
    """How well every model does on every data set: the newest external evaluation of each pair, as heat map, table and page."""
    with stage_run(context) as run:
        from brainmri_core.generalisation import generalise

        pointer = generalise(run.job)
        headline = pointer.model_dump(include={"scored", "best_worst", "best_mean"})
        return run.result(pointer, model_metadata.of_generalisation(run.job.layout, pointer), headline)
