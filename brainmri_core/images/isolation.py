"""Worker processes that open foreign files, so that a bad file costs one image and not the run.

A worker has a memory limit, a time limit per image, and almost nothing of this process's environment. It is replaced when
it dies or stalls. The files that it had not answered are then sent again one by one, and a file that ends two more workers
on its own is refused. Later stages decode in their own process, but only files whose SHA-256 has passed here.

Messages are ``lengths, JSON header, bytes`` in both directions, with several files in a request and an answer for each.
Nothing that a worker answers is executed or unpickled.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from brainmri_core.errors import StorageError
from brainmri_core.escaping import printable
from brainmri_core.images.decode import DecodeError
from brainmri_core.system.storage import storage_error
from brainmri_core.system.threads import threads

SECONDS_PER_IMAGE = 60.0
MAX_FILE_BYTES = 256 << 20
MAX_ANSWERS = 4096  # slices of one file
MAX_ANSWER = 32 << 20  # bytes after a header
_MAX_HEADER = 1 << 16
_LONGEST_REASON = 1000
BATCH_BYTES = 1 << 20
_BATCH = 16  # files in a request: sent one by one, the transfer costs half as much as the decoding
_TRIES = 2
_LOOK_S = 0.5  # a signal that comes just before a longer wait for a thread would not end it
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "SYSTEMROOT")

Answer = tuple[dict[str, Any], bytes]
Reader = Callable[[int], bytes]


def message(header: dict[str, Any], *bodies: bytes) -> bytes:
    """Encode one message: two 32-bit lengths, the JSON header, the bytes."""
    text = json.dumps(header).encode()
    return b"".join((struct.pack("<II", len(text), sum(map(len, bodies))), text, *bodies))


def no_answer(name: str) -> str:
    """Return the reason for refusing an image whose worker sent an invalid answer."""
    return f"{printable(name)} got no usable answer from the image decoder; replace or remove it."


def finite(value: Any) -> float:
    """Return a number of an answer; raise ValueError, TypeError or OverflowError if it is not a finite number."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(number)
    return number


class _WorkerGone(Exception):
    """The worker process died, or gave no answer in time."""


def _header(text: bytes) -> dict[str, Any]:
    """Read the header of an answer. It is not trusted: a foreign file may have taken over the worker."""
    try:
        header = json.loads(text)
        json.dumps(header, ensure_ascii=False).encode()  # refuses escaped lone surrogates
    except (ValueError, RecursionError):
        raise _WorkerGone from None
    if not isinstance(header, dict):
        raise _WorkerGone
    if "reason" in header:
        header["reason"] = printable(str(header["reason"]))[:_LONGEST_REASON]
    return header


class _Worker:
    """One worker process and the two pipes to it."""

    def __init__(self, command: Sequence[str]) -> None:
        root = str(Path(__file__).resolve().parents[2])
        kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        search = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**kept, "PYTHONPATH": search, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        assert self.process.stdin and self.process.stdout
        self.requests, self.answers = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.requests, False)
        self.received = bytearray()
        self.parts = 0  # answers so far for the oldest file without its last one

    def send(self, files: Sequence[tuple[str, bytes]]) -> None:
        header = {"files": [(name, len(data)) for name, data in files]}
        rest = memoryview(message(header, *(data for _, data in files)))
        deadline = time.monotonic() + SECONDS_PER_IMAGE
        while rest:
            answered, ready = self._wait(deadline, True)
            if answered:  # read while writing: otherwise both sides could wait for the other to read
                self._take()
            try:
                rest = rest[os.write(self.requests, rest) :] if ready else rest
            except BrokenPipeError:
                raise _WorkerGone from None

    def receive(self) -> list[Answer]:
        """Wait for an answer; return it and all further ones that have arrived."""
        deadline = time.monotonic() + SECONDS_PER_IMAGE
        found: list[Answer] = []
        while not found:
            self._wait(deadline)
            self._take()
            start = 0
            while len(self.received) >= start + 8:
                head, body = struct.unpack_from("<II", self.received, start)
                if head > _MAX_HEADER or body > MAX_ANSWER:
                    raise _WorkerGone
                middle = start + 8 + head
                if len(self.received) < middle + body:
                    break
                found.append(
                    (
                        _header(bytes(self.received[start + 8 : middle])),
                        bytes(self.received[middle : middle + body]),
                    )
                )
                start = middle + body
            del self.received[:start]
        return found

    def _wait(self, deadline: float, sending: bool = False) -> tuple[bool, bool]:
        """Wait until there is something to read or, when sending, room to write; say which."""
        poll = select.poll()  # select.select takes no descriptor above 1,023
        poll.register(self.answers, select.POLLIN)
        if sending:
            poll.register(self.requests, select.POLLOUT)
        found = dict(poll.poll(1000 * max(0.0, deadline - time.monotonic())))
        if not found:
            raise _WorkerGone
        return self.answers in found, self.requests in found

    def _take(self) -> None:
        part = os.read(self.answers, 1 << 16)
        if not part:
            raise _WorkerGone
        self.received += part

    def end(self, patience_s: float = 1.0) -> tuple[str, str]:
        """Close the pipes, and wait for the worker to end or kill it.

        Returns
        -------
        how, words : str
            How it ended, and the last line it wrote to standard error.
        """
        streams = (self.process.stdin, self.process.stdout, self.process.stderr)
        assert streams[0] and streams[1] and streams[2]
        streams[0].close()
        try:
            code = self.process.wait(patience_s)
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            how = f"no answer in {SECONDS_PER_IMAGE:.0f} s"
        lines = streams[2].read().decode(errors="replace").strip().splitlines()
        streams[1].close()
        streams[2].close()
        return how, printable(lines[-1]) if lines else "no message"


class _Pass:
    """One pass over many files: the work still to do, and the answers."""

    def __init__(self, read: Reader, names: Sequence[str], command: Sequence[str]) -> None:
        self.read, self.names, self.command = read, names, command
        self.todo = iter(range(len(names)))
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.running: list[subprocess.Popen[bytes]] = []
        self.results: queue.Queue[list[tuple[int, Answer]] | Future[None]] = queue.Queue(32)

    def put(self, result: list[tuple[int, Answer]] | Future[None]) -> None:
        while not self.stopped.is_set():
            with contextlib.suppress(queue.Full):
                self.results.put(result, timeout=0.1)
                return

    def refuse(self, index: int, why: str) -> None:
        name = printable(self.names[index])
        self.put([(index, ({"reason": f"{name} {why}; replace or remove it."}, b""))])

    def next_file(self) -> tuple[int, bytes] | None:
        """Read the next file; a file that cannot be read is refused."""
        while not self.stopped.is_set():
            with self.lock:
                index = next(self.todo, None)
            if index is None:
                return None
            try:
                return index, self.read(index)
            except DecodeError as error:
                self.put([(index, ({"reason": str(error)}, b""))])
        return None

    def next_batch(self) -> list[tuple[int, bytes]]:
        """Read the next few files; an empty list means that none are left."""
        batch: list[tuple[int, bytes]] = []
        size = 0
        while len(batch) < _BATCH and size < BATCH_BYTES and (item := self.next_file()) is not None:
            batch.append(item)
            size += len(item[1])
        return batch

    def serve(self) -> None:
        """Keep one worker busy until no file is left; runs in a thread."""
        waiting: deque[tuple[int, bytes]] = deque()
        crashes: dict[int, int] = {}
        finished = False
        while not finished and not self.stopped.is_set():
            worker, started, alone = _Worker(self.command), False, True
            self.running.append(worker.process)
            try:
                worker.receive()
                started = True
                while waiting and not self.stopped.is_set():  # files that a dead worker had not answered
                    self.send(worker, [waiting[0]])
                    self.take_answers(worker, waiting, len(waiting) - 1)
                alone = False
                self.feed(worker, waiting)
                finished = True
            except _WorkerGone:
                finished = False
            finally:
                how, words = worker.end()
            if not started and not self.stopped.is_set():
                raise StorageError(
                    f"The process that decodes images did not start ({how}: {words}); free memory and run again."
                )
            if not finished and alone and waiting:
                self.blame(waiting, crashes, how)

    def send(self, worker: _Worker, files: Sequence[tuple[int, bytes]]) -> None:
        worker.send([(self.names[index], data) for index, data in files])

    def feed(self, worker: _Worker, waiting: deque[tuple[int, bytes]]) -> None:
        """Send batches, with two of them underway; `waiting` holds the files without an answer, oldest first."""
        while not self.stopped.is_set():
            if batch := self.next_batch():
                waiting.extend(batch)
                self.send(worker, batch)
            self.take_answers(worker, waiting, len(batch))
            if not batch:
                return

    def take_answers(self, worker: _Worker, waiting: deque[tuple[int, bytes]], rest: int) -> None:
        """Pass answers on until at most `rest` files wait for an answer."""
        while len(waiting) > rest and not self.stopped.is_set():
            ready: list[tuple[int, Answer]] = []
            for answer in worker.receive():
                more = bool(answer[0].get("more"))
                worker.parts = worker.parts + 1 if more else 0
                if not waiting or worker.parts > MAX_ANSWERS:  # more answers than were asked for
                    self.put(ready)
                    raise _WorkerGone
                ready.append((waiting[0][0] if more else waiting.popleft()[0], answer))
            self.put(ready)

    def blame(self, waiting: deque[tuple[int, bytes]], crashes: dict[int, int], how: str) -> None:
        """Count a worker's end against the only file that it had, and refuse that file at the second end."""
        index = waiting[0][0]
        crashes[index] = crashes.get(index, 0) + 1
        if crashes[index] >= _TRIES:
            waiting.popleft()
            self.refuse(index, f"ended the image decoder {_TRIES} times ({how})")

    def stop(self) -> None:
        """End the threads at once: kill their workers."""
        self.stopped.set()
        for process in self.running:
            process.kill()


def read_below(root: Path, paths: Sequence[str]) -> Reader:
    """Return a function that reads a file below a folder by its position in `paths`.

    It raises StorageError where a file cannot be read, and DecodeError, which refuses only that file, for a large one.
    """

    def read(index: int) -> bytes:
        file = f"{root}/{paths[index]}"  # to build a Path takes longer than to read a small image
        try:
            with open(file, "rb", buffering=0) as handle:
                if (size := os.fstat(handle.fileno()).st_size) <= MAX_FILE_BYTES:
                    return handle.read()
        except OSError as error:
            raise storage_error(error, Path(file), "read") from error
        raise DecodeError(
            f"{printable(paths[index])} has {size >> 20} MiB, more than the {MAX_FILE_BYTES >> 20} MiB that are read; "
            "replace or remove it."
        )

    return read


def stream_answers(
    read: Reader, names: Sequence[str], workers: int, module: str, *arguments: str
) -> Generator[tuple[int, Answer], None, None]:
    """Send files to worker processes and yield what they answer.

    Parameters
    ----------
    read : callable
        Returns the bytes of a file by its position; called in threads. A DecodeError refuses that file, any other
        exception ends the pass.
    names : sequence of str
        Names of the files for messages; only a few files are in memory at a time.
    workers : int
        Number of processes.
    module : str
        Module that each worker runs. It sends one `message` when it is ready, and then one for each file, or several, all
        but the last with a true ``more`` in their header. When a worker dies between the answers for one file, the answers
        for that file start again.
    *arguments : str
        Command-line arguments of the workers.

    Yields
    ------
    index : int
        Position in `names`, in no particular order.
    answer : tuple of dict and bytes
        The worker's header and bytes; the header is ``{"reason": text}`` where a file was refused.

    Raises
    ------
    StorageError
        If a file cannot be read or no worker can be started.
    """
    work = _Pass(read, names, (sys.executable, "-P", "-W", "ignore", "-m", module, *arguments))
    left = len(names)
    with threads(workers) as pool:
        try:
            for _ in range(min(workers, left)):
                pool.submit(work.serve).add_done_callback(work.put)
            while left:
                try:
                    result = work.results.get(timeout=_LOOK_S)
                except queue.Empty:
                    continue
                if isinstance(result, Future):
                    result.result()  # raises what ended the thread
                    continue
                for index, answer in result:
                    yield index, answer
                    left -= not answer[0].get("more")
        finally:
            work.stop()
