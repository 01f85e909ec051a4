"""Precision and recall of the search for copies on the synthetic data set, by kind of planted copy.

    python benchmarks/bench_copies.py

Prints one table for the default search, one for the hash alone (no confirmation by correlation), and one without the
second look at the images without their margins.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from brainmri_core.config.data import CopySearchConfig, PhantomConfig
from brainmri_core.copies.fingerprint import fingerprint_files
from brainmri_core.copies.planted import score_copies
from brainmri_core.copies.search import find_copies
from brainmri_core.sources.phantom import write_phantom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=60, help="subjects per class")
    parser.add_argument("--copies", type=int, default=100, help="planted copies of each kind")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    config = PhantomConfig(
        seed=options.seed,
        subjects_per_class=options.subjects,
        copies_per_kind=options.copies,
        label_conflicts=options.copies // 4,
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "files"
        truth = write_phantom(root, config)
        paths = [image.path for image in truth.images]
        prints = fingerprint_files(root, paths)
    whole = replace(prints, trimmed_thumbs=prints.thumbs, trimmed_hashes=prints.hashes)
    search = CopySearchConfig()
    alone = search.model_copy(update={"ncc_threshold": 1e-6, "max_difference": 1e6})
    print(f"{len(paths)} images of {4 * options.subjects} subjects, seed {options.seed}")
    for title, table, settings in (
        (f"hash within {search.hash_radius}, correlation >= {search.ncc_threshold}", prints, search),
        ("the same, with the margins", whole, search),
        (f"hash within {search.hash_radius} alone", prints, alone),
    ):
        print(f"\n{title}")
        print(score_copies(truth, paths, find_copies(table, settings)).round(3).to_string())


if __name__ == "__main__":
    main()
