"""The external evaluation asset: a model of one data set, measured on another."""

# No postponed annotations here: Dagster reads the type of `context` from the function itself.

from collections.abc import Iterator

import dagster as dg

from brainmri_core.errors import DataError
from brainmri_core.project.pointers import (
    ChampionPointer,
    CheckpointPointer,
    ExternalEvaluationPointer,
    PackPointer,
)
from brainmri_dagster.defs import model_metadata
from brainmri_dagster.defs.assets import stage_asset
from brainmri_dagster.defs.checks import EXTERNAL_CHECKS, external_results
from brainmri_dagster.graph.asset_table import trained_on
from brainmri_dagster.graph.partitions import of_measured, pairs
from brainmri_dagster.running.stage_run import stage_run
from brainmri_dagster.running.upstream import require

# Dagster cannot map one asset's partitions by one dimension and another's by the other. So the model's inputs are mapped to
# all partitions, and the IO manager loads that of the data set trained on.
_ANY_MODEL = dg.AllPartitionMapping()


@stage_asset(
    "external_evaluation",
    "external",
    {"pytorch", "html"},
    deps=(dg.AssetDep("evaluation", partition_mapping=_ANY_MODEL),),
    check_specs=EXTERNAL_CHECKS,
    partitions=pairs,
    ins={
        "champion": dg.AssetIn(partition_mapping=_ANY_MODEL),
        "model_checkpoint": dg.AssetIn(partition_mapping=_ANY_MODEL),
        "resized_images": dg.AssetIn(partition_mapping=of_measured()),
    },
)
def external_evaluation(
    context: dg.AssetExecutionContext,
    champion: ChampionPointer | None,
    model_checkpoint: CheckpointPointer | None,
    resized_images: PackPointer | None,
) -> Iterator[dg.MaterializeResult[ExternalEvaluationPointer]]:
    """How well the model of one data set does on another, without the images it may have seen. Kept even if no image is left."""
    with stage_run(context) as run:
        home, job, config = str(trained_on(context.partition_key)), run.job, run.config.external
        from brainmri_core.classifier.search import checkpoint_in_use
        from brainmri_core.evaluation.external_schema import read_external_metrics
        from brainmri_core.external import check_pair, evaluate_elsewhere

        check_pair(home, job)
        pack = require(resized_images, "resized_images", job)
        weights = (
            checkpoint_in_use(job.layout, champion, model_checkpoint, home)
            if config.checkpoint is None
            else job.layout.given(config.checkpoint)
        )
        pointer = evaluate_elsewhere(config, home, weights, pack, job)
        checks = external_results(read_external_metrics(job.layout.absolute(pointer.metrics)), config.max_ece)
        yield run.result(pointer, model_metadata.of_external(job.layout, pointer), pointer.headline, checks)
        if pointer.reason is not None:
            raise DataError(f"{pointer.reason} See {job.layout.absolute(pointer.report)}.")
