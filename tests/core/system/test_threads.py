from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from brainmri_core.system.threads import threads
from tests.counts import PATIENCE_S

WITHOUT_MEMORY = """
import resource
from pathlib import Path
from brainmri_core.system.threads import threads

pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(),) * 2)
with threads(2) as pool:
    pool.submit(print).result()
"""


def test_threads_without_memory_are_refused_not_waited_for() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEMORY],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 1
    assert "StorageError: There is no memory for 2 threads; free memory" in done.stderr


def test_work_that_has_not_begun_is_dropped_at_an_error() -> None:
    begun, go_on = threading.Event(), threading.Event()
    with pytest.raises(ZeroDivisionError), threads(1) as pool:
        running = pool.submit(lambda: (begun.set(), go_on.wait(PATIENCE_S)))
        queued = pool.submit(int)
        begun.wait(PATIENCE_S)
        threading.Timer(0.2, go_on.set).start()
        raise ZeroDivisionError
    assert queued.cancelled() and running.done()
