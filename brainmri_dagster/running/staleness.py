"""What is out of date: assets whose recipe or inputs changed since they were last materialised."""

from __future__ import annotations

from typing import Any

import dagster as dg

from brainmri_core.config import PipelineConfig
from brainmri_core.config.base import without_later
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import follow, read_pointer
from brainmri_core.project.pointers import FetchPointer, ValidationPointer
from brainmri_core.sources.local import local_archive
from brainmri_core.system.checksums import sha256_file, sha256_json
from brainmri_dagster.graph.asset_table import ASSETS, INCIDENTAL, PIPELINE
from brainmri_dagster.graph.partitions import catalogue
from brainmri_dagster.running.upstream import materializations, pointer_file

_VERSION = "dagster/data_version"


def recipe(asset: str, config: PipelineConfig) -> str:
    """Return the hash of everything but the inputs that decides an asset's content: its code version and resolved config."""
    item = ASSETS[asset]
    if item.stage is None:
        return sha256_json([item.code_version])
    configs = {stage: config.stage(stage) for stage in (item.stage, *item.also)}
    blocks = [
        _decisive(without_later(type(block), block.model_dump(mode="json", by_alias=True)), stage)
        for stage, block in configs.items()
    ]
    return sha256_json([item.code_version, *blocks])


def lineage(asset: str, config: PipelineConfig) -> str:
    """Return the hash of an asset's recipe and those of all assets upstream of it.

    Used as the code version, it lets the UI show everything downstream of a changed setting as out of date. Dagster itself
    compares only an asset's own code version and its inputs' data versions.
    """
    return sha256_json([recipe(asset, config), *(lineage(name, config) for name in ASSETS[asset].inputs)])


def _decisive(value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: _decisive(item, f"{path}.{key}")
        for key, item in value.items()
        if f"{path}.{key}" not in INCIDENTAL
    }


def stale_assets(
    instance: dg.DagsterInstance, layout: Layout, config: PipelineConfig, partition: str, assets: list[str]
) -> dict[str, str]:
    """Return the assets that are out of date, in order, each with the reason.

    Parameters
    ----------
    instance : dagster.DagsterInstance
        Where materialisations are recorded.
    layout : Layout
        The project root that the recorded pointers lie under.
    config : PipelineConfig
        The configuration of a run started now.
    partition : str
        The data set's key.
    assets : list of str
        Candidates, upstream first.
    """
    newest = {name: _newest(instance, name, partition) for name in PIPELINE}
    stale: dict[str, str] = {}
    for name in assets:
        reason = _reason(name, newest, stale, layout, config, partition)
        if reason is not None:
            stale[name] = reason
    return stale


def _newest(instance: dg.DagsterInstance, asset: str, partition: str) -> dg.AssetMaterialization | None:
    records = materializations(instance, asset, partition, limit=1)
    return records[0].asset_materialization if records else None


def _reason(
    name: str,
    newest: dict[str, dg.AssetMaterialization | None],
    stale: dict[str, str],
    layout: Layout,
    config: PipelineConfig,
    partition: str,
) -> str | None:
    made, item = newest[name], ASSETS[name]
    if made is None:
        return "never made"
    file = pointer_file(layout, made)
    if file is None:
        return "its pointer file is gone"
    recorded = made.metadata.get("recipe")
    if recorded is None or recorded.value != recipe(name, config):
        return "its configuration or code changed"
    again = next((upstream for upstream in item.inputs if upstream in stale), None)
    if again is not None:
        return f"{again} is made again"
    pointer = read_pointer(layout, item.pointer, file)
    if isinstance(pointer, FetchPointer):
        return _source_changed(pointer, config, partition)
    if isinstance(pointer, ValidationPointer) and not pointer.passed:
        return "it did not pass"
    source, link = newest[item.inputs[0]], getattr(pointer, str(item.link))
    used = follow(layout, ASSETS[item.inputs[0]].pointer, link).content_hash if link else None
    if source is not None and (source.tags or {}).get(_VERSION) != used:
        return f"{item.inputs[0]} changed"
    return None


def _source_changed(pointer: FetchPointer, config: PipelineConfig, partition: str) -> str | None:
    archive = local_archive(config.fetch, catalogue()[partition])
    if archive is None or archive.is_dir():
        return None
    return None if sha256_file(archive) == pointer.archive_sha256 else "its archive changed"
