"""One stage inside a run, however that was launched: its plan, log, manifest entry, and errors as one sentence."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import dagster as dg

from brainmri_core.config import PipelineConfig
from brainmri_core.config.base import validate_config
from brainmri_core.errors import BrainMRIError, ConfigError
from brainmri_core.gc import remove_leftovers
from brainmri_core.project.catalogue import EVERY, find_entry
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout, checked_run_id
from brainmri_core.project.logs import Record, Sink, event_text, stage_log, stream_sink, throttled
from brainmri_core.project.pointers import Pointer
from brainmri_core.project.run_record import (
    StageRecord,
    make_plan,
    new_run_id,
    refuse_existing,
    stage_record,
    write_plan,
)
from brainmri_core.project.run_schema import PlannedStage, read_manifest, read_plan
from brainmri_core.project.run_sharing import MANIFEST_FILE, take_in_run
from brainmri_dagster.graph.asset_table import (
    APART,
    ASSETS,
    COMMAND_TAG,
    CONSOLE_TAG,
    EXPERIMENT_TAG,
    FOLD_ASSETS,
    PROCESS_TAG,
    RUN_ID_TAG,
    WHOLE_ASSETS,
    WITHOUT_LABELS,
    dataset_of,
    is_fold,
    partition_read,
)
from brainmri_dagster.graph.partitions import catalogue
from brainmri_dagster.graph.resources import ProjectConfig, defaults
from brainmri_dagster.running.processes import this_process
from brainmri_dagster.running.staleness import recipe
from brainmri_dagster.running.upstream import recorded_pointer


@dataclass(frozen=True)
class StageRun:
    """What the body of an asset is given."""

    config: PipelineConfig
    job: Job
    record: StageRecord
    asset: str
    experiment: str

    def result(
        self,
        pointer: Pointer,
        metadata: Mapping[str, Any],
        headline: Mapping[str, Any] | None = None,
        checks: Sequence[dg.AssetCheckResult] = (),
    ) -> dg.MaterializeResult[Any]:
        """Record the result in the manifest and hand it to Dagster with its data version."""
        self.record.result(pointer, headline)
        return dg.MaterializeResult(
            value=pointer,
            metadata={**metadata, "recipe": recipe(self.asset, self.config), "experiment": self.experiment},
            data_version=dg.DataVersion(pointer.content_hash),
            check_results=list(checks),
        )


def run_id_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """Return the project's run id: the one given as a tag, else one made from the run's creation time and Dagster id.

    A re-execution copies its parent's tags, so its tag is ignored.

    Raises
    ------
    ConfigError
        If the tag, which anybody who can launch a run may set, cannot name a folder.
    """
    given = run.tags.get(RUN_ID_TAG)
    if given and run.parent_run_id is None:
        return checked_run_id(given)
    record = instance.get_run_record_by_id(run.run_id)
    if record is None:
        raise ConfigError(f"The Dagster instance has no record of the run {run.run_id}; start it again.")
    return new_run_id(record.create_timestamp, run.run_id)


def config_of(step: Any, project: ProjectConfig) -> PipelineConfig:
    """Return the whole configuration of a step's run, with seeds: the default configuration, overridden by the run config.

    Raises
    ------
    ConfigError
        If any stage's config breaks a bound or a rule, whichever stage asks first.
    """
    value = defaults().model_dump(mode="json", by_alias=True) | project.model_dump(mode="json", by_alias=True)
    for name, op in step.resolved_run_config.ops.items():
        if name in ASSETS and (stage := ASSETS[name].stage) is not None:
            value[stage] = {key: item for key, item in op.config.items() if key not in ASSETS[name].also}
            value |= {other: op.config[other] for other in ASSETS[name].also}
    return validate_config(PipelineConfig, value, "run config").with_seeds()


@contextmanager
def stage_run(context: dg.AssetExecutionContext) -> Iterator[StageRun]:
    """Run an asset's body as a stage of its run.

    The run's plan is written before the first stage works; the manifest gets this stage's entry whatever happens; the
    log goes to the run's folder and to Dagster.

    Raises
    ------
    dagster.Failure
        In place of any `BrainMRIError`: its one sentence, without retries.
    """
    asset = context.asset_key.to_user_string()
    if not context.has_partition_key and asset not in WHOLE_ASSETS:
        raise failure(
            ConfigError(f"The run of {asset} has no partition; choose a data set: {', '.join(catalogue())}.")
        )
    partition = context.partition_key if context.has_partition_key else EVERY.key
    with _open(context.op_execution_context.get_step_execution_context(), asset, partition) as run:
        yield run


def fail_stage(step_context: Any, partition: str, error: BrainMRIError) -> NoReturn:
    """Fail the stage with an error of its IO manager, just like an error of its body."""
    with _open(step_context, step_context.op.name, partition):
        raise error
    raise error


@contextmanager
def _open(step: Any, asset: str, partition: str) -> Iterator[StageRun]:
    project: ProjectConfig = step.scoped_resources_builder.build({"project"}).project
    layout, stage = project.layout, ASSETS[asset].entry
    try:
        run_id = run_id_of(step.instance, step.dagster_run)
        _claim(layout, run_id, step.dagster_run)
        problem: BrainMRIError | None = None
        config, inputs = PipelineConfig(), {}
        try:
            config = config_of(step, project)
            inputs = _ensure_plan(step, project, config, run_id, partition).get(asset, {})
        except BrainMRIError as error:
            problem = error
        reported: set[str] = set()
        sinks = [_dagster_sink(step, project)]
        if CONSOLE_TAG in step.dagster_run.tags or project.log.json_lines:
            sinks.append(_console_sink(project, reported))
        dataset = dataset_of(partition)
        with (
            stage_record(layout, run_id, stage, asset, inputs) as record,
            stage_log(
                stage,
                run_id,
                dataset,
                project.log,
                layout.run_dir(run_id),
                sinks,
                console=False,
            ) as log,
        ):
            try:
                if problem is not None:
                    raise problem
                entry = EVERY if dataset == EVERY.key else find_entry(catalogue(), dataset)
                if asset not in WITHOUT_LABELS:
                    entry.require_labels(f"the asset {asset}")
                if entry is not EVERY:
                    _check_dataset(config, dataset)
                job = Job(
                    layout=layout, run_id=run_id, entry=entry, log=log, env=config.env, cluster=config.cluster
                )
                log.info("started", asset=asset, partition=partition)
                yield StageRun(
                    config, job, record, asset, step.dagster_run.tags.get(EXPERIMENT_TAG, "default")
                )
                log.info("finished")
            except BrainMRIError as error:
                if CONSOLE_TAG in step.dagster_run.tags:
                    reported.add(str(error))
                log.error(str(error))
                raise
    except BrainMRIError as error:
        raise failure(error) from None


def failure(error: BrainMRIError) -> dg.Failure:
    """Turn one of our errors into Dagster's: the same sentence, never retried."""
    return dg.Failure(
        description=str(error),
        metadata={"error": type(error).__name__, "exit_code": error.exit_code},
        allow_retries=False,
    )


def _claim(layout: Layout, run_id: str, run: dg.DagsterRun) -> None:
    """Refuse a given run id whose folder belongs to another run, before anything is written there."""
    take_in_run(layout, run_id)
    path = layout.run_dir(run_id) / MANIFEST_FILE
    if path.is_file() and read_manifest(path).dagster_run_id not in (None, run.run_id):
        refuse_existing(layout, run_id)


def _check_dataset(config: PipelineConfig, partition: str) -> None:
    if config.dataset is not None and config.dataset != partition:
        raise ConfigError(
            f"The configuration names the data set {config.dataset!r} but the partition is {partition!r}; "
            "choose that partition or leave fetch.dataset and split.dataset empty."
        )


def _console_sink(project: ProjectConfig, reported: set[str]) -> Sink:
    """Return a sink for the console that leaves out errors which the command line prints itself."""
    show = stream_sink(json_lines=project.log.json_lines)

    def emit(record: Record) -> None:
        if record["event"] not in reported:
            show(record)

    return emit


def _dagster_sink(step: Any, project: ProjectConfig) -> Sink:
    def emit(record: Record) -> None:
        text = event_text(record, json_lines=project.log.json_lines)
        step.log.log(logging.getLevelNamesMapping()[record["level"]], text)

    return throttled(emit, "epoch")


def _ensure_plan(
    step: Any, project: ProjectConfig, config: PipelineConfig, run_id: str, partition: str
) -> dict[str, dict[str, str | None]]:
    """Write the run's plan unless an earlier step has, and return each planned asset's input pointers."""
    run: dg.DagsterRun = step.dagster_run
    path = project.layout.run_dir(run_id) / "plan.json"
    if not path.is_file():
        step.instance.add_run_tags(run.run_id, {PROCESS_TAG: this_process()})
        remove_leftovers(project.layout, config)
        nodes = [node.name for node in step.job_def.nodes if node.name in ASSETS]
        if run.step_keys_to_execute:
            nodes = [name for name in nodes if name in run.step_keys_to_execute]
        selected = [name for name in ASSETS if name in nodes]
        stages = plan_stages(step.instance, project, config, partition, selected)
        write_plan(
            project.layout,
            make_plan(
                run_id=run_id,
                dagster_run_id=run.run_id,
                dataset=dataset_of(partition),
                command=run.tags.get(COMMAND_TAG) or equivalent_command(selected, partition, run.run_config),
                env=config.env.model_dump(mode="json"),
                stages=stages,
            ),
        )
    return {item.asset: item.inputs for item in read_plan(path).stages}


def plan_stages(
    instance: dg.DagsterInstance,
    project: ProjectConfig,
    config: PipelineConfig,
    partition: str,
    selected: Sequence[str],
) -> list[PlannedStage]:
    """Describe the selected assets as planned stages; an input that the run itself makes is None."""
    stages = []
    for name in selected:
        item = ASSETS[name]
        inputs: dict[str, str | None] = {}
        for upstream in item.inputs:
            inputs[upstream] = None
            if upstream not in selected and (upstream not in FOLD_ASSETS or is_fold(partition)):
                key = partition_read(upstream, partition)
                found = recorded_pointer(instance, project.layout, upstream, key)
                inputs[upstream] = found.pointer_path if found else None
        resolved = config.stage(item.stage).model_dump(mode="json", by_alias=True) if item.stage else {}
        resolved |= {other: config.stage(other).model_dump(mode="json", by_alias=True) for other in item.also}
        stages.append(PlannedStage(stage=item.entry, asset=name, config=resolved, inputs=inputs))
    return stages


def equivalent_command(selected: Sequence[str], partition: str, run_config: Mapping[str, Any]) -> str:
    """Return the command line that would start the same run."""
    module = f"brainmri_dagster.{'definitions' if set(APART).isdisjoint(selected) else 'code_location'}"
    words = ["dagster", "asset", "materialize", "-m", module, "--select", ",".join(selected)]
    words += ["--partition", partition] if partition != EVERY.key else []
    if run_config:
        words += ["--config-json", json.dumps(run_config)]
    return shlex.join(words)
