"""Images per second: bare decoding, a plain Pillow loop, and the fingerprint pass, in one interleaved run.

    python benchmarks/bench_fingerprint.py --archive brain-tumor-classification-mri.zip

Without --archive the zip is looked for in the folder that BRAINMRI_ARCHIVES names. The floor decodes every file to gray
pixels and throws them away, with as many threads as there are cores; the files lie in the page cache.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import simplejpeg
from PIL import Image

from brainmri_core.config.data import CopySearchConfig
from brainmri_core.copies.fingerprint import fingerprint, fingerprint_files
from brainmri_core.copies.search import find_copies
from brainmri_core.images.decode import decode
from brainmri_core.system.threads import cores

NAME = "brain-tumor-classification-mri.zip"


def bare_decode(path: Path) -> None:
    simplejpeg.decode_jpeg(path.read_bytes(), "Gray")


def pillow_loop(path: Path) -> None:
    with Image.open(path) as image:
        image.convert("RGB").resize((224, 224)).save(io.BytesIO(), "JPEG")


def spread(work: Callable[[Path], object], files: list[Path], workers: int) -> None:
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(work, files):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", type=Path, help="zip of JPEG images")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    archive = options.archive or Path(os.environ.get("BRAINMRI_ARCHIVES", ".")) / NAME
    if not archive.is_file():
        parser.error(f"{archive} is missing; give --archive or set BRAINMRI_ARCHIVES")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with zipfile.ZipFile(archive) as source:
            names = sorted(name for name in source.namelist() if name.lower().endswith((".jpg", ".jpeg")))
            for name in names:
                source.extract(name, root)
        measure(root, names, options.rounds)


def measure(root: Path, names: list[str], rounds: int) -> None:
    files, n = [root / name for name in names], cores()
    tasks: dict[str, Callable[[], object]] = {
        f"bare gray decode, {n} threads (floor)": lambda: spread(bare_decode, files, n),
        f"decode(), {n} threads": lambda: spread(
            lambda file: decode(file.read_bytes(), name=file.name, colour_check=False), files, n
        ),
        f"fingerprint(), {n} threads": lambda: spread(
            lambda file: fingerprint(file.read_bytes(), file.name), files, n
        ),
        f"fingerprint_files(), {n} processes": lambda: fingerprint_files(root, names),
        "bare gray decode, 1 thread": lambda: spread(bare_decode, files, 1),
        "Pillow open-resize-save, 1 thread": lambda: spread(pillow_loop, files, 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    floor = statistics.median(next(iter(seconds.values())))
    print(f"{len(names)} images, median of {rounds} interleaved rounds")
    print(f"{'':44}{'images/s':>10}{'time / floor':>14}")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:44}{len(names) / median:10.0f}{median / floor:14.2f}")
    table = fingerprint_files(root, names)
    start = time.perf_counter()
    pairs = find_copies(table, CopySearchConfig())
    took = time.perf_counter() - start
    print(f"{f'find_copies ({len(pairs.first)} pairs)':44}{len(names) / took:10.0f}{took / floor:14.2f}")


if __name__ == "__main__":
    main()
