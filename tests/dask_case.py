"""A real Dask scheduler and workers on loopback, each a process of its own."""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from brainmri_core.cluster.shard_files import Arrays
from brainmri_core.config.cluster import ClusterConfig
from brainmri_core.project.job import Job
from brainmri_core.project.logs import Record, StageLog
from tests import ROOT
from tests.counts import PATIENCE_S

_LOOPBACK = ("--host", "127.0.0.1")


@dataclass
class Dask:
    """A scheduler, and the workers that were started."""

    folder: Path
    scheduler: subprocess.Popen[bytes]
    address: str
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)

    def add_worker(self, name: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker of one thread and return at once."""
        program = ("worker", self.address, *_LOOPBACK, "--no-dashboard", "--no-nanny", "--nthreads", "1")
        self.workers.append(
            _dask(self.folder / f"{name}.log", *program, "--name", name, environment=environment)
        )
        return self.workers[-1]

    def job(self, job: Job, run_id: str) -> Job:
        """Return another run in a job's project, whose work on many images goes to the workers."""
        log = StageLog("test", run_id, job.dataset, [self.records.append], "DEBUG")
        return Job(job.layout, run_id, job.entry, log, job.env, ClusterConfig(scheduler=self.address))

    def kill_in_mid_work(self, folder: Path) -> threading.Thread:
        """Kill the first worker with SIGKILL as soon as a piece of work lies in a folder of results."""

        def watch() -> None:
            while not list(folder.glob("*/*-*")):
                time.sleep(0.002)
            self.workers[0].kill()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        return thread


def nap(seconds: float, number: int) -> Arrays:
    """Take a while: work for a worker."""
    time.sleep(seconds)
    return {"number": np.array(number)}


def fail(kind: str) -> Arrays:
    """Raise an error of Python's own, by name."""
    raise getattr(builtins, kind)("it went wrong")


def die() -> Arrays:
    """Bring the worker down: what no image should be able to do."""
    os._exit(1)


def _dask(log: Path, *arguments: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    kind, *rest = arguments
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.dask_{kind}", *rest],
            cwd=log.parent,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            stdout=output,
            stderr=output,
        )


@contextlib.contextmanager
def dask(folder: Path, *workers: str, **environment: str) -> Iterator[Dask]:
    """Run a scheduler, in a changed environment, with some workers; all of them are gone when the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "scheduler.json"
    options = ("--port", "0", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(place))
    scheduler = _dask(folder / "scheduler.log", "scheduler", *_LOOPBACK, *options, environment=environment)
    running = Dask(folder, scheduler, "")
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not running.address:
            assert scheduler.poll() is None and time.monotonic() < deadline, (
                folder / "scheduler.log"
            ).read_text()
            with contextlib.suppress(OSError, ValueError):
                running.address = json.loads(place.read_text())["address"]
            time.sleep(0.05)
        for name in workers:
            running.add_worker(name)
        yield running
    finally:
        for process in (*running.workers, scheduler):
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
