"""The embeddings asset: the features of every image by a frozen network."""

# No postponed annotations here: Dagster reads the type of `context` from the function itself.

import dagster as dg

from brainmri_core.project.pointers import EmbeddingsPointer, PackPointer
from brainmri_dagster.defs import data_metadata
from brainmri_dagster.defs.assets import stage_asset
from brainmri_dagster.running.stage_run import stage_run
from brainmri_dagster.running.upstream import require


@stage_asset("embeddings", "embeddings", {"pytorch", "numpy"})
def embeddings(
    context: dg.AssetExecutionContext, resized_images: PackPointer | None
) -> dg.MaterializeResult[EmbeddingsPointer]:
    """The features of every image by a frozen network, computed once, and the score of a linear probe on them over the folds."""
    with stage_run(context) as run:
        pack = require(resized_images, "resized_images", run.job)
        from brainmri_core.embeddings import embeddings as compute

        pointer = compute(run.config.embeddings, pack, run.job)
        headline = {"images": pointer.images, **pointer.headline}
        return run.result(pointer, data_metadata.of_embeddings(run.job.layout, pointer), headline)
