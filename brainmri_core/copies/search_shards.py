"""Search for copies among very many images, with parts of the hash index on the workers of a cluster."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from brainmri_core.arrays import I64, U8, U64
from brainmri_core.cluster.shard_files import Arrays
from brainmri_core.cluster.shards import evenly
from brainmri_core.cluster.workers import Workers
from brainmri_core.config.data import CopySearchConfig
from brainmri_core.copies.fingerprint import FingerprintTable
from brainmri_core.copies.search import CopyPairs, Found, Version, confirmed, find_copies, prepare, tried
from brainmri_core.system.storage import as_storage_errors

_INDEXED = 1 << 20  # images in a part of the index: 0.3 GB for a worker
_LOOKED_UP = 1 << 17  # images that are looked up in a part by one piece of work
_VERSIONS = ("whole", "trimmed")


def find_copies_on(workers: Workers | None, table: FingerprintTable, config: CopySearchConfig) -> CopyPairs:
    """Find all confirmed copies, on the workers of a cluster or, without one, in threads of this process.

    The result is bit for bit that of `search.find_copies`. Each part of the images is looked up in the index of every part,
    so that no pair within the radius is missed. With workers, the errors of `Workers.map` are raised as well.
    """
    return find_copies(table, config, None if workers is None else partial(_search_away, workers))


def _search_away(
    workers: Workers, table: FingerprintTable, rows: I64, config: CopySearchConfig
) -> Iterator[Found]:
    stored: dict[str, Any] = {
        "rows": rows,
        "whole_thumbs": table.thumbs,
        "whole_hashes": table.hashes,
        "trimmed_thumbs": table.trimmed_thumbs,
        "trimmed_hashes": table.trimmed_hashes,
    }
    for name, array in stored.items():
        with as_storage_errors(workers.folder / f"{name}.npy"):
            np.save(workers.folder / f"{name}.npy", array, allow_pickle=False)
    turns, settings = tried(config), config.model_dump()
    blocks = [
        (looked_up, indexed)
        for looked_up in evenly(len(rows), 1, _LOOKED_UP)
        for indexed in evenly(len(rows), 1, _INDEXED)
    ]
    # Few blocks are divided by orientation to keep all threads busy. With many blocks, a piece searches all orientations
    # of a block, so that it prepares its images once.
    shares = evenly(len(turns), 1, max(1, len(turns) * len(blocks) * len(_VERSIONS) // workers.threads))
    pieces = [
        (
            str(workers.folder),
            version,
            turns[share],
            first.start,
            first.stop,
            second.start,
            second.stop,
            settings,
        )
        for version in range(len(_VERSIONS))
        for first, second in blocks
        for share in shares
    ]
    with closing(workers.map("search for copies", search_part, pieces)) as results:
        for piece, found in zip(pieces, results, strict=True):
            for turn in piece[2]:
                mine = found["turn"] == turn
                columns = [found[name][mine].tolist() for name in ("one", "other", "ncc")]
                yield piece[1], turn, list(zip(*columns, strict=True))


def search_part(
    folder: str,
    version: int,
    turns: list[int],
    first: int,
    first_stop: int,
    second: int,
    second_stop: int,
    settings: dict[str, Any],
) -> Arrays:
    """Look up one part of the images in the index of another part, on a worker.

    Parameters
    ----------
    folder : str
        Folder with the arrays of all images.
    version : int
        0 for whole images, 1 for those without their margins.
    turns : list of int
        Orientations to search.
    first, first_stop, second, second_stop : int
        Range of the rows that are looked up, and of those that are indexed.
    settings : dict
        The fields of `CopySearchConfig`.

    Returns
    -------
    dict
        The columns of the confirmed pairs: ``turn``, ``one``, ``other``, ``ncc``.
    """
    name, config = _VERSIONS[version], CopySearchConfig(**settings)
    with as_storage_errors(Path(folder), "read"):
        rows, thumbs, hashes = (
            np.load(Path(folder) / f"{part}.npy", mmap_mode="r", allow_pickle=False)
            for part in ("rows", f"{name}_thumbs", f"{name}_hashes")
        )
    one, one_at = _part(rows[first:first_stop], thumbs, hashes)
    same = (first, first_stop) == (second, second_stop)
    other, other_at = (one, one_at) if same else _part(rows[second:second_stop], thumbs, hashes)
    found = [
        (turn, a + one_at, b + other_at, ncc)
        for turn in turns
        if turn or first < second_stop  # else each pair is found from its other side
        for a, b, ncc in confirmed(one, other, turn, config, threading.Event(), offset=first - second)
    ]
    columns = list(zip(*found, strict=True)) if found else [(), (), (), ()]
    kinds = {"turn": np.int64, "one": np.int64, "other": np.int64, "ncc": np.float64}
    return {key: np.array(column, kind) for (key, kind), column in zip(kinds.items(), columns, strict=True)}


def _part(rows: I64, thumbs: U8, hashes: U64) -> tuple[Version, int]:
    """Prepare the images of some rows, and return them with the first of these rows."""
    start, stop = int(rows[0]), int(rows[-1]) + 1
    return prepare(thumbs[start:stop], hashes[start:stop], np.asarray(rows) - start), start
