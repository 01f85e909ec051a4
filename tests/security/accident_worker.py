"""The real worker of fingerprints, except that files named after an accident have it while they are decoded."""

from __future__ import annotations

import ctypes
import os
import signal
import time

from brainmri_core.images.worker import answer, serve


def accident(name: str) -> None:
    """What the file's name says."""
    if "segfault" in name:
        ctypes.string_at(0)
    if "killed" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    if "abort" in name:
        ctypes.CDLL(None).abort()
    if "stall" in name:
        time.sleep(3600)
    if "greedy" in name:
        held = []
        while True:
            held.append(bytearray(512 << 20))


def respond(data: bytes, name: str) -> list[bytes]:
    """Answer as the real worker does, unless there is an accident."""
    accident(name)
    return [answer(data, name)]


if __name__ == "__main__":
    serve(respond)
