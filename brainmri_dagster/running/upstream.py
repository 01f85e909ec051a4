"""Which pointer a stage reads: first the one that its upstream's materialisation recorded, then one on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

import dagster as dg

from brainmri_core.config import PipelineConfig, Stage
from brainmri_core.config.evaluation import EvaluateConfig
from brainmri_core.errors import DataError, MissingUpstreamError
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import (
    find_mapping,
    follow,
    history,
    latest_pointer,
    read_pointer,
    write_pointer,
)
from brainmri_core.project.pointers import (
    CheckpointPointer,
    MappingPointer,
    PackPointer,
    Pointer,
    ValidationPointer,
)
from brainmri_dagster.graph.asset_table import ASSETS, FOLD_ASSETS, pointer_place

P = TypeVar("P", bound=Pointer)
_RECENT = 100


def recorded_pointer(
    instance: dg.DagsterInstance, layout: Layout, asset: str, partition: str, run_ids: tuple[str, ...] = ()
) -> Pointer | None:
    """Return the pointer an asset's materialisation recorded.

    Parameters
    ----------
    instance : dagster.DagsterInstance
        Where materialisations are recorded.
    layout : Layout
        The project root; a record whose pointer file is not below it belongs to another project and is ignored.
    asset, partition : str
        Asset name and partition key.
    run_ids : tuple of str
        Dagster run ids whose own materialisation is preferred, the nearest first.

    Returns
    -------
    Pointer or None
        That of the first of `run_ids` that has one, else the newest recorded, else ``latest.json`` (a fold has none
        of its own), else None.
    """
    pointer_type = ASSETS[asset].pointer
    rank = {run_id: place for place, run_id in enumerate(run_ids)}
    # Records hold pictures and are slow to read, so without a choice of runs the newest is tried alone first.
    for limit in (_RECENT,) if run_ids else (1, _RECENT):
        records = materializations(instance, asset, partition, limit)
        for record in sorted(records, key=lambda item: rank.get(item.run_id, len(rank))):
            path = pointer_file(layout, record.asset_materialization)
            if path is not None:
                return read_pointer(layout, pointer_type, path)
    return None if asset in FOLD_ASSETS else latest_pointer(layout, pointer_type, pointer_place(partition))


def materializations(
    instance: dg.DagsterInstance, asset: str, partition: str, limit: int
) -> Sequence[dg.EventLogRecord]:
    """Return the newest records of an asset's materialisations of a partition, newest first."""
    only = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[partition])
    return instance.fetch_materializations(only, limit=limit).records


def pointer_file(layout: Layout, made: dg.AssetMaterialization | None) -> Path | None:
    """Return the pointer file that a materialisation recorded; None if it recorded none, or the file is gone."""
    entry = made.metadata.get("pointer_path") if made is not None else None
    file = layout.absolute(str(entry.value)) if entry is not None else None
    return file if file is not None and file.is_file() else None


def require(pointer: P | None, asset: str, job: Job, *, or_set: str | None = None) -> P:
    """Return the pointer, or raise an error that says how to make it.

    Raises
    ------
    MissingUpstreamError
        If there is none.
    """
    if pointer is not None:
        return pointer
    item = ASSETS[asset]
    remedy = f"; make it with `brainmri {item.command or item.stage} --dataset {job.dataset}`"
    alternative = f" or set {or_set}" if or_set else ""
    raise MissingUpstreamError(f"There is no {item.what} of {job.dataset} yet{remedy}{alternative}.")


def pack_for(stage: Stage, config: PipelineConfig, pack: PackPointer | None, job: Job) -> PackPointer:
    """Return the pack a stage is to read.

    A configured mapping pointer other than the data set's own selects the pack made from that mapping; a raw
    class-folder tree is used only where no pointer exists.
    """
    option, raw, key = {
        "validate": (config.validate_.mapping_pointer, config.validate_.in_dir, "validate.in_dir"),
        "train": (config.train.data.mapping_pointer, config.train.data.train_in, "train.data.train_in"),
        "evaluate": (
            config.evaluate.data.mapping_pointer,
            config.evaluate.data.eval_in,
            "evaluate.data.eval_in",
        ),
    }[stage]
    if option is not None and not _is_own(option, job):
        return _pack_of_mapping(option, stage, job)
    if pack is None and (tree := raw_folder(raw, job)) is not None:
        return packed_tree(tree, "test" if stage == "evaluate" else "train", config, job)
    found = require(pack, "resized_images", job, or_set=key)
    if stage == "train":
        refuse_failed_validation(found, job)
    return found


def refuse_failed_validation(pack: PackPointer, job: Job) -> None:
    """Refuse to train on images whose newest validation failed, in this run or any other.

    Raises
    ------
    DataError
        If it failed; images that were never validated are accepted.
    """
    newest = latest_pointer(job.layout, ValidationPointer, job.dataset)
    if newest is None or newest.passed:
        return
    if follow(job.layout, PackPointer, newest.pack_pointer).content_hash == pack.content_hash:
        raise DataError(
            f"The newest validation of these images of {job.dataset} failed (run {newest.run_id}; see {newest.report}); correct "
            "the data, or relax validate.fail_on and validate again."
        )


def _is_own(option: str, job: Job) -> bool:
    own = job.layout.pointer_dir(MappingPointer.kind, job.dataset)
    return job.layout.configured(option).resolve() in (own.resolve(), (own / "latest.json").resolve())


def _pack_of_mapping(option: str, stage: Stage, job: Job) -> PackPointer:
    mapping = find_mapping(job.layout, option)
    if mapping is None:
        raise MissingUpstreamError(
            f"The mapping pointer {option} of the {stage} stage does not exist; run the split that writes it or leave "
            "mapping_pointer empty."
        )
    for pack in history(job.layout, PackPointer, mapping.dataset):
        source = job.layout.absolute(pack.mapping_pointer) if pack.mapping_pointer else None
        if source is not None and source.is_file():
            made_from = read_pointer(job.layout, MappingPointer, source)
            if made_from.content_hash == mapping.content_hash:
                return pack
    raise MissingUpstreamError(
        f"No resized images were made from the mapping {option}; run `brainmri resize --dataset {mapping.dataset}` "
        "on it or leave mapping_pointer empty."
    )


def checkpoint_for(
    config: PipelineConfig, checkpoint: CheckpointPointer | None, job: Job
) -> CheckpointPointer | None:
    """Return the checkpoint to evaluate; None stands for ``evaluate.model.weights_path``, used where no pointer exists."""
    weights = config.evaluate.model.weights_path
    if checkpoint is None and weights is not None and job.layout.given(weights).is_file():
        job.log.info("no checkpoint pointer; reading the weights file", file=weights)
        return None
    if checkpoint is not None and weights not in (None, EvaluateConfig().model.weights_path):
        job.log.warning("evaluate.model.weights_path is ignored: the data set has a checkpoint", file=weights)
    return require(checkpoint, "model_checkpoint", job, or_set="evaluate.model.weights_path")


def raw_folder(configured: str | None, job: Job) -> Path | None:
    """Return a configured class-folder tree if it exists."""
    folder = job.layout.configured(configured) if configured is not None else None
    return folder if folder is not None and folder.is_dir() else None


def packed_tree(
    folder: Path, split: Literal["train", "test"], config: PipelineConfig, job: Job
) -> PackPointer:
    """Pack a class-folder tree that replaces a missing pointer."""
    from brainmri_core.class_folders import pack_tree

    job.log.info("no pointer of an earlier stage; reading the class folders", folder=str(folder))
    pointer = pack_tree(folder, split=split, size=config.resize.size, job=job)
    return pointer if pointer.pointer_path else write_pointer(job.layout, pointer, update_latest=False)
