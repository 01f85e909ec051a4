"""The data stages at many images: processes of this machine against one and two Dask workers on the same cores.

    OMP_NUM_THREADS=1 python benchmarks/bench_scale.py --images 3000 30000
    OMP_NUM_THREADS=1 python benchmarks/bench_scale.py --images 300000 --rounds 1 --without-search
    OMP_NUM_THREADS=1 python benchmarks/bench_scale.py --hashes 75000 150000 300000
    OMP_NUM_THREADS=1 python benchmarks/bench_scale.py --hashes 300000 1000000 3000000 --some 131072

Images are made from the built-in data set's, each with another brightness, shift and noise. The cores are the same in
each column: threads of one worker, or as many divided among two. Each round measures the columns one after the other, so
that a busy machine is busy for all of them. The figures are medians of the rounds: seconds, and in brackets processor
seconds of all processes that take part, which other programs on the machine disturb less. Ratios are to the first column.
The workers are warm, as those of a cluster are: each column begins with a pass that is not counted. They keep freed memory, as
`docs/deployment.md` has it; ``--give-back`` starts them as Dask does by itself, so that they give every freed array back.
``--without-search`` leaves out the search, whose cost grows with the square.

``--hashes`` measures the search for copies alone, on synthetic fingerprints, with its exponent since the number before. Memory
is the largest that the process had of its own, without the mapped file of thumbnails. ``--some`` looks up only some of the
images, mirrored, in the index of all, and estimates one of the 14 passes of a search from it: the index, and the rest for all images.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.bench_growth import synthetic
from brainmri_core.cluster.workers import Workers, workers_of
from brainmri_core.config.cluster import ClusterConfig
from brainmri_core.config.data import CopySearchConfig, PhantomConfig, ResizeConfig
from brainmri_core.copies.fingerprint_shards import fingerprint_on
from brainmri_core.copies.hamming import candidate_pairs
from brainmri_core.copies.search import confirmed, prepare
from brainmri_core.copies.search_shards import find_copies_on
from brainmri_core.images.pack import write_pack
from brainmri_core.images.preparation_shards import resized_on
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import StageLog
from brainmri_core.sources.phantom import write_phantom
from brainmri_core.system.threads import cores

KEY = "brainmri/phantom"
SIZE = 224
KEEP_FREED = {"MALLOC_TRIM_THRESHOLD_": str(64 << 20), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
Column = tuple[Workers | None, list[int]]
MIRRORED = 1  # an index into `likeness.ORIENTATIONS`
STAGES = ("fingerprints", "search for copies", "resize")


def write_images(folder: Path, n: int) -> list[str]:
    """Write n JPEGs of 256 px that are no copies of each other, in folders of a thousand, and return their paths."""
    settings = PhantomConfig(subjects_per_class=8, slices_per_subject=4, copies_per_kind=0, label_conflicts=0)
    write_phantom(folder / "phantom", settings)
    known = [
        np.asarray(Image.open(path).convert("L").resize((256, 256)), np.float32)
        for path in sorted((folder / "phantom").glob("T*ing/**/*.jpg"))
    ]
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 8, (512, 512)).astype(np.float32)
    paths = []
    for number in range(n):
        down, right = rng.integers(0, 256, 2)
        image = known[number % len(known)] * rng.uniform(0.6, 1.1)
        image = image + noise[down : down + 256, right : right + 256]
        image = np.roll(image, rng.integers(-30, 30, 2), (0, 1))
        path = f"images/{number // 1000:04d}/{number:07d}.jpg"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / path, quality=90)
        paths.append(path)
    return paths


def processor_seconds(programs: list[int]) -> float:
    """Return the processor seconds of this process, of some others, and of all that they have started."""
    total = sum(os.times()[:4])
    for program in map(psutil.Process, programs):
        for process in (program, *program.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:4])
    return total


@contextlib.contextmanager
def cluster(
    folder: Path, workers: int, threads: int, environment: dict[str, str]
) -> Iterator[tuple[str, list[int]]]:
    """Run a scheduler and workers on loopback, and yield the address and the processes."""
    folder.mkdir(parents=True)
    place = folder / "scheduler.json"
    loopback = ("--host", "127.0.0.1")
    bound = ("--port", "0", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(place))
    running = [_dask(folder, "scheduler", *loopback, *bound, environment={})]
    try:
        while not (place.exists() and place.stat().st_size):
            time.sleep(0.1)
        time.sleep(0.5)
        address = json.loads(place.read_text())["address"]
        settings = (*loopback, "--no-dashboard", "--nthreads", str(threads))
        running += [
            _dask(folder, "worker", address, *settings, environment=environment) for _ in range(workers)
        ]
        yield address, [process.pid for process in running]
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait()


def _dask(folder: Path, kind: str, *arguments: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments]
    root = str(Path(__file__).resolve().parents[1])
    with (folder / f"{kind}.log").open("ab") as log:
        return subprocess.Popen(
            program, cwd=folder, env=os.environ | {"PYTHONPATH": root} | environment, stdout=log, stderr=log
        )


def job_at(root: Path, address: str | None) -> Job:
    entry = load_catalogue()[KEY]
    log = StageLog("bench", "r", KEY, [])
    return Job(Layout(root=root), "r", entry, log, cluster=ClusterConfig(scheduler=address))


def stages(root: Path, paths: list[str], column: Column, searched: bool) -> dict[str, tuple[float, float]]:
    """Run the data stages, without the search if told so, and return the seconds of each, and the processor seconds."""
    taken: dict[str, tuple[float, float]] = {}
    workers, programs = column

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start, used = time.perf_counter(), processor_seconds(programs)
        result = work()
        taken[name] = time.perf_counter() - start, processor_seconds(programs) - used
        return result

    prints = timed(STAGES[0], lambda: fingerprint_on(workers, root, paths))
    if searched:
        timed(STAGES[1], lambda: find_copies_on(workers, prints, CopySearchConfig()))
    hashes = [hashlib.sha256((root / path).read_bytes()).hexdigest() for path in paths]
    config = ResizeConfig(size=SIZE)

    def resize() -> str:
        images = resized_on(workers, root, paths, hashes, config, 1)
        found = (image.pixels for image in images if image.pixels is not None)
        return write_pack(root / "pack.npy", found, most=len(paths), size=SIZE, channels=1)

    timed(STAGES[2], resize)
    return taken


def compare(folder: Path, n: int, rounds: int, searched: bool, environment: dict[str, str]) -> None:
    """Print a table of the stages in each column, in images a second and as a ratio to the first column."""
    paths = write_images(folder / str(n), n)
    root, some = folder / str(n), paths[: min(n, 512)]
    whole, half = cores(), max(1, cores() // 2)
    with (
        cluster(folder / f"one-{n}", 1, whole, environment) as one,
        cluster(folder / f"two-{n}", 2, half, environment) as two,
        contextlib.ExitStack() as opened,
    ):
        columns: dict[str, Column] = {f"{whole} processes": (None, [])}
        for name, count, (address, programs) in (
            (f"1 worker x {whole}", 1, one),
            (f"2 workers x {half}", 2, two),
        ):
            workers = opened.enter_context(workers_of(job_at(folder / name, address)))
            assert workers is not None
            workers.client.wait_for_workers(count, timeout=120)
            columns[name] = workers, programs
        for column in columns.values():
            stages(root, some, column, searched)
        taken: dict[str, list[dict[str, tuple[float, float]]]] = {name: [] for name in columns}
        for _ in range(rounds):
            for name, column in columns.items():
                taken[name].append(stages(root, paths, column, searched))
    report(n, taken)


def report(n: int, taken: dict[str, list[dict[str, tuple[float, float]]]]) -> None:
    """Print a table of the stages: seconds, processor seconds and images a second in each column, and the ratios."""
    first, *others = taken
    print(f"\n{n:,} images, {len(taken[first])} rounds\n\n| stage | {' | '.join(taken)} | ratios |")
    print(f"| --- |{' ---: |' * len(taken)} --- |")
    for stage in taken[first][0]:
        cells, ratios = [], []
        for passes in taken.values():
            seconds, used = (statistics.median(item[stage][kind] for item in passes) for kind in (0, 1))
            cells.append(f"{seconds:.1f} s ({used:.1f}), {n / seconds:,.0f}/s")
        for name in others:
            seconds, used = (
                statistics.median(
                    item[stage][kind] / base[stage][kind]
                    for item, base in zip(taken[name], taken[first], strict=True)
                )
                for kind in (0, 1)
            )
            ratios.append(f"{seconds:.2f} ({used:.2f})")
        print(f"| {stage} | {' | '.join(cells)} | {', '.join(ratios)} |", flush=True)


@contextlib.contextmanager
def watched_memory() -> Iterator[Callable[[], float]]:
    """Look at the memory of this process a few times a second, and yield what returns the largest, in GB."""
    ended, seen = threading.Event(), [0]

    def look() -> None:
        while not ended.wait(0.2):
            memory = psutil.Process().memory_info()
            seen.append(memory.rss - memory.shared)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield lambda: max(seen) / 1e9
    finally:
        ended.set()
        thread.join()


def search(folder: Path, numbers: list[int], config: CopySearchConfig) -> None:
    """Print the seconds of the search for copies in this process, at rising numbers of fingerprints, with the exponent."""
    before = None
    print("| fingerprints | processor seconds | us an image | pairs | exponent | memory |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for n in numbers:
        table, _ = synthetic(n, folder, np.random.default_rng(n))
        with watched_memory() as memory:
            start = time.process_time()
            pairs = find_copies_on(None, table, config)
            seconds = time.process_time() - start
        exponent = f"{math.log(seconds / before[1]) / math.log(n / before[0]):.2f}" if before else ""
        print(
            f"| {n:,} | {seconds:.1f} | {seconds / n * 1e6:.0f} | {len(pairs.first):,} | {exponent} | {memory():.1f} GB |",
            flush=True,
        )
        before = (n, seconds)
        (folder / f"{n}.npy").unlink()


def search_for_some(folder: Path, numbers: list[int], some: int) -> None:
    """Print what one pass of a search costs by looking up some of the images in the index of all."""
    config, stopped, before = CopySearchConfig(), threading.Event(), None
    print("| fingerprints | index | a pass, estimated | us an image | pairs of hashes | exponent | memory |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for n in numbers:
        table, _ = synthetic(n, folder, np.random.default_rng(n))
        with watched_memory() as memory:
            every = prepare(table.thumbs, table.hashes, np.arange(n))
            taken = []
            for count in (1, some):
                start = time.process_time()
                confirmed(replace(every, rows=np.arange(count)), every, MIRRORED, config, stopped, offset=0)
                taken.append(time.process_time() - start)
        looked_up = candidate_pairs(
            table.hashes[:some, MIRRORED], table.hashes[:, 0], config.hash_radius, "ordered"
        )
        pairs = sum(len(first) for first, _ in looked_up) * n // some
        seconds = taken[0] + (taken[1] - taken[0]) * n / some
        exponent = f"{math.log(seconds / before[1]) / math.log(n / before[0]):.2f}" if before else ""
        print(
            f"| {n:,} | {taken[0]:.1f} s | {seconds:.1f} s | {seconds / n * 1e6:.1f} | {pairs:,} | {exponent} | "
            f"{memory():.1f} GB |",
            flush=True,
        )
        before = (n, seconds)
        (folder / f"{n}.npy").unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="*", default=[])
    parser.add_argument("--hashes", type=int, nargs="*", default=[])
    parser.add_argument("--orientations", choices=("all", "mirror", "identity"), default="all")
    parser.add_argument("--some", type=int, help="look up only so many of the hashes")
    parser.add_argument("--give-back", action="store_true")
    parser.add_argument("--without-search", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for n in options.images:
            environment = {} if options.give_back else KEEP_FREED
            compare(Path(folder), n, options.rounds, not options.without_search, environment)
        if options.hashes:
            if options.some:
                search_for_some(Path(folder), options.hashes, options.some)
            else:
                search(Path(folder), options.hashes, CopySearchConfig(orientations=options.orientations))


if __name__ == "__main__":
    main()
