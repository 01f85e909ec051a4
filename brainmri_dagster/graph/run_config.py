"""Turn a whole configuration into Dagster run config."""

from __future__ import annotations

from typing import Any

from brainmri_core.config import PipelineConfig
from brainmri_dagster.graph.asset_table import ASSETS
from brainmri_dagster.graph.resources import ProjectConfig


def run_config_for(config: PipelineConfig, assets: list[str]) -> dict[str, Any]:
    """Return the Dagster run config of some assets with the values of a whole configuration."""
    value = config.model_dump(mode="json", by_alias=True)
    ops: dict[str, Any] = {}
    for name in assets:
        if (stage := ASSETS[name].stage) is not None:
            ops[name] = {"config": value[stage] | {other: value[other] for other in ASSETS[name].also}}
    return {
        "ops": ops,
        "resources": {"project": {"config": {key: value[key] for key in ProjectConfig.model_fields}}},
    }
