"""Time and recall of the search for copies between two data sets, beside comparing every image with every other.

    python benchmarks/bench_overlap.py

The fingerprints are made: heads of one outline with smooth texture, ten neighbouring slices at a time, and a tenth of the
second set are copies of images of the first, in equal parts as they are, turned, and re-encoded. Comparing every pair of
pixels is timed on some images of the second set and scaled up.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise

import numpy as np
import pandas as pd
from PIL import Image

from brainmri_core.arrays import I64, U8
from brainmri_core.config.data import CopySearchConfig
from brainmri_core.copies.across import find_copies_across
from brainmri_core.copies.likeness import turned
from brainmri_core.copies.unlisted import best_copies

KINDS = ("pixels", "turned", "re-encoded")
COMPARED = 200  # images of the second set that are compared with all of the first


def heads(n: int, rng: np.random.Generator) -> U8:
    """Return n slices, uint8 ``(n, 64, 64)``: neighbours share three quarters of their texture."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    images = np.zeros((n, 64, 64), np.uint8)
    for number in range(n):
        if number % 10 == 0:
            a, b = rng.uniform(0.7, 0.9, 2)
            subject = rng.standard_normal((12, 12))
        field = 0.75 * subject + 0.66 * rng.standard_normal((12, 12))
        texture = np.asarray(
            Image.fromarray(field.astype(np.float32)).resize((64, 64), Image.Resampling.BICUBIC)
        )
        inside = np.clip(8 * (1 - np.hypot(x / a, y / b)), 0, 1)
        images[number] = np.clip(inside * (110 + 40 * texture), 0, 255)
    return images


def plant(ours: U8, theirs: U8, rng: np.random.Generator) -> tuple[I64, list[str], list[str]]:
    """Overwrite a tenth of `theirs`; return the original of each of its images (-1), the kinds, and its pixel hashes."""
    origin = np.full(len(theirs), -1)
    chosen = rng.choice(len(theirs), len(theirs) // 10, replace=False)
    origin[chosen] = rng.choice(len(ours), len(chosen), replace=False)
    kinds, pixels = [""] * len(theirs), [f"b{n}" for n in range(len(theirs))]
    for number, row in enumerate(chosen.tolist()):
        kinds[row], image = KINDS[number % 3], ours[origin[row]]
        if kinds[row] == "pixels":
            theirs[row], pixels[row] = image, f"a{origin[row]}"
        elif kinds[row] == "turned":
            theirs[row] = turned(image[None], 1 + number // 3 % 7)[0]
        else:
            noisy = 0.9 * image + 12 * (image > 0) + rng.normal(0, 3, image.shape)
            theirs[row] = np.clip(noisy, 0, 255)
    return origin, kinds, pixels


def every_pair(ours: U8, theirs: U8, config: CopySearchConfig) -> float:
    """Return the seconds that comparing the pixels of every pair in all orientations would take."""
    some = np.arange(min(COMPARED, len(theirs)))
    both = np.concatenate([ours, theirs[some]])
    start = time.perf_counter()
    best_copies(both, len(ours) + some, np.arange(len(ours)), config)
    return (time.perf_counter() - start) * len(theirs) / len(some)


def measure(n: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    ours, theirs = heads(n, rng), heads(n, rng)
    origin, kinds, pixels = plant(ours, theirs, rng)
    a, b = (
        pd.DataFrame({"pixel_sha256": hashes, "file_sha256": [f"{side}{row}" for row in range(n)]})
        for side, hashes in (("a", [f"a{row}" for row in range(n)]), ("b", pixels))
    )
    config = CopySearchConfig()
    start = time.perf_counter()
    # the made images have no margins to trim, but a real search looks at both versions, so this one does
    found = find_copies_across(a, ours, b, theirs, config, trimmed=(ours, theirs))
    seconds = time.perf_counter() - start
    right = origin[found["b"]] == found["a"]
    rows = set(found["b"][right])
    recall = {kind: np.mean([row in rows for row in range(n) if kinds[row] == kind]) for kind in KINDS}
    naive = every_pair(ours, theirs, config)
    print(f"{n} x {n}: {seconds:.1f} s; every pair of pixels {naive:.0f} s, {naive / seconds:.0f} times that")
    print(
        f"  recall {', '.join(f'{kind} {share:.3f}' for kind, share in recall.items())}; {sum(~right)} other pairs"
    )
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[3_000, 30_000], help="images of each set")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    taken = [(n, measure(n, options.seed)) for n in options.images]
    for (few, before), (many, after) in pairwise(taken):
        print(f"{many / few:.0f} times the images: {after / before:.1f} times the time")


if __name__ == "__main__":
    main()
