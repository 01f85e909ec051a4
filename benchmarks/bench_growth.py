"""Growth of the search for copies: seconds and pairs for 3, 30 and 300 thousand synthetic fingerprints.

    OMP_NUM_THREADS=1 python benchmarks/bench_growth.py

The last column is the time of a search in all eight orientations, which the others are of, against one that tries the
mirror image alone, on the same fingerprints.

Thumbnails are smooth random heads, a tenth of them planted copies with noise. They lie in a file that is mapped, as
those of a large data set do. Seconds are the processor's, in which a second BLAS thread would count while it waits. Next
columns: time per image against the first row, and the exponent of growth since the row before (1: linear, 2: quadratic).
"""

from __future__ import annotations

import argparse
import math
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from brainmri_core.arrays import F32
from brainmri_core.config.data import CopySearchConfig
from brainmri_core.copies.fingerprint import FingerprintTable, perceptual_hashes
from brainmri_core.copies.likeness import ORIENTATIONS
from brainmri_core.copies.search import find_copies, group_copies

SIDE = 64
CHUNK = 2048


def heads(n: int, rng: np.random.Generator) -> F32:
    """Smooth random textures under a disc: float32 ``(n, 64, 64)``, 0 to 255."""
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1) - 0.5
    disc = (np.hypot(x, y) < 0.45).astype(np.float32)
    frequency = np.arange(16)
    basis = np.cos(np.pi * (np.arange(SIDE)[:, None] + 0.5) * frequency / SIDE).astype(np.float32)
    weight = rng.standard_normal((n, 16, 16)).astype(np.float32) / (
        1 + np.hypot(*np.meshgrid(frequency, frequency))
    )
    image = np.asarray(basis @ weight.astype(np.float32) @ basis.T, np.float32)
    image = (image - image.min(axis=(1, 2), keepdims=True)) / np.ptp(image, axis=(1, 2), keepdims=True)
    return np.asarray((40 + 200 * image) * disc, np.float32)


def synthetic(n: int, folder: Path, rng: np.random.Generator) -> tuple[FingerprintTable, int]:
    """Return n fingerprints, the last tenth of them noisy copies of earlier ones."""
    thumbs = np.lib.format.open_memmap(folder / f"{n}.npy", mode="w+", dtype=np.uint8, shape=(n, SIDE, SIDE))
    hashes = np.zeros((n, len(ORIENTATIONS)), np.uint64)
    originals = n - n // 10
    for start in range(0, n, CHUNK):
        rows = np.arange(start, min(start + CHUNK, n))
        new = rows[rows < originals]
        thumbs[new] = heads(len(new), rng).astype(np.uint8)
        copied = rows[rows >= originals]
        noise = rng.normal(0, 3, (len(copied), SIDE, SIDE))
        thumbs[copied] = np.clip(thumbs[copied - originals] + noise, 0, 255).astype(np.uint8)
        hashes[rows] = perceptual_hashes(np.asarray(thumbs[rows]))
    names = [str(row) for row in range(n)]
    return FingerprintTable(
        names, np.zeros(n), hashes, hashes, thumbs, thumbs, {}, ["8-bit"] * n
    ), n - originals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[3_000, 30_000, 300_000])
    options = parser.parse_args()
    print(
        f"{'images':>8}{'seconds':>10}{'us/image':>10}{'pairs':>9}{'planted':>9}{'largest':>9}{'peak MiB':>10}"
        f"{'per image':>11}{'exponent':>10}{'all/mirror':>12}"
    )
    first = before = None
    with tempfile.TemporaryDirectory() as folder:
        for n in options.images:
            table, planted = synthetic(n, Path(folder), np.random.default_rng(n))
            start = time.process_time()
            pairs = find_copies(table, CopySearchConfig())
            seconds = time.process_time() - start
            start = time.process_time()
            find_copies(table, CopySearchConfig(orientations="mirror"))
            mirror = time.process_time() - start
            sizes = np.bincount(group_copies(n, pairs))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            first = first or (seconds / n)
            growth = math.log(seconds / before[1]) / math.log(n / before[0]) if before else float("nan")
            print(
                f"{n:8d}{seconds:10.2f}{seconds / n * 1e6:10.1f}{len(pairs.first):9d}{planted:9d}{sizes.max():9d}"
                f"{peak:10.0f}{seconds / n / first:11.2f}{growth:10.2f}{seconds / mirror:12.2f}",
                flush=True,
            )
            before = (n, seconds)


if __name__ == "__main__":
    main()
