"""Runs of the graph in this process, on a persistent Dagster instance, as the command line starts them."""

from __future__ import annotations

import os
import shlex
import sys
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import dagster as dg

from brainmri_core.config import BLOCKS, STAGES, PipelineConfig, Stage, load_config
from brainmri_core.config.base import flat
from brainmri_core.config.experiments import apply_experiment, find_experiment
from brainmri_core.errors import BrainMRIError, ConfigError
from brainmri_core.project.catalogue import find_entry
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointers import (
    BatchPredictionPointer,
    CheckpointPointer,
    EmbeddingsPointer,
    EvaluationPointer,
    ExternalEvaluationPointer,
    LeaderboardPointer,
    Pointer,
    TuningPointer,
    ValidationPointer,
)
from brainmri_core.project.run_record import (
    CANCELLED_EXIT_CODE,
    make_plan,
    new_run_id,
    refuse_existing,
    write_plan,
)
from brainmri_core.project.run_schema import Plan, read_manifest
from brainmri_core.studies.space import find_study, read_space
from brainmri_core.system.clock import utc_now
from brainmri_core.system.locks import exclusive
from brainmri_core.system.storage import make_dirs, write_bytes
from brainmri_dagster.graph.asset_table import (
    APART,
    ASSET_OF_STAGE,
    ASSETS,
    COMMAND_TAG,
    CONSOLE_TAG,
    EXPERIMENT_TAG,
    PROCESS_TAG,
    RUN_ID_TAG,
    pair_key,
)
from brainmri_dagster.graph.partitions import catalogue
from brainmri_dagster.graph.resources import ProjectConfig, project_of
from brainmri_dagster.graph.run_config import run_config_for
from brainmri_dagster.running.dagster_internals import ErrorSource, RunFailureReason
from brainmri_dagster.running.dead_runs import close_dead_runs, close_own_runs
from brainmri_dagster.running.postgres import opened_instance
from brainmri_dagster.running.processes import this_process
from brainmri_dagster.running.stage_run import plan_stages, run_id_of
from brainmri_dagster.running.staleness import stale_assets

_INSTANCE = Path(str(files("brainmri_dagster"))) / "dagster.yaml"


@dataclass(frozen=True)
class Request:
    """What the command line was asked for; `assets` names those to make if they belong to no stage."""

    stages: tuple[str, ...]
    config: Path | None = None
    overrides: list[str] | None = None
    dataset: str | None = None
    archive: Path | None = None
    run_id: str | None = None
    dry_run: bool = False
    stale_only: bool = False
    experiment: str | None = None
    trained_on: str | None = None
    checkpoint: Path | None = None
    node: int | None = None
    debug: bool = False
    assets: tuple[str, ...] = ()


def select_stages(skip: list[str], resume_from: str | None) -> list[str]:
    """Return the stages left after ``--skip`` and ``--resume-from``.

    Raises
    ------
    ConfigError
        If a name is no stage, or nothing is left.
    """
    for option, name in [("--skip", item) for item in skip] + (
        [("--resume-from", resume_from)] if resume_from else []
    ):
        if name not in STAGES:
            raise ConfigError(f"{option} {name!r} is not a stage; choose from {', '.join(STAGES)}.")
    first = STAGES.index(_stage(resume_from)) if resume_from else 0
    stages = [str(name) for name in STAGES[first:] if name not in skip]
    if not stages:
        raise ConfigError("No stage is left to run; skip fewer.")
    return stages


def launch(request: Request) -> int:
    """Run the requested stages and return the exit code; errors before the run starts are raised."""
    config, dataset = configure(request)
    project = project_of(config)
    if request.dry_run:
        project.layout.require_folder("--dry-run")
    if config.run_id is not None:
        _release_dry_run(project.layout, config.run_id)
        refuse_existing(project.layout, config.run_id)
    assets = list(request.assets) or [ASSET_OF_STAGE[_stage(name)].name for name in request.stages]
    if "tuning_study" in assets:  # a wrong study is named before a run begins
        read_space(find_study(config.tune.study))
    partition = dataset
    if request.trained_on is not None:
        assets, partition = ["external_evaluation"], pair_key(request.trained_on, dataset)
    with open_instance(project.layout) as instance:
        close_dead_runs(instance, project.layout)
        if request.stale_only:
            stale = stale_assets(instance, project.layout, config, dataset, assets)
            for name, reason in stale.items():
                print(f"{name}: {reason}", file=sys.stderr)
            if not stale:
                print(f"Everything of {dataset} is up to date.")
                return 0
            assets = list(stale)
        if request.dry_run:
            run_id = config.run_id or new_run_id(utc_now(), uuid.uuid4().hex)
            plan = _dry_plan(instance, project, config, dataset, assets, run_id)
            _print_plan(plan, project.layout)
            return 0
        if request.experiment is not None and "evaluation" in assets:
            assets.append("leaderboard")
        return _materialize(instance, project, config, partition, assets, request)


def configure(request: Request) -> tuple[PipelineConfig, str]:
    """Return the run's validated configuration and its data set's key."""
    overrides = list(request.overrides or ())
    if request.dataset is not None:
        overrides += [f"fetch.dataset={request.dataset}", f"split.dataset={request.dataset}"]
    if request.archive is not None:
        overrides.append(f"fetch.archive={request.archive.expanduser().resolve()}")
    if request.checkpoint is not None:
        if request.trained_on is None:
            raise ConfigError(
                "--checkpoint needs --trained-on, which names the data set it was trained on; to evaluate a file on the test "
                "split of its own data set, set evaluate.model.weights_path."
            )
        overrides.append(f"external.checkpoint={request.checkpoint.expanduser().resolve()}")
    if request.run_id is not None:
        overrides.append(f"run_id={request.run_id}")
    if request.experiment is None:
        config = load_config(request.config, overrides)
    else:
        config = apply_experiment(load_config(request.config), find_experiment(request.experiment), overrides)
    dataset = config.dataset or next(iter(catalogue()))
    for name in (dataset, request.trained_on or dataset):
        find_entry(catalogue(), name)
    return config, dataset


def open_instance(layout: Layout) -> dg.DagsterInstance:
    """Return the instance of DAGSTER_HOME, else that of the project's ``.dagster`` folder, which is made if it is missing.

    Raises
    ------
    ConfigError
        If its dagster.yaml cannot be used.
    StorageError
        If it is in a Postgres that cannot be reached.
    """
    named = os.environ.get("DAGSTER_HOME")
    home = Path(named).expanduser().resolve() if named else layout.root / ".dagster"
    make_dirs(home)
    if not (home / "dagster.yaml").exists():
        write_bytes(home / "dagster.yaml", _INSTANCE.read_bytes())
    # Two processes that open a new instance at once would both create its tables, and one would fail.
    with exclusive(home / ".open.lock"):
        return opened_instance(home)


def _materialize(
    instance: dg.DagsterInstance,
    project: ProjectConfig,
    config: PipelineConfig,
    partition: str,
    assets: list[str],
    request: Request,
) -> int:
    if set(APART).isdisjoint(assets):
        from brainmri_dagster.definitions import defs
    else:
        from brainmri_dagster.code_location import defs

    tags = {COMMAND_TAG: shlex.join(["brainmri", *sys.argv[1:]]), CONSOLE_TAG: "true"}
    tags[PROCESS_TAG] = this_process()
    if config.run_id is not None:
        tags[RUN_ID_TAG] = config.run_id
    if request.experiment is not None:
        tags[EXPERIMENT_TAG] = find_experiment(request.experiment).stem
    quiet = {"loggers": {"console": {"config": {"log_level": "ERROR" if request.debug else "CRITICAL"}}}}
    result: dg.ExecuteInProcessResult | None = None
    with suppress(KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        result = dg.materialize(
            list(defs.assets or ()),  # type: ignore[arg-type]
            run_config=run_config_for(config, assets) | quiet,
            instance=instance,
            resources=defs.resources,
            partition_key=partition,
            raise_on_error=False,
            tags=tags,
            selection=assets,
        )
    if result is None or _was_interrupted(result):
        close_own_runs(instance, project.layout, "The run was interrupted.", cancelled=True)
        print("brainmri: interrupted; what was finished is kept.", file=sys.stderr)
        return CANCELLED_EXIT_CODE
    if not result.success:
        close_own_runs(instance, project.layout, "The run ended before this stage did.", cancelled=False)
        return _report_failure(result)
    run_id = run_id_of(instance, result.dagster_run)
    _print_result(project.layout, run_id, [result.asset_value(name) for name in assets])
    return 0


def _was_interrupted(result: dg.ExecuteInProcessResult) -> bool:
    """Tell whether a signal ended the run: Dagster reports that as a failure, inside a step or between two."""
    return any(
        event.job_failure_data.failure_reason is RunFailureReason.UNEXPECTED_TERMINATION
        if event.is_job_failure
        else event.is_step_failure and event.step_failure_data.error_source is ErrorSource.INTERRUPT
        for event in result.all_events
    )


def _report_failure(result: dg.ExecuteInProcessResult) -> int:
    """Print why the first failed step failed, in one sentence, and return the exit code that goes with it."""
    event = next((item for item in result.all_events if item.is_step_failure), None)
    data = event.step_failure_data if event is not None else None
    if event is None or data is None:
        print("brainmri: the run failed before its first stage; --debug shows why.", file=sys.stderr)
        return BrainMRIError.exit_code
    if data.user_failure_data is not None:
        print(f"brainmri: {data.user_failure_data.description}", file=sys.stderr)
        code = data.user_failure_data.metadata.get("exit_code")
        return int(str(code.value)) if code is not None else BrainMRIError.exit_code
    error = data.error
    while error is not None and error.cause is not None:
        error = error.cause
    text = error.message.strip().splitlines()[0] if error is not None else "no reason was recorded"
    print(f"brainmri: {event.step_key} failed: {text} (--debug shows the traceback)", file=sys.stderr)
    return BrainMRIError.exit_code


def _print_result(layout: Layout, run_id: str, pointers: list[Pointer]) -> None:
    """Print the run's folder, then the result of its last stage; the file to open comes last."""
    print(f"run: {layout.run_dir(run_id)}")
    last = pointers[-2:] if isinstance(pointers[-1], LeaderboardPointer) else pointers[-1:]
    for pointer in last:
        for line in _result_lines(layout, pointer):
            print(line)


def _result_lines(layout: Layout, pointer: Pointer) -> list[str]:
    if isinstance(pointer, EvaluationPointer | ExternalEvaluationPointer):
        return [*_scores(pointer.headline), f"report: {layout.absolute(pointer.report)}"]
    if isinstance(pointer, CheckpointPointer):
        score = f"val_macro_f1         {pointer.val_macro_f1:.4f} (epoch {pointer.best_epoch})"
        return [score, f"checkpoint: {layout.absolute(pointer.checkpoint)}"]
    if isinstance(pointer, ValidationPointer):
        return [f"report: {layout.absolute(pointer.page)}"]
    if isinstance(pointer, BatchPredictionPointer):
        return [
            *(f"{name:<20} {count}" for name, count in pointer.predicted.items()),
            f"{'unusable':<20} {pointer.unusable}",
            f"{'flagged':<20} {'-' if pointer.flagged is None else pointer.flagged}",
            f"{'drifted in':<20} {'-' if pointer.drifted is None else ', '.join(pointer.drifted) or 'nothing'}",
            f"predictions: {layout.absolute(pointer.predictions)}",
        ]
    if isinstance(pointer, EmbeddingsPointer):
        return [
            *_scores(pointer.headline),
            *([f"no score: {pointer.reason}"] if pointer.reason else []),
            f"features: {layout.absolute(pointer.features)}",
        ]
    if isinstance(pointer, TuningPointer):
        return [
            pointer.note,
            f"history: {layout.absolute(pointer.plot)}",
            f"experiment: {layout.absolute(pointer.experiment_file)}",
        ]
    if isinstance(pointer, LeaderboardPointer):
        return [f"leaderboard: {layout.absolute(pointer.plot)}"]
    return []


def _scores(headline: Mapping[str, float | None]) -> list[str]:
    return [
        f"{name:<20} {'-' if value is None else format(value, '.4f')}" for name, value in headline.items()
    ]


def _dry_plan(
    instance: dg.DagsterInstance,
    project: ProjectConfig,
    config: PipelineConfig,
    dataset: str,
    assets: list[str],
    run_id: str,
) -> Plan:
    plan = make_plan(
        run_id=run_id,
        dagster_run_id=None,
        dataset=dataset,
        command=shlex.join(["brainmri", *sys.argv[1:]]),
        env=config.env.model_dump(mode="json"),
        stages=plan_stages(instance, project, config, dataset, assets),
    )
    write_plan(project.layout, plan)
    return plan


def _print_plan(plan: Plan, layout: Layout) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{plan.run_id}: {plan.dataset}", show_lines=True)
    for column in ("stage", "asset", "reads", "settings other than the defaults"):
        table.add_column(column, overflow="fold")
    for stage in plan.stages:
        reads = "\n".join(f"{name}: {path or 'made by this run'}" for name, path in stage.inputs.items())
        block = ASSETS[stage.asset].stage
        usual = flat(PipelineConfig().stage(block).model_dump(mode="json", by_alias=True)) if block else {}
        changed = [f"{key}={value}" for key, value in flat(stage.config).items() if value != usual.get(key)]
        table.add_row(stage.stage, stage.asset, reads, "\n".join(changed) or "defaults")
    console = Console()
    console.print(table, markup=False)
    console.print(f"plan: {layout.run_dir(plan.run_id) / 'plan.json'}", markup=False, soft_wrap=True)


def _release_dry_run(layout: Layout, run_id: str) -> None:
    """Remove a dry run's plan, so that the planned run can use its id."""
    folder = layout.run_dir(run_id)
    manifest = folder / "run_manifest.json"
    if not manifest.is_file():
        return
    value = read_manifest(manifest)
    if value.dagster_run_id is None and value.status == "planned":
        for path in [*folder.glob("*.yaml"), folder / "plan.json", manifest]:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # other files lie there, which are not ours: the run id stays taken
            folder.rmdir()


def _stage(name: str) -> Stage:
    return next(stage for stage in BLOCKS if stage == name)
