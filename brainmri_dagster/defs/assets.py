"""The six assets of the pipeline: each runs one stage of `brainmri_core`. Heavy imports are inside the bodies, so loading is quick."""

# No postponed annotations here: Dagster reads the type of `context` from the function itself.

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import dagster as dg

from brainmri_core.config import Stage
from brainmri_core.config.base import StageConfig
from brainmri_core.errors import DataError
from brainmri_core.evaluation.metrics_schema import read_metrics
from brainmri_core.project.pointers import (
    CheckpointPointer,
    EvaluationPointer,
    FetchPointer,
    MappingPointer,
    PackPointer,
    ValidationPointer,
)
from brainmri_dagster.defs import data_metadata, model_metadata
from brainmri_dagster.defs.checks import (
    EVALUATION_CHECKS,
    VALIDATION_CHECKS,
    evaluation_results,
    validation_results,
)
from brainmri_dagster.graph.asset_table import ASSETS
from brainmri_dagster.graph.config_types import config_schema
from brainmri_dagster.graph.partitions import datasets
from brainmri_dagster.graph.resources import defaults
from brainmri_dagster.running.recorded_evaluations import regression_of
from brainmri_dagster.running.stage_run import stage_run
from brainmri_dagster.running.staleness import lineage
from brainmri_dagster.running.upstream import checkpoint_for, pack_for, packed_tree, raw_folder, require

_ON_CHECKED_DATA = dg.AutomationCondition.eager() & dg.AutomationCondition.all_deps_blocking_checks_passed()


def stage_asset(
    name: str,
    group: str,
    kinds: set[str],
    deps: Sequence[str | dg.AssetDep] = (),
    check_specs: Sequence[dg.AssetCheckSpec] = (),
    partitions: dg.PartitionsDefinition[Any] | None = datasets,
    ins: Mapping[str, dg.AssetIn] | None = None,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Return the decorator of an asset; its code version covers code and default config of its stage and all stages before."""
    item = ASSETS[name]
    schema: dict[str, dg.Field] | None = None
    if item.stage is not None:
        schema = config_schema(_block(item.stage))
        schema |= {other: dg.Field(config_schema(_block(other))) for other in item.also}
    decorate: Callable[[Callable[..., Any]], dg.AssetsDefinition] = dg.asset(
        name=name,
        partitions_def=partitions,
        deps=deps,
        ins=ins,
        check_specs=check_specs,
        io_manager_key="pointer_io_manager",
        required_resource_keys={"project"},
        config_schema=schema,
        code_version=f"{item.code_version}-{lineage(name, defaults())[:8]}",
        group_name=group,
        kinds=kinds,
        owners=["team:imaging"],
        tags={"stage": item.entry},
        pool="accelerator" if "pytorch" in kinds else "dataset",
        automation_condition=_ON_CHECKED_DATA if group == "model" else None,
    )
    return decorate


def _block(stage: Stage) -> StageConfig:
    """Return a stage's block of the default configuration."""
    block: StageConfig = getattr(defaults(), "validate_" if stage == "validate" else stage)
    return block


@stage_asset("raw_dataset", "data", {"python", "zip"})
def raw_dataset(context: dg.AssetExecutionContext) -> dg.MaterializeResult[FetchPointer]:
    """The data set as it was delivered, unpacked and indexed by file hash."""
    with stage_run(context) as run:
        from brainmri_core.fetch import fetch

        pointer = fetch(run.config.fetch, run.job)
        return run.result(
            pointer, data_metadata.of_fetch(run.job.layout, pointer), {"images": pointer.n_images}
        )


@stage_asset("dataset_split", "data", {"python", "parquet"})
def dataset_split(
    context: dg.AssetExecutionContext, raw_dataset: FetchPointer | None
) -> dg.MaterializeResult[MappingPointer]:
    """Which images are for training and which for testing; patients and copies stay on one side."""
    with stage_run(context) as run:
        fetched = require(raw_dataset, "raw_dataset", run.job)
        from brainmri_core.split import split

        pointer = split(run.config.split, fetched, run.job)
        counts = {f"{name}_images": sum(item.values()) for name, item in pointer.counts.items()}
        return run.result(pointer, data_metadata.of_split(run.job.layout, pointer), counts)


@stage_asset("resized_images", "data", {"python", "numpy"})
def resized_images(
    context: dg.AssetExecutionContext, dataset_split: MappingPointer | None
) -> dg.MaterializeResult[PackPointer]:
    """Every image at one size, packed into one memory-mapped array that training and evaluation read."""
    with stage_run(context) as run:
        if dataset_split is None and (tree := raw_folder(run.config.resize.in_dir, run.job)) is not None:
            pointer = packed_tree(tree, "train", run.config, run.job)
        else:
            mapping = require(dataset_split, "dataset_split", run.job, or_set="resize.in_dir")
            from brainmri_core.resize import resize

            pointer = resize(run.config.resize, mapping, run.job)
        return run.result(
            pointer, data_metadata.of_resize(run.job.layout, pointer), {"images": pointer.n_images}
        )


@stage_asset("validation_report", "data", {"python", "json"}, check_specs=VALIDATION_CHECKS)
def validation_report(
    context: dg.AssetExecutionContext, resized_images: PackPointer | None
) -> Iterator[dg.MaterializeResult[ValidationPointer]]:
    """What is wrong with the data, found before a model is trained on it. The report is kept even when it stops the run."""
    with stage_run(context) as run:
        pack = pack_for("validate", run.config, resized_images, run.job)
        from brainmri_core.validate import validate
        from brainmri_core.validation.report import failure_sentence, load_report

        pointer = validate(run.config.validate_, pack, run.job)
        report = load_report(run.job.layout, pointer)
        shown = data_metadata.of_validate(run.job.layout, pointer)
        yield run.result(pointer, shown, pointer.severities, validation_results(report))
        if not report.passed:
            raise DataError(failure_sentence(report, run.job.layout.absolute(pointer.page)))


@stage_asset("model_checkpoint", "model", {"pytorch"}, deps=("validation_report",))
def model_checkpoint(
    context: dg.AssetExecutionContext, resized_images: PackPointer | None
) -> dg.MaterializeResult[CheckpointPointer]:
    """The best checkpoint of a training by validation macro F1, with everything needed to use it."""
    with stage_run(context) as run:
        pack = pack_for("train", run.config, resized_images, run.job)
        from brainmri_dagster.training.distributed import run_training

        trained = run_training(run.config.train, pack, run, context)
        pointer = trained.model_copy(update={"experiment": run.experiment})
        score = {"val_macro_f1": pointer.val_macro_f1, "best_epoch": pointer.best_epoch}
        return run.result(pointer, model_metadata.of_train(run.job.layout, pointer), score)


@stage_asset("evaluation", "model", {"pytorch", "html"}, check_specs=EVALUATION_CHECKS)
def evaluation(
    context: dg.AssetExecutionContext,
    model_checkpoint: CheckpointPointer | None,
    resized_images: PackPointer | None,
) -> Iterator[dg.MaterializeResult[EvaluationPointer]]:
    """How well a checkpoint does on the test split, with a report."""
    with stage_run(context) as run:
        pack = pack_for("evaluate", run.config, resized_images, run.job)
        checkpoint = checkpoint_for(run.config, model_checkpoint, run.job)
        from brainmri_core.evaluate import evaluate

        if checkpoint is not None:  # an evaluation run alone belongs to the experiment that trained the model
            run = replace(run, experiment=checkpoint.experiment)
        pointer = evaluate(run.config.evaluate, checkpoint, pack, run.job)
        previous = regression_of(context.instance, run, pointer)
        metrics = read_metrics(run.job.layout.absolute(pointer.metrics))
        checks = evaluation_results(metrics, run.config.evaluate.max_ece, previous)
        yield run.result(
            pointer, model_metadata.of_evaluate(run.job.layout, pointer), pointer.headline, checks
        )


GRAPH = [raw_dataset, dataset_split, resized_images, validation_report, model_checkpoint, evaluation]
