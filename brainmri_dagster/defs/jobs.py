"""Jobs: named selections of the graph for schedules, sensors and the launchpad."""

from __future__ import annotations

import json

import dagster as dg

from brainmri_dagster.graph.asset_table import FOLD_ASSETS, PIPELINE

# With several machines, runs go to one with a GPU by default. These tags send a run that trains and predicts nothing, one
# without an asset of the pool `accelerator`, to a machine without one.
WITHOUT_GPU = {
    "dagster-celery/queue": "cpu",
    "dagster-k8s/config": json.dumps(
        {"container_config": {"resources": {"limits": {"nvidia.com/gpu": "0"}}}}
    ),
}
pipeline_job = dg.define_asset_job(
    "pipeline",
    selection=dg.AssetSelection.assets(*PIPELINE),
    description="The whole graph, from the archive to the evaluation.",
)
prepare_job = dg.define_asset_job(
    "prepare_data",
    selection=dg.AssetSelection.assets("raw_dataset", "dataset_split", "resized_images", "validation_report"),
    description="Everything before training.",
    tags=WITHOUT_GPU,
)
refresh_job = dg.define_asset_job(
    "refresh",
    selection=dg.AssetSelection.assets(*PIPELINE, "champion"),
    description="The whole graph, and the decision on the champion.",
)
retrain_job = dg.define_asset_job(
    "retrain",
    selection=dg.AssetSelection.assets("model_checkpoint", "evaluation", "champion"),
    description="Training and evaluation on the newest resized images, and the decision on the champion.",
)
folds_job = dg.define_asset_job(
    "folds",
    selection=dg.AssetSelection.assets(*FOLD_ASSETS),
    description="Train without a fold and evaluate on it; launch it as a backfill over all folds of a data set.",
)
JOBS = [pipeline_job, prepare_job, refresh_job, retrain_job]
