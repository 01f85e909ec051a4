"""A process that has imported and used everything once, and forks a child for each call: a trial then costs no import."""

from __future__ import annotations

import atexit
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.counts import PATIENCE_S


class Warm:
    """Calls functions of the test modules in children of the warm process."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="brainmri-warm-"))
        atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        self._log = (self._folder / "server.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.warm"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self._calls = 0

    def start(self, function: str, *arguments: Any) -> tuple[int, Path]:
        """Start ``module:name`` of the tests in a child; return its process id and where its result will lie."""
        self._calls += 1
        result = self._folder / f"{self._calls}.json"
        return self._ask({"call": function, "arguments": arguments, "result": str(result)}), result

    def wait(self, started: tuple[int, Path]) -> int:
        """Wait for a child to end; return its exit code, negative for a signal, with which one that hangs is ended too."""
        hangs = threading.Timer(PATIENCE_S, os.killpg, (started[0], signal.SIGKILL))
        hangs.start()
        try:
            return os.waitstatus_to_exitcode(self._ask({"wait": started[0]}))
        finally:
            hangs.cancel()

    def call(self, function: str, *arguments: Any) -> Any:
        """Run a function in a child and return its result."""
        started = self.start(function, *arguments)
        code = self.wait(started)
        assert code == 0, f"{function} ended with {code}: {self.log(started)}"
        return json.loads(started[1].read_text())

    def log(self, started: tuple[int, Path]) -> str:
        """Return the last of what a child printed."""
        path = started[1].with_suffix(".log")
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._log.close()

    def _ask(self, message: dict[str, Any]) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the warm process died: {(self._folder / 'server.log').read_text()[-3000:]}"
        return int(answer)


def _warm_up() -> None:
    import torch

    torch.set_num_threads(1)
    from tests.faults.tiny import archives, run_all

    archives()
    with tempfile.TemporaryDirectory() as folder:
        run_all(Path(folder) / "project", "warm", "old")
    importlib.import_module("brainmri_dagster.commands.launch")
    importlib.import_module("brainmri_dagster.code_location")


def _child(message: dict[str, Any]) -> None:
    result = Path(message["result"])
    log = os.open(result.with_suffix(".log"), os.O_WRONLY | os.O_CREAT)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, number in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, number)
    code = 1
    try:
        module, _, name = message["call"].partition(":")
        value = getattr(importlib.import_module(module), name)(*message["arguments"])
        result.write_text(json.dumps(value))
        code = 0
    except BaseException as error:  # noqa: BLE001 - a child must never return into the server
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            code = 128 + signal.SIGINT  # as Python itself ends, while it imports what is to be called
        elif isinstance(error, SystemExit) and isinstance(error.code, int):
            code = error.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    """Answer calls until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _warm_up()
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if "wait" in message:
            print(os.waitpid(message["wait"], 0)[1], file=answers, flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            os.setsid()
            _child(message)
        print(pid, file=answers, flush=True)


if __name__ == "__main__":
    serve()
