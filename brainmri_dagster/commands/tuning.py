"""A study through Dagster's run queue: each trial is a run, and as many run at a time as the instance allows."""

from __future__ import annotations

from brainmri_core.config import PipelineConfig
from brainmri_core.errors import ConfigError
from brainmri_core.studies.space import find_study, read_space
from brainmri_core.tuning import lacking_trials
from brainmri_dagster.commands.backfill import launch_and_wait, require_daemon
from brainmri_dagster.commands.launch import Request, configure, open_instance
from brainmri_dagster.graph.resources import project_of
from brainmri_dagster.graph.run_config import run_config_for

ASSET = "tuning_study"


def tune_queued(request: Request) -> int:
    """Submit a run for every missing trial of a study, wait for all of them, and return the exit code.

    Raises
    ------
    ConfigError
        If the study's space cannot be searched, Optuna is not installed, or a run id was given.
    DaemonError
        If no daemon serves the instance, or it stops while the runs wait.
    """
    from brainmri_dagster.code_location import defs

    if request.run_id is not None:
        raise ConfigError(
            "--run-id names one run, but with --queue every trial is a run; give only one of the two."
        )
    config, dataset = configure(request)
    read_space(find_study(config.tune.study))
    project = project_of(config)
    count = lacking_trials(config.tune, project.layout, dataset)
    if not count:
        print(
            f"The study {config.tune.study!r} has all its {config.tune.trials} trials; --trials asks for more."
        )
        return 0
    with open_instance(project.layout) as instance:
        require_daemon(instance)
        graph = defs.resolve_asset_graph()
        return launch_and_wait(instance, graph, {ASSET: [dataset]}, _one_trial(config), {}, times=count)


def _one_trial(config: PipelineConfig) -> dict[str, object]:
    tune = config.tune.model_copy(update={"per_run": 1})
    return run_config_for(config.model_copy(update={"tune": tune}), [ASSET])
