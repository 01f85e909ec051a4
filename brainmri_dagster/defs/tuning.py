"""The search for better training settings, partitioned by data set; several runs can work on one study together."""

# No postponed annotations here: Dagster reads the type of `context` from the function itself.

import csv
from dataclasses import replace

import dagster as dg

from brainmri_core.config.training import TrainConfig
from brainmri_core.escaping import markdown
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointers import CheckpointPointer, PackPointer, TuningPointer
from brainmri_dagster.defs import metadata
from brainmri_dagster.defs.assets import stage_asset
from brainmri_dagster.graph.resources import defaults
from brainmri_dagster.running.stage_run import stage_run
from brainmri_dagster.running.upstream import pack_for


@stage_asset("tuning_study", "tuning", {"pytorch", "yaml"}, ("validation_report",))
def tuning_study(
    context: dg.AssetExecutionContext, resized_images: PackPointer | None
) -> dg.MaterializeResult[TuningPointer]:
    """The result of a search over the folds of the training side: the best settings as an experiment, and their expected score."""
    with stage_run(context) as run:
        pack = pack_for("train", run.config, resized_images, run.job)
        from brainmri_core.tuning import tune
        from brainmri_dagster.training.distributed import run_training

        def fit(config: TrainConfig, seen: PackPointer, job: Job) -> CheckpointPointer:
            return run_training(config, seen, replace(run, job=job), context)

        usual = TrainConfig.model_validate(defaults().resolved()["train"])
        pointer = tune(run.config.tune, run.config.train, pack, run.job, usual=usual, fit=fit)
        return run.result(pointer, shown(run.job.layout, pointer), pointer.headline)


def shown(layout: Layout, pointer: TuningPointer) -> metadata.Metadata:
    """Return the best trial, the note on its score, all trials and the two pictures for the UI."""
    folder = layout.absolute(pointer.folder)
    with layout.absolute(pointer.table).open(newline="", encoding="utf-8") as handle:
        rows = {row.pop("trial"): row for row in csv.DictReader(handle)}
    pictures = {
        "history": metadata.picture(folder / "history.png", "scores of the trials", 700),
        "importance": metadata.picture(folder / "importance.png", "importance of the settings", 700),
    }
    return {
        **metadata.numbers(pointer.headline),
        "study": pointer.study,
        "note": dg.MetadataValue.md(markdown(pointer.note)),
        "experiment_file": metadata.path_of(layout, pointer.experiment_file),
        "trials": metadata.table(rows, "trial"),
        **{name: item for name, item in pictures.items() if item},
        "table": metadata.path_of(layout, pointer.table),
    }
