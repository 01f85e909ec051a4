"""Resize very many images in shards, each on a worker of a cluster."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from brainmri_core.cluster.shard_files import Arrays
from brainmri_core.cluster.shards import evenly
from brainmri_core.cluster.workers import Workers
from brainmri_core.config.data import ResizeConfig
from brainmri_core.images.preparation import NO_FACTS, Resized, resized_images

_MOST_BYTES = 64 << 20  # of the pixels in a shard


def resized_on(
    workers: Workers | None,
    root: Path,
    paths: Sequence[str],
    hashes: Sequence[str],
    config: ResizeConfig,
    channels: int,
) -> Generator[Resized, None, None]:
    """Yield resized images in order, from the workers of a cluster or, without one, from threads of this process.

    Parameters, errors and results, bit for bit, are those of `preparation.resized_images`. With workers, the errors of
    `Workers.map` are raised as well.
    """
    if workers is None:
        yield from resized_images(root, paths, hashes, config, channels)
        return
    shards = evenly(len(paths), workers.threads, max(1, _MOST_BYTES // (config.size**2 * channels)))
    settings = config.model_dump()
    pieces = [(str(root), paths[shard], hashes[shard], settings, channels) for shard in shards]
    with (
        closing(workers.map("resizing", resize_shard, pieces)) as results,
        tqdm(total=len(paths), desc="resizing", unit="image", disable=None) as bar,
    ):
        for found in results:
            rows = iter(found["pixels"])
            columns = [found[name].tolist() for name in ("reason", *NO_FACTS)]
            for reason, *facts in zip(*columns, strict=True):
                known = dict(zip(NO_FACTS, facts, strict=True))
                yield Resized(None, reason, {}) if reason else Resized(next(rows), "", known)
            bar.update(len(columns[0]))


def resize_shard(
    root: str, paths: Sequence[str], hashes: Sequence[str], settings: dict[str, Any], channels: int
) -> Arrays:
    """Resize the images of one shard, in one thread of a worker.

    Returns
    -------
    dict
        ``reason`` and each of `NO_FACTS`, a row per image; ``pixels``, a row per image without a reason.
    """
    config = ResizeConfig(**settings)
    shape = (config.size, config.size, 3)[: 3 if channels > 1 else 2]
    pixels, done = np.empty((len(paths), *shape), np.uint8), 0
    facts, reasons = [], []
    for image in resized_images(Path(root), paths, hashes, config, channels, workers=1):
        facts.append(image.facts or NO_FACTS)
        reasons.append(image.reason)
        if image.pixels is not None:
            pixels[done] = image.pixels
            done += 1
    columns = {name: np.array([known[name] for known in facts]) for name in NO_FACTS}
    return {**columns, "reason": np.array(reasons), "pixels": pixels[:done]}
