"""The real worker of fingerprints, except that files named after an accident have it while they are decoded."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import time

from brainmri_core.copies.fingerprint_worker import answer
from brainmri_core.copies.likeness import THUMB_SIDE
from brainmri_core.images.isolation import message
from brainmri_core.images.worker import serve


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


NONSENSE = {
    "text": message({}).replace(b"{}", b"{!"),
    "list": message({}).replace(b"{}", b"[]"),
    "deep": struct.pack("<II", 50_000, 0) + b"[" * 50_000,
    "endless": struct.pack("<II", 2**31, 2**31),
    "empty": message({}),
    "short": message({"pixel_sha256": "x", "colourfulness": 0.0}, b"short"),
    "number": message({"pixel_sha256": "0" * 64, "colourfulness": 1}).replace(
        b"1}", b"1" + b"0" * 400 + b"}"
    ),
    "nan": message({"pixel_sha256": "0" * 64, "colourfulness": float("nan")}, bytes(2 * THUMB_SIDE**2)),
    "half": message({"reason": "\ud800"}),
    "digest": message({"pixel_sha256": "x\n", "colourfulness": 0.0}, bytes(2 * THUMB_SIDE**2)),
    "words": message({"pixel_sha256": "x", "colourfulness": []}, bytes(2 * THUMB_SIDE**2)),
}


def respond(data: bytes, name: str) -> list[bytes]:
    """Answer as the real worker does, unless there is an accident, or the file has taken the worker over."""
    accident(name)
    if "nonsense-more" in name:
        return [message({"more": True})] * 10_000
    taken = [said for kind, said in NONSENSE.items() if f"nonsense-{kind}" in name]
    return taken or [answer(data, name)] * (3 if "twice" in name else 1)


if __name__ == "__main__":
    serve(respond)
