"""Processes: names that no later process can have, and children that do not outlive their parent."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import sys
from pathlib import Path

_SET_DEATH_SIGNAL = 1


def this_process() -> str:
    """Return a name for this process that no later one can have: host, process id and start time."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def _started(pid: int) -> str:
    """Return a process's start time in clock ticks since boot; empty if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]


def is_dead(process: str) -> bool:
    """Say whether a process named by `this_process` is gone; False if that cannot be known (another host, or no ``/proc``)."""
    named = re.fullmatch(r"(.*):([0-9]{1,10}):([0-9]+)", process)
    if named is None or named[1] != socket.gethostname() or not Path("/proc/self/stat").exists():
        return False
    return _started(int(named[2])) != named[3]


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent ends, however that ends.

    Parameters
    ----------
    parent : int
        Process id that the parent should have. Another one means that the parent ended before this call: then this process
        ends, too.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
