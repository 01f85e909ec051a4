"""The graph of one data set. All its assets share one partitions definition, so Dagster can make all of them in one run."""

from __future__ import annotations

import dagster as dg

from brainmri_dagster.defs.assets import GRAPH
from brainmri_dagster.defs.batch import batch_predictions
from brainmri_dagster.defs.champion import champion
from brainmri_dagster.defs.embeddings import embeddings
from brainmri_dagster.defs.incoming import incoming_images, incoming_job
from brainmri_dagster.defs.jobs import JOBS
from brainmri_dagster.defs.leaderboard import EXPERIMENT_JOBS, leaderboard
from brainmri_dagster.defs.sensors import SCHEDULES, SENSORS
from brainmri_dagster.graph.resources import project_resource
from brainmri_dagster.running.io_managers import pointer_io_manager
from brainmri_dagster.running.pools import install
from brainmri_dagster.running.postgres import wait_for_postgres
from brainmri_dagster.running.refused_partitions import explain_refusals

install()
wait_for_postgres()
explain_refusals()
defs = dg.Definitions(
    assets=[*GRAPH, champion, leaderboard, batch_predictions, embeddings],
    jobs=[*JOBS, *EXPERIMENT_JOBS, incoming_job],
    sensors=[*SENSORS, incoming_images],
    schedules=SCHEDULES,
    resources={"project": project_resource, "pointer_io_manager": pointer_io_manager},
    # The stages of one data set run one after another, so a process per step would only add start-up time.
    executor=dg.in_process_executor,
)
