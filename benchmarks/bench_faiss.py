"""What an index of faiss would give the search for copies: recall and processor time against the exact search.

    pip install --target FOLDER --no-deps faiss-cpu
    OMP_NUM_THREADS=1 PYTHONPATH=FOLDER python -m benchmarks.bench_faiss [--hashes 75000 300000]

faiss is no dependency of the project. The fingerprints are those of `bench_growth`, in one of the 14 passes of a search (whole
images, as they are). All look for the pairs whose hashes differ in at most the configured number of bits. "Recall" is the share of
these pairs that an index finds; "of copies" is its recall of those that the pixels then confirm. Seconds are the processor's, of one
thread. The ratio is that of all 14 passes, in which an index is built twice, to the exact search, which makes its index in each pass.

IndexBinaryMultiHash divides the bits as the exact search does: with 3 parts and 2 flipped bits in each, it misses nothing either.
IndexBinaryHNSW cannot search by radius, so it is asked for the 32 nearest.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_growth import synthetic
from brainmri_core.arrays import I64, U64
from brainmri_core.config.data import CopySearchConfig
from brainmri_core.copies.hamming import candidate_pairs
from brainmri_core.copies.search import confirmed, prepare

CONFIG = CopySearchConfig()
PASSES, VERSIONS = 14, 2
NEAREST = 32
Look = Callable[[Any], tuple[I64, I64]]


def exact(hashes: U64) -> I64:
    """Return the pairs within the radius by the project's own search, as sorted keys."""
    found = [
        keys(first, second, len(hashes))
        for first, second in candidate_pairs(hashes, hashes, CONFIG.hash_radius)
    ]
    return np.unique(np.concatenate(found))


def keys(first: I64, second: I64, n: int) -> I64:
    """Return one number for each pair, without those of an image with itself."""
    apart = first != second
    low, high = np.minimum(first, second)[apart], np.maximum(first, second)[apart]
    return low.astype(np.int64) * n + high


def within(codes: Any) -> Look:
    """Return a search by radius. faiss leaves the distance itself out."""

    def look(index: Any) -> tuple[I64, I64]:
        limits, _, found = index.range_search(codes, CONFIG.hash_radius + 1)
        return np.repeat(np.arange(len(codes)), np.diff(limits).astype(np.int64)), found

    return look


def nearest(codes: Any) -> Look:
    def look(index: Any) -> tuple[I64, I64]:
        distances, found = index.search(codes, NEAREST)
        rows, columns = np.nonzero((distances <= CONFIG.hash_radius) & (found >= 0))
        return rows, found[rows, columns]

    return look


def indexes(faiss: Any, n: int) -> dict[str, tuple[Callable[[], Any], list[tuple[str, str, int]]]]:
    """Return how to make each index, and the settings to search it with: name, attribute, value."""
    lists = round(4 * n**0.5)
    return {
        f"IndexBinaryIVF, {lists:,} lists": (
            lambda: faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(64), 64, lists),
            [(f"{probes} looked at", "nprobe", probes) for probes in (4, 16, 64)],
        ),
        "IndexBinaryHNSW, 16 neighbours": (
            lambda: faiss.IndexBinaryHNSW(64, 16),
            [(f"{width} candidates", "efSearch", width) for width in (32, 128)],
        ),
        "IndexBinaryMultiHash, 3 parts": (
            lambda: faiss.IndexBinaryMultiHash(64, 3, 21),
            [(f"{flips} flipped", "nflip", flips) for flips in (0, 1, 2)],
        ),
    }


def measure(faiss: Any, n: int, folder: Path) -> None:
    """Print a row for the exact search, and one for each index and setting."""
    table, _ = synthetic(n, folder, np.random.default_rng(n))
    hashes = np.ascontiguousarray(table.hashes[:, 0])
    rows = np.flatnonzero(hashes)  # an image without structure is in no pair
    start = time.process_time()
    right = exact(hashes)
    seconds = time.process_time() - start
    version = prepare(table.thumbs, table.hashes, np.arange(n))
    pairs = confirmed(version, version, 0, CONFIG, threading.Event(), offset=0)
    copies = np.array(sorted(a * n + b for a, b, _ in pairs), np.int64)
    print(
        f"\n{n:,} fingerprints: {len(right):,} pairs within {CONFIG.hash_radius} bits, {len(copies):,} confirmed\n"
    )
    print("| index | built | a pass | recall | of copies | all passes to exact |")
    print(
        f"| --- | ---: | ---: | ---: | ---: | ---: |\n| exact | | {seconds:.1f} s | 1 | 1 | 1 |", flush=True
    )
    codes = np.ascontiguousarray(hashes[rows]).view(np.uint8).reshape(-1, 8)
    for name, (make, settings) in indexes(faiss, n).items():
        start = time.process_time()
        index = make()
        if not index.is_trained:
            index.train(codes)
        index.add(codes)
        built = time.process_time() - start
        for setting, attribute, value in settings:
            holder = index.hnsw if attribute == "efSearch" else index
            setattr(holder, attribute, value)
            start = time.process_time()
            first, second = (nearest if attribute == "efSearch" else within)(codes)(index)
            passed = time.process_time() - start
            found = np.unique(keys(rows[first], rows[second], n))
            shares = (
                len(np.intersect1d(found, wanted, assume_unique=True)) / len(wanted)
                for wanted in (right, copies)
            )
            ratio = (VERSIONS * built + PASSES * passed) / (PASSES * seconds)
            shown = " | ".join(f"{share:.4f}" for share in shares)
            print(
                f"| {name}, {setting} | {built:.1f} s | {passed:.1f} s | {shown} | {ratio:.2f} |", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hashes", type=int, nargs="*", default=[75_000, 300_000])
    options = parser.parse_args()
    try:
        import faiss
    except ImportError:
        raise SystemExit(
            "faiss is not installed; see the first lines of this file for how to install it."
        ) from None
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for n in options.hashes:
            measure(faiss, n, Path(folder))


if __name__ == "__main__":
    main()
