"""Images per second of the data stages against bare decoding and a plain Pillow loop, and their memory.

    python benchmarks/bench_data.py --archive brain-tumor-classification-mri.zip

Without --archive the zip is looked for in the folder that BRAINMRI_ARCHIVES names. All sides take turns in one process;
the files lie in the page cache. The floor decodes every file as libjpeg does by default (to the file's own colours) and
throws the pixels away, with a thread per core; the gray floor leaves out the colours. Beside the wall time stands the
processor time, worker processes included: on a machine that others use too, only that can be compared. What is imported
once per process (scikit-learn, say) is paid in a warm-up round that is not counted.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import simplejpeg
from PIL import Image

from brainmri_core.config.data import CopySearchConfig, FetchConfig, ResizeConfig, SplitConfig, ValidateConfig
from brainmri_core.copies.fingerprint import fingerprint_files
from brainmri_core.copies.search import find_copies
from brainmri_core.fetch import fetch
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import StageLog
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.sample_table import read_samples
from brainmri_core.resize import resize
from brainmri_core.sources.index import index_files
from brainmri_core.split import split
from brainmri_core.system.threads import cores
from brainmri_core.validate import validate

KEY = "sartajbhuvaji/brain-tumor-classification-mri"
STAGES = ("fetch index", "split", "resize", "validate")
T = TypeVar("T")


def job_in(root: Path, run_id: str) -> Job:
    return Job(Layout(root=root), run_id, load_catalogue()[KEY], StageLog("bench", run_id, KEY, []))


def processor_seconds() -> float:
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    return total


class Clock:
    """Wall and processor seconds by name."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {}
        self.processor: dict[str, list[float]] = {}

    def time(self, name: str, work: Callable[[], T]) -> T:
        """Do `work` and keep its seconds under `name`."""
        wall, processor = time.perf_counter(), processor_seconds()
        result = work()
        self.processor.setdefault(name, []).append(processor_seconds() - processor)
        self.wall.setdefault(name, []).append(time.perf_counter() - wall)
        return result


def pillow_loop(files: list[Path], folder: Path) -> None:
    folder.mkdir()
    for number, file in enumerate(files):
        with Image.open(file) as image:
            image.convert("RGB").resize((224, 224)).save(folder / f"{number}.jpg")
    shutil.rmtree(folder)


def decode_all(files: list[Path], space: str) -> None:
    def work(file: Path) -> None:
        data = file.read_bytes()
        own = "Gray" if simplejpeg.decode_jpeg_header(data)[2] == "Gray" else space
        simplejpeg.decode_jpeg(data, own)

    with ThreadPoolExecutor(cores()) as pool:
        for _ in pool.map(work, files):
            pass


def one_round(clock: Clock, root: Path, run_id: str, archive: Path) -> None:
    job = job_in(root, run_id)
    fetched = write_pointer(job.layout, fetch(FetchConfig(archive=str(archive)), job))
    data = job.layout.absolute(fetched.dataset_root)
    paths = read_samples(job.layout.absolute(fetched.samples))["path"].tolist()
    files = [data / path for path in paths]
    clock.time("floor: bare decode", lambda: decode_all(files, "RGB"))
    clock.time("gray floor: bare decode to gray", lambda: decode_all(files, "Gray"))
    clock.time("Pillow open-resize-save, 1 thread", lambda: pillow_loop(files, root / "plain"))
    clock.time("fetch index", lambda: index_files(data, job.entry, None, []))
    prints = clock.time("  fingerprints", lambda: fingerprint_files(data, paths))
    clock.time("  search for copies", lambda: find_copies(prints, CopySearchConfig()))
    mapping = clock.time(
        "split", lambda: write_pointer(job.layout, split(SplitConfig(seed=42), fetched, job))
    )
    pack = clock.time("resize", lambda: write_pointer(job.layout, resize(ResizeConfig(), mapping, job)))
    clock.time("validate", lambda: validate(ValidateConfig(), pack, job))
    for name in ("mappings", "validation"):
        shutil.rmtree(job.layout.root / "outputs" / name)
    shutil.rmtree(job.layout.pack_dir("data/training_resized", KEY, run_id))


def speed(archive: Path, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one_round(Clock(), Path(folder), "warm", archive)
        clock = Clock()
        for number in range(rounds):
            one_round(clock, Path(folder), f"r{number}", archive)
        n = len(list(Path(folder).rglob("*.jpg")))
    wall, used = (
        {name: statistics.median(v) for name, v in of.items()} for of in (clock.wall, clock.processor)
    )
    for sums in (wall, used):
        sums["all stages"] = sum(sums[name] for name in STAGES)
    floors = ("floor: bare decode", "gray floor: bare decode to gray")
    print(f"{n} images, {cores()} cores, median of {rounds} interleaved rounds")
    print(f"{'':36}{'images/s':>10}{'wall/floor':>12}{'/gray':>8}{'cpu s':>8}{'cpu/floor':>11}{'/gray':>8}")
    for name in wall:
        print(
            f"{name:36}{n / wall[name]:10.0f}{wall[name] / wall[floors[0]]:12.2f}{wall[name] / wall[floors[1]]:8.2f}"
            f"{used[name]:8.2f}{used[name] / used[floors[0]]:11.2f}{used[name] / used[floors[1]]:8.2f}"
        )


def watched(work: Callable[[], object]) -> float:
    """Return the largest anonymous memory of this process during `work`, in MiB; mapped files do not count."""
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            status = Path("/proc/self/status").read_text()
            most = max(most, int(status.split("RssAnon:")[1].split()[0]))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    return most / 1024


def memory_child(archive: Path) -> None:
    """Run the stages in a process of their own and print the peak of each."""
    with tempfile.TemporaryDirectory() as folder:
        job = job_in(Path(folder), "m")
        found = []
        fetched = write_pointer(job.layout, fetch(FetchConfig(archive=str(archive)), job))
        for stage in (
            lambda: found.append(write_pointer(job.layout, split(SplitConfig(seed=42), fetched, job))),
            lambda: found.append(write_pointer(job.layout, resize(ResizeConfig(), found[0], job))),
            lambda: validate(ValidateConfig(), found[1], job),
        ):
            print(f"{watched(stage):.0f}", end=" ")
        workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"{workers:.0f} {fetched.n_images}")


def memory(archive: Path, tree: Path) -> None:
    print(f"\n{'peak anonymous MiB':24}{'split':>8}{'resize':>8}{'validate':>10}{'one worker':>12}")
    with tempfile.TemporaryDirectory() as folder:
        shutil.unpack_archive(archive, tree)
        files = sorted(tree.rglob("*.jpg"))
        for share in (4, 2, 1):
            part = Path(folder) / f"part{share}"
            for file in files[::share]:
                target = part / file.relative_to(tree)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(file, target)
            command = [sys.executable, __file__, "--memory-of", str(part)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            *stages, workers, n = done.stdout.split()
            print(f"{n + ' images':24}{stages[0]:>8}{stages[1]:>8}{stages[2]:>10}{workers:>12}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", type=Path, help="zip of the real data set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        memory_child(options.memory_of)
        return
    archive = options.archive or Path(os.environ.get("BRAINMRI_ARCHIVES", ".")) / f"{KEY.split('/')[1]}.zip"
    if not archive.is_file():
        parser.error(f"{archive} is missing; give --archive or set BRAINMRI_ARCHIVES")
    speed(archive, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        memory(archive, Path(folder) / "tree")


if __name__ == "__main__":
    main()
