"""Resize: decode every image once, fit it to one size, and pack the pixels into one memory-mapped array."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from brainmri_core.arrays import U8, Indices
from brainmri_core.cluster.workers import workers_of
from brainmri_core.config.data import ResizeConfig, has_extension
from brainmri_core.config.formats import FORMATS
from brainmri_core.errors import DataError
from brainmri_core.images.isolation import read_below
from brainmri_core.images.levels import PLAIN_DEPTH, GrayRange
from brainmri_core.images.measure import measure_ranges
from brainmri_core.images.pack import is_cut, read_pack, write_pack
from brainmri_core.images.preparation import COLOUR_THRESHOLD, NO_FACTS, Resized, unchanged
from brainmri_core.images.preparation_shards import resized_on
from brainmri_core.project.job import Job
from brainmri_core.project.pointers import MappingPointer, PackPointer
from brainmri_core.project.sample_table import RESIZE_COLUMNS, SPLIT_COLUMNS, read_samples, write_samples
from brainmri_core.system.checksums import sha256_json
from brainmri_core.system.clock import timestamp, utc_now
from brainmri_core.system.storage import staging_folder


def resize(config: ResizeConfig, mapping: MappingPointer, job: Job) -> PackPointer:
    """Decode and resize every image that is not excluded, and pack the pixels.

    Parameters
    ----------
    config : ResizeConfig
        Size in pixels, fit, colour and gray ranges.
    mapping : MappingPointer
        The split.
    job : Job
        The run.

    Returns
    -------
    PackPointer
        Its pack is uint8 ``(N, size, size)``, or ``(N, size, size, 3)`` where an image has colour. Its sample table adds
        `sample_table.RESIZE_COLUMNS` to the table of the split: row in the pack, width and height in pixels, mode, and mean
        and standard deviation of the gray levels.

    Raises
    ------
    IntegrityError
        If an image was changed after the split; it is named.
    DataError
        If no image is left.
    """
    table = read_samples(job.layout.absolute(mapping.samples), SPLIT_COLUMNS)
    wrong = np.array([not has_extension(path, config.exts) for path in table["path"]], np.bool_)
    table.loc[wrong & (table["split"] != "excluded"), ["split", "reason"]] = (
        "excluded",
        "extension not in resize.exts",
    )
    todo = np.flatnonzero(table["split"].to_numpy() != "excluded")
    if not len(todo):
        raise DataError(f"No image of {job.dataset} is left to resize; see the reasons in {mapping.samples}.")
    target = job.layout.pack_dir(config.out_dir, job.dataset, job.run_id)
    root = job.layout.absolute(mapping.dataset_root)
    colour = (table["colourfulness"].to_numpy()[todo] > COLOUR_THRESHOLD).any()
    channels = 3 if config.color == "rgb" or (config.color == "auto" and colour) else 1
    ranges = config.gray_ranges or _measured(root, table, todo)
    config = config.model_copy(update={"gray_ranges": ranges})
    with job.staged(target) as staging, workers_of(job) as workers:
        paths, hashes = (table[name].to_numpy(object)[todo].tolist() for name in ("path", "file_sha256"))
        images = resized_on(workers, root, paths, hashes, config, channels)
        table, pack_hash = _fill(staging / "pack.npy", table, todo, images, config, channels)
        write_samples(staging / "samples.parquet", table)
        n_images = int((table["row"] >= 0).sum())
        shard_bytes = config.shard_mib << 20 if is_cut(staging / "pack.npy") else 0
        if config.export_tree is not None:
            shape = (n_images, config.size, config.size, *([channels] if channels > 1 else []))
            pixels = read_pack(staging / "pack.npy", shape, shard_bytes)
            _export(pixels, table, job.layout.configured(config.export_tree))
    failed = int((table["split"] == "excluded").sum()) - (len(table) - len(todo))
    job.log.info(
        "packed",
        images=n_images,
        excluded_now=failed,
        channels=channels,
        size=config.size,
    )
    scaled = table.loc[table["row"] >= 0, "scaled_by"].value_counts().drop(PLAIN_DEPTH, errors="ignore")
    if len(scaled):
        job.log.info("images of more than 8 bits", **_said(scaled), gray_ranges=ranges)
    return PackPointer(
        dataset=job.dataset,
        run_id=job.run_id,
        content_hash=sha256_json([pack_hash, mapping.content_hash, config.fit]),
        written_at_utc=timestamp(utc_now()),
        pack=job.layout.relative(target / "pack.npy"),
        pack_sha256=pack_hash,
        samples=job.layout.relative(target / "samples.parquet"),
        size=config.size,
        channels=channels,
        n_images=n_images,
        mapping_pointer=mapping.pointer_path or "",
        classes=mapping.classes,
        fit=config.fit,
        gray_ranges=ranges,
        scaled_by=_said(scaled),
        shard_bytes=shard_bytes,
    )


def _said(scaled: pd.Series[int]) -> dict[str, int]:
    return {str(name): int(n) for name, n in scaled.sort_index().items()}


def _measured(root: Path, table: pd.DataFrame, todo: Indices) -> dict[str, GrayRange]:
    """Return the gray ranges of files of more than 8 bits; where an older split has no depths, tell such files by ending."""
    paths, hashes = table["path"].tolist(), table["file_sha256"].tolist()
    read = read_below(root, paths)
    deep = (
        ~table["depth"].isin(("", PLAIN_DEPTH))
        if "depth" in table
        else table["path"].str.lower().str.endswith(_MAYBE_DEEP)
    )
    return measure_ranges(
        lambda index: unchanged(read(index), paths[index], hashes[index]),
        paths,
        todo[deep.to_numpy(np.bool_)[todo]].tolist(),
    )


def _fill(
    path: Path,
    table: pd.DataFrame,
    todo: Indices,
    prepared: Generator[Resized, None, None],
    config: ResizeConfig,
    channels: int,
) -> tuple[pd.DataFrame, str]:
    """Fill the pack in table order; images that fail are excluded with the reason and take no row.

    Returns
    -------
    table : pandas.DataFrame
        `table` with the columns that resizing adds.
    sha256 : str
        Checksum of the pack.
    """
    facts: dict[str, list[object]] = {name: [_EMPTY[name]] * len(table) for name in _EMPTY}
    table = table.copy()
    failures: dict[int, str] = {}

    def images() -> Generator[U8, None, None]:
        row = 0
        for index, result in zip(todo.tolist(), prepared, strict=True):
            if result.pixels is None:
                failures[index] = result.reason
                continue
            yield result.pixels
            facts["row"][index] = row
            for name, value in result.facts.items():
                facts[name][index] = value
            row += 1

    with contextlib.closing(prepared), contextlib.closing(images()) as written:
        pack_hash = write_pack(
            path,
            written,
            most=len(todo),
            size=config.size,
            channels=channels,
            shard_bytes=config.shard_mib << 20,
        )
    for name, values in facts.items():
        table[name] = pd.array(values, dtype=RESIZE_COLUMNS.get(name)) if name in RESIZE_COLUMNS else values
    for index, reason in failures.items():
        table.loc[index, ["split", "reason"]] = ("excluded", reason)
    return table, pack_hash


_EMPTY: dict[str, object] = {"row": -1, **NO_FACTS}
_MAYBE_DEEP = (*FORMATS["PNG"], *FORMATS["TIFF"])


def _export(pack: U8, table: pd.DataFrame, folder: Path) -> None:
    """Write the resized images as ``<split>/<class>/<stem>.png`` for people to browse."""
    with staging_folder(folder, replace=True) as staging:
        for row, split, label, path in zip(
            table["row"], table["split"], table["label"], table["path"], strict=True
        ):
            if row >= 0:
                target = staging / split / label / f"{row:06d}-{Path(path).stem}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pack[row]).save(target)
