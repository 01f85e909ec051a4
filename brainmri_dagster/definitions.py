"""The graph of one data set. All of it has one partitions definition, so that Dagster makes all of it in one run."""

from __future__ import annotations

import dagster as dg

from brainmri_dagster.assets import GRAPH
from brainmri_dagster.champion import champion
from brainmri_dagster.io_managers import pointer_io_manager
from brainmri_dagster.jobs import JOBS
from brainmri_dagster.leaderboard import EXPERIMENT_JOBS, leaderboard
from brainmri_dagster.pools import install
from brainmri_dagster.refused_partitions import word_refusals
from brainmri_dagster.resources import project_resource
from brainmri_dagster.sensors import SCHEDULES, SENSORS

install()
word_refusals()
defs = dg.Definitions(
    assets=[*GRAPH, champion, leaderboard],
    jobs=[*JOBS, *EXPERIMENT_JOBS],
    sensors=SENSORS,
    schedules=SCHEDULES,
    resources={"project": project_resource, "pointer_io_manager": pointer_io_manager},
    # The stages of one data set follow one another, so a process per step would only add start-up time.
    executor=dg.in_process_executor,
)
