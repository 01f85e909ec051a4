"""Send pieces of work to the workers of a Dask cluster, and return the results in order.

When a worker dies, Dask gives its work to another. This module adds what Dask does not do: a piece that takes much longer
than the others is also given to a second worker, and the first result counts.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from brainmri_core import errors
from brainmri_core.cluster.shard_files import Arrays, take_arrays
from brainmri_core.cluster.software import software
from brainmri_core.cluster.worker import work_on
from brainmri_core.errors import BrainMRIError, ConfigError, StorageError
from brainmri_core.project.job import Job
from brainmri_core.project.logs import StageLog
from brainmri_core.system.storage import scratch_folder

CONNECT_S = 10.0
WITHOUT_WORKERS_S = 120.0
LEAST_SLOW_S = 60.0
_SLOW = 4  # a piece is slow when it takes this many times as long as the longest finished one
_TRIES = 3  # tries of a piece that fails, on any workers
_AHEAD = 4  # pieces per thread that are submitted before the oldest result is taken
_WORK = f"{work_on.__module__}:{work_on.__name__}"
_LOOK_EVERY_S = 1.0
_SAY_EVERY_S = 10.0


@dataclass(frozen=True)
class Workers:
    """The workers of a cluster, and the folder that they share with this process.

    Attributes
    ----------
    client : distributed.Client
        The connection to the scheduler.
    address : str
        Address of the scheduler.
    folder : pathlib.Path
        Holds the results of pieces until they are taken.
    log : StageLog
        Log of the stage, for progress.
    """

    client: Any
    address: str
    folder: Path
    log: StageLog

    @property
    def threads(self) -> int:
        """Number of pieces that the workers can do at the same time; at least 1."""
        threads: dict[str, int] = self.client.nthreads()
        return max(1, sum(threads.values()))

    def map(
        self, what: str, work: Callable[..., Arrays], pieces: Sequence[tuple[Any, ...]]
    ) -> Generator[Arrays, None, None]:
        """Do pieces of work on the workers.

        Parameters
        ----------
        what : str
            What the pieces are, for the log.
        work : callable
            A function of a module of this package that does one piece.
        pieces : sequence of tuple
            The arguments of `work` for each piece.

        Yields
        ------
        dict
            The arrays of each piece, in order. Only a few pieces are submitted ahead of the one that is taken next.

        Raises
        ------
        BrainMRIError
            If `work` raises one; a StorageError is raised only after several tries.
        ConfigError
            If a worker has another version of the code or of a package it uses.
        StorageError
            If the scheduler is lost, no worker is left, or a piece kills its workers repeatedly.
        """
        work_left = _Pass(self, what, work, pieces)
        try:
            for number in range(len(pieces)):
                yield take_arrays(self.folder, work_left.wait_for(number))
        finally:
            work_left.stop()


@dataclass
class _Piece:
    """An unfinished piece: its futures, and the time since when a worker has been working on it."""

    futures: list[Any]
    since: float | None = None


class _Pass:
    """One pass over many pieces: those that are running, and the results that were not taken yet."""

    def __init__(
        self, workers: Workers, what: str, work: Callable[..., Arrays], pieces: Sequence[tuple[Any, ...]]
    ) -> None:
        self.workers, self.client = workers, workers.client
        self.what, self.work, self.pieces = what, work, pieces
        self.running: dict[int, _Piece] = {}
        self.files: dict[int, str] = {}
        self.ended: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self.begun, self.ahead, self.longest = 0, 0, 0.0
        self.looked, self.said, self.with_workers = -_LOOK_EVERY_S, time.monotonic(), time.monotonic()

    def wait_for(self, number: int) -> str:
        """Keep the workers busy until a piece is finished; return the file of its result."""
        while number not in self.files:
            with self._connected():
                self._look_after()
                while self.begun < min(len(self.pieces), number + self.ahead):
                    self.running[self.begun] = _Piece([self._submit(self.begun)])
                    self.begun += 1
            with contextlib.suppress(queue.Empty):
                self._end(*self.ended.get(timeout=_LOOK_EVERY_S))
            if time.monotonic() - self.said > _SAY_EVERY_S:
                self.said = time.monotonic()
                self.workers.log.info(self.what, pieces_done=number + len(self.files), of=len(self.pieces))
        return self.files.pop(number)

    def stop(self) -> None:
        """Cancel the pieces that are still running."""
        with contextlib.suppress(Exception):
            self.client.cancel([future for piece in self.running.values() for future in piece.futures])

    def _submit(self, number: int, **where: Any) -> Any:
        arguments = (self.work, self.pieces[number], str(self.workers.folder), number, software())
        future = self.client.submit(work_on, *arguments, pure=False, retries=_TRIES - 1, **where)
        future.add_done_callback(lambda done: self.ended.put((number, done)))
        return future

    def _end(self, number: int, future: Any) -> None:
        piece = self.running.get(number)
        if piece is None:  # its copy was faster
            return
        with self._connected():
            failure = future.exception() if future.status == "error" else None
            if failure is None:
                self.files[number] = self._answer(number, future)["file"]
            others = [other for other in self.running.pop(number).futures if other is not future]
            if others:
                self.client.cancel(others)
        if failure is not None:  # outside, because an error of the work is not a lost scheduler
            raise self._explained(number, failure)
        if piece.since is not None:
            self.longest = max(self.longest, time.monotonic() - piece.since)

    def _answer(self, number: int, future: Any) -> dict[str, Any]:
        """Return the answer of a worker; raise the error that it reports."""
        found = list(self.workers.folder.glob(f"{number}-*")) if future.status == "finished" else []
        if found:  # a worker that hangs after its work could not be asked
            return {"file": found[0].name}
        answer: dict[str, Any] = future.result()
        if "error" in answer:
            raised: type[BrainMRIError] = getattr(errors, answer["error"], BrainMRIError)
            raise raised(answer["text"])
        return answer

    def _explained(self, number: int, failure: BaseException) -> BaseException:
        """Return the error to raise for a piece that failed at every try."""
        from distributed import KilledWorker

        place = _at(self.what, number, len(self.pieces))
        if isinstance(failure, KilledWorker):
            return StorageError(
                f"Dask workers died {place} again and again; see their logs (is it the memory limit?), and run again."
            )
        if isinstance(failure, OSError):
            return StorageError(
                f"Dask workers failed {_TRIES} times {place} ({failure}); see their logs, and run again."
            )
        return failure

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """Raise one StorageError for the many errors of Dask that mean that the scheduler is lost."""
        from distributed import CancelledError

        try:
            if self.client.status != "running":
                raise CancelledError
            yield
        except (CancelledError, OSError, RuntimeError):
            raise StorageError(
                f"The Dask scheduler at {self.workers.address} was lost in the middle of the work; start it and its "
                "workers again, and run again."
            ) from None

    def _look_after(self) -> None:
        """Count the workers, and give pieces that take too long to a second worker."""
        if time.monotonic() - self.looked < _LOOK_EVERY_S:
            return
        self.looked = time.monotonic()
        threads = self.client.nthreads()
        self.ahead = _AHEAD * sum(threads.values()) or self.ahead
        if threads:
            self.with_workers = self.looked
        elif self.looked - self.with_workers > WITHOUT_WORKERS_S:
            raise StorageError(
                f"The Dask scheduler at {self.workers.address} has had no worker for {WITHOUT_WORKERS_S:.0f} s; start some, see in "
                "their logs why they ended (one without brainmri does at once), and run again."
            )
        at_work = {worker: set(keys) for worker, keys in self.client.processing().items()}
        for number, piece in self.running.items():
            key = piece.futures[0].key
            mine = next((worker for worker, keys in at_work.items() if key in keys), None)
            if mine is None or len(piece.futures) > 1:
                continue
            piece.since = piece.since or self.looked
            if self.looked - piece.since < max(LEAST_SLOW_S, _SLOW * self.longest):
                continue
            free = [
                other for other in threads if other != mine and len(at_work.get(other, ())) < threads[other]
            ]
            if free:
                self.workers.log.info(
                    "a slow piece goes to a second worker", what=self.what, piece=number, slow=mine
                )
                piece.futures.append(self._submit(number, workers=free, allow_other_workers=True))
                at_work.setdefault(free[0], set()).add(piece.futures[-1].key)


def _at(what: str, number: int, of: int) -> str:
    return f"at piece {number + 1} of {of} ({what})"


@contextlib.contextmanager
def workers_of(job: Job) -> Iterator[Workers | None]:
    """Connect to the workers that the configuration names.

    Yields
    ------
    Workers or None
        None where it names no scheduler: then processes of this machine do the work.

    Raises
    ------
    ConfigError
        If Dask is not installed, no scheduler answers, or it has another version of Dask.
    """
    address = job.cluster.scheduler
    if address is None:
        yield None
        return
    place = job.layout.shards
    job.clear_stale(place)
    with _client(address) as client, scratch_folder(place) as folder:
        workers = Workers(client, address, folder, job.log)
        job.log.info(
            "connected to Dask",
            scheduler=address,
            dashboard=client.dashboard_link,
            workers=len(client.nthreads()),
            threads=workers.threads,
        )
        yield workers


@contextlib.contextmanager
def _client(address: str) -> Iterator[Any]:
    """Connect to a scheduler, with a time limit: the address may belong to another program, which may never answer."""
    try:
        from distributed import Client
    except ImportError:
        raise ConfigError(
            "cluster.scheduler needs Dask; install brainmri[dask], or leave it empty."
        ) from None
    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def connect() -> None:
        try:
            answer.put(Client(address, timeout=CONNECT_S, set_as_default=False, name="brainmri"))
        except Exception as error:  # noqa: BLE001 - Dask raises anything at what is no scheduler
            answer.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        client = answer.get(timeout=2 * CONNECT_S)
    except queue.Empty:
        client = TimeoutError("what listens there does not answer")
    ours = software()["distributed"]
    if isinstance(client, Exception):
        raise ConfigError(
            f"No Dask scheduler of this machine's version (distributed {ours}) answers at {address} ({client}); start one, "
            "correct cluster.scheduler, or leave it empty."
        )
    with client:
        if (theirs := client.run_on_scheduler(metadata.version, "distributed")) != ours:
            raise ConfigError(
                f"The Dask scheduler at {address} runs distributed {theirs} and this machine {ours}; install the same "
                "version on both."
            )
        # a worker that receives a function that it cannot import dies, so this is checked first
        for worker, found in client.run(resolve_name, _WORK, on_error="return").items():
            if isinstance(found, Exception):
                raise ConfigError(
                    f"The Dask worker at {worker} cannot import brainmri ({found}); install the same version there, or stop it."
                )
        yield client
