from __future__ import annotations

import _thread
import os
import subprocess
import sys
import threading
import time

import pytest

from brainmri_core.system.threads import outcome, threads
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


def test_a_signal_that_comes_just_before_a_wait_for_a_thread_ends_it() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def interrupt() -> None:
        begun.wait(PATIENCE_S)
        time.sleep(0.3)  # the main thread waits by now, and is not woken by what Python notes here
        _thread.interrupt_main()

    with threads(2) as pool:
        pool.submit(interrupt)
        lasting = pool.submit(lambda: (begun.set(), go_on.wait(30)))
        with pytest.raises(KeyboardInterrupt):
            outcome(lasting)
        assert not lasting.done()
        go_on.set()


@pytest.mark.parametrize(("own", "found"), [(None, "passive"), ("active", "active")])
def test_openmp_threads_sleep_while_they_wait_unless_the_user_says_otherwise(
    own: str | None, found: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if own is None else {"OMP_WAIT_POLICY": own}
    program = "import os, brainmri_core; print(os.environ['OMP_WAIT_POLICY'])"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == found
