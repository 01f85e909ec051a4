"""Fingerprint very many images in shards, each on a worker of a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from brainmri_core.cluster.shard_files import Arrays
from brainmri_core.cluster.shards import evenly
from brainmri_core.cluster.workers import Workers
from brainmri_core.copies.fingerprint import FingerprintTable, fingerprint_files

_MOST = 4096


def fingerprint_on(
    workers: Workers | None,
    root: Path,
    paths: Sequence[str],
    *,
    progress: Callable[[int], object] | None = None,
) -> FingerprintTable:
    """Fingerprint many files, on the workers of a cluster or, without one, in processes of this machine.

    Parameters, errors and results, bit for bit, are those of `fingerprint.fingerprint_files`. With workers, the errors of
    `Workers.map` are raised as well.
    """
    if workers is None:
        return fingerprint_files(root, paths, progress=progress)
    table = FingerprintTable.empty(len(paths))
    shards = evenly(len(paths), workers.threads, _MOST)
    pieces = [(str(root), list(paths[shard])) for shard in shards]
    with closing(workers.map("fingerprints", fingerprint_shard, pieces)) as results:
        for shard, found in zip(shards, results, strict=True):
            table.pixel_sha256[shard] = found["pixel_sha256"].tolist()
            table.depths[shard] = found["depths"].tolist()
            for name in _ARRAYS:
                getattr(table, name)[shard] = found[name]
            failures = json.loads(str(found["failures"]))
            table.failures.update({shard.start + row: reason for row, reason in failures})
            if progress is not None:
                progress(shard.stop - shard.start)
    return table


_ARRAYS = ("colourfulness", "hashes", "trimmed_hashes", "thumbs", "trimmed_thumbs")


def fingerprint_shard(root: str, paths: list[str]) -> Arrays:
    """Fingerprint the files of one shard on a worker, in one process of its own.

    Each thread of the worker gets a shard, so that together they keep all of its cores busy.
    """
    table = fingerprint_files(Path(root), paths, workers=1)
    return {
        **{name: getattr(table, name) for name in _ARRAYS},
        "pixel_sha256": np.array(table.pixel_sha256),
        "depths": np.array(table.depths),
        "failures": np.array(json.dumps(sorted(table.failures.items()))),
    }
