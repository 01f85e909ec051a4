"""The loop of a worker process: read files from standard input and answer each. See `isolation`."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterable

from brainmri_core.images.isolation import BATCH_BYTES, message

MEMORY_LIMIT = 2 << 30
_PATIENCE_S = 0.05  # answers are collected for this long before they are sent together


def serve(respond: Callable[[bytes, str], Iterable[bytes]]) -> None:
    """Answer requests until standard input ends.

    Parameters
    ----------
    respond : callable
        Gets a file's content and name; returns one message, or several of which all but the last are marked ``more``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    answers = os.fdopen(os.dup(1), "wb", BATCH_BYTES)
    _limit_resources()
    answers.write(message({"ready": True}))
    answers.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    # A decoder that prints must not write into the answers, nor fill a pipe that nobody reads.
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    requests, flushed = sys.stdin.buffer, time.monotonic()
    while len(sizes := requests.read(8)) == 8:
        head, body = struct.unpack("<II", sizes)
        files = json.loads(requests.read(head))["files"]
        source = io.BytesIO(requests.read(body)) if body <= 2 * BATCH_BYTES else requests
        for name, size in files:
            data = source.read(size)
            if len(data) < size:
                return
            for part in respond(data, name):
                answers.write(part)
                if time.monotonic() - flushed > _PATIENCE_S:
                    answers.flush()
                    flushed = time.monotonic()
        answers.flush()
        flushed = time.monotonic()


def _limit_resources() -> None:
    if sys.platform != "win32":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = MEMORY_LIMIT if most == resource.RLIM_INFINITY else min(most, MEMORY_LIMIT)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold a patient's image
