"""The project as a resource: its paths, seeds, hardware and logging."""

from __future__ import annotations

from functools import cache

import dagster as dg
from pydantic import Field

from brainmri_core.config import EnvConfig, LogConfig, PathsConfig, PipelineConfig, load_config
from brainmri_core.config.base import StageConfig
from brainmri_core.config.cluster import ClusterConfig
from brainmri_core.project.layout import Layout
from brainmri_dagster.graph.config_types import config_schema, to_core


class ProjectConfig(StageConfig):
    """What all stages of a run share."""

    paths: PathsConfig = Field(PathsConfig(), description="Where the project lies.")
    env: EnvConfig = Field(EnvConfig(), description="Seeds and hardware.")
    log: LogConfig = Field(LogConfig(), description="Logging.")
    cluster: ClusterConfig = Field(ClusterConfig(), description="Other machines for the work on many images.")

    @property
    def layout(self) -> Layout:
        """The path layout of the project root."""
        return Layout.of(self.paths)


@cache
def defaults() -> PipelineConfig:
    """Return the configuration of the YAML file, which gives every run its defaults."""
    return load_config()


def default_project() -> ProjectConfig:
    """Return the blocks of `defaults` that all stages share."""
    return project_of(defaults())


def project_of(config: PipelineConfig) -> ProjectConfig:
    """Return the blocks of a configuration that all stages share."""
    return ProjectConfig(paths=config.paths, env=config.env, log=config.log, cluster=config.cluster)


def _project(context: dg.InitResourceContext) -> ProjectConfig:
    return to_core(ProjectConfig, context.resource_config or {}, "run config resources.project.config")


project_resource = dg.ResourceDefinition(
    resource_fn=_project,
    config_schema=config_schema(default_project()),
    description="Project root, seeds and logging of a run.",
)
