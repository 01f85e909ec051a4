"""The leaderboard asset and a job per experiment."""

# No postponed annotations here: Dagster reads the type of `context` from the function itself.

import csv
from typing import Any

import dagster as dg

from brainmri_core.config.experiments import all_experiments, job_name
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointers import LeaderboardPointer
from brainmri_dagster.defs import metadata
from brainmri_dagster.defs.assets import stage_asset
from brainmri_dagster.graph.asset_table import EXPERIMENT_TAG
from brainmri_dagster.graph.resources import defaults
from brainmri_dagster.graph.run_config import run_config_for
from brainmri_dagster.running.recorded_evaluations import newest_evaluations
from brainmri_dagster.running.stage_run import stage_run

TITLES = {"test_macro_f1": "test_macro_f1 (not used for ranking)"}
EXPERIMENT_ASSETS = ["model_checkpoint", "evaluation", "leaderboard"]


@stage_asset("leaderboard", "model", {"python", "csv"}, ("evaluation",))
def leaderboard(context: dg.AssetExecutionContext) -> dg.MaterializeResult[LeaderboardPointer]:
    """The newest evaluation of every experiment, ranked by out-of-fold or validation predictions, never by the test split."""
    with stage_run(context) as run:
        from brainmri_core.leaderboard import Entry, rank

        newest = newest_evaluations(context.instance, run.job.layout, run.job.dataset)
        entries = [Entry(name, evaluation) for name, evaluation in newest.items()]
        pointer = rank(entries, run.job, run.config.evaluate.choose_by)
        return run.result(pointer, shown(run.job.layout, pointer), {"experiments": pointer.experiments})


def shown(layout: Layout, pointer: LeaderboardPointer) -> dict[str, Any]:
    """Return the table and the plot for the UI."""
    with layout.absolute(pointer.table).open(newline="", encoding="utf-8") as handle:
        rows = {
            str(place): {TITLES.get(name, name): value for name, value in row.items()}
            for place, row in enumerate(csv.DictReader(handle), 1)
        }
    plot = metadata.picture(layout.absolute(pointer.plot), "leaderboard", 700)
    return {
        "experiments": pointer.experiments,
        "ranked_by": pointer.ranked_by or "test",
        "leaderboard": metadata.table(rows, "place"),
        "table": metadata.path_of(layout, pointer.table),
        **({"plot": plot} if plot else {}),
    }


EXPERIMENT_JOBS = [
    dg.define_asset_job(
        job_name(name),
        selection=dg.AssetSelection.assets(*EXPERIMENT_ASSETS),
        config=run_config_for(config, EXPERIMENT_ASSETS),
        tags={EXPERIMENT_TAG: name},
        description=f"Train and evaluate with configs/experiments/{name}.yaml, and rank it.",
    )
    for name, config in all_experiments(defaults()).items()
]
