from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from brainmri_core.errors import BusyError, ConfigError
from brainmri_core.system.leases import LEASE_VARIABLE, Lease, is_held, leased
from brainmri_core.system.object_store import Bucket
from tests import ROOT
from tests.counts import PATIENCE_S
from tests.object_store import Proxy

HOLDER = """
import sys, time
from brainmri_core.system.leases import leased
from brainmri_core.system.object_store import Bucket
with leased(Bucket(sys.argv[1]), "work", wait=True, busy="", on_wait=print):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
    Bucket(sys.argv[1]).put("ended", b"")
"""
LASTS_S = 3.0


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEASE_VARIABLE, str(LASTS_S))


@pytest.fixture
def bucket(store_url: str) -> Bucket:
    return Bucket(store_url)


@pytest.fixture
def told() -> list[str]:
    """The owners that were waited for."""
    return []


@pytest.fixture
def holder(bucket: Bucket) -> Iterator[subprocess.Popen[str]]:
    """A process of another machine that holds the lease."""
    process = start(bucket, 600)
    yield process
    process.kill()
    process.wait(60)


def start(bucket: Bucket, seconds: float) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", HOLDER, bucket.url, str(seconds)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.mark.full
def test_who_comes_second_waits_until_the_lease_is_given_back(bucket: Bucket, told: list[str]) -> None:
    process = start(bucket, 3 * LASTS_S)
    with leased(bucket, "work", wait=True, busy="", on_wait=told.append) as waited:
        assert bucket.get("ended") is not None, "it was taken for dead before its end"
        assert process.wait(60) == 0
        assert waited and len(told) == 1 and told[0].startswith(f"process {process.pid} on ")
        with leased(bucket, "other work", wait=False, busy="", on_wait=told.append) as other:
            assert not other and len(told) == 1
    assert bucket.list("leases/") == []


@pytest.mark.parametrize("wait", [True, pytest.param(False, marks=pytest.mark.full)])
def test_the_lease_of_a_killed_process_is_taken_over(
    bucket: Bucket, holder: subprocess.Popen[str], told: list[str], slept: list[float], wait: bool
) -> None:
    holder.kill()
    assert holder.wait(60) == -signal.SIGKILL
    with leased(bucket, "work", wait=wait, busy="busy", on_wait=told.append) as waited:
        assert waited and len(told) == 1
        assert sum(slept) < 60


@pytest.mark.full
def test_who_does_not_want_to_wait_is_told_who_is_at_work(
    bucket: Bucket, holder: subprocess.Popen[str], told: list[str]
) -> None:
    with (
        pytest.raises(
            BusyError, match=rf"Cannot begin: the same is done \(process {holder.pid} on .*\); wait"
        ),
        leased(bucket, "work", wait=False, busy="the same is done", on_wait=told.append),
    ):
        pass
    assert len(told) == 1


@pytest.mark.full
def test_a_machine_that_was_taken_for_dead_goes_on_and_takes_nothing_back(
    bucket: Bucket, holder: subprocess.Popen[str], told: list[str]
) -> None:
    holder.send_signal(signal.SIGSTOP)
    with leased(bucket, "work", wait=True, busy="", on_wait=told.append):
        holder.send_signal(signal.SIGCONT)
        time.sleep(2 * LASTS_S)
        assert holder.poll() is None
        data = bucket.get("leases/work.json")
        assert data and Lease.model_validate_json(data).owner != told[0]
    assert holder.poll() is None and bucket.list("leases/") == []


@pytest.mark.full
@pytest.mark.parametrize("wrong_by", [-7200, 7200])
def test_a_wrong_clock_of_this_machine_makes_no_lease_older_or_younger(
    bucket: Bucket, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, wrong_by: int
) -> None:
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + wrong_by)
    assert is_held(bucket, "work")
    holder.kill()
    until = time.monotonic() + 60
    while is_held(bucket, "work"):
        assert time.monotonic() < until
        time.sleep(0.5)
    assert bucket.list("leases/") == []


@pytest.mark.full
def test_a_store_that_is_away_for_a_while_costs_no_lease_and_no_patience(
    proxy: Proxy, bucket: Bucket, told: list[str]
) -> None:
    with leased(bucket, "work", wait=True, busy="", on_wait=told.append):
        proxy.fault = lambda method, path: "503" if "leases/" in path else None
        time.sleep(1.5 * LASTS_S)
        assert bucket.put_new("something", b"else")
        proxy.fault = lambda method, path: None
        time.sleep(4 * LASTS_S)
        assert is_held(bucket, "work")
    assert proxy.hit and bucket.list("leases/") == []


@pytest.mark.full
def test_through_a_bad_connection_one_after_the_other_holds_it(proxy: Proxy, bucket: Bucket) -> None:
    kinds = ["500", "reset after", "503", "reset"]
    seen: list[str] = []
    inside: list[str] = []

    def fault(method: str, path: str) -> str | None:
        seen.append(path)
        return kinds[len(seen) // 5 % 4] if len(seen) % 5 == 0 else None

    proxy.fault = fault

    def work(number: int) -> None:
        with leased(Bucket(bucket.url), "work", wait=True, busy="", on_wait=inside.append):
            inside.append(f"in {number}")
            time.sleep(0.3)
            inside.append(f"out {number}")

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE_S)
    order = [item for item in inside if not item.startswith("process")]
    assert len(order) == 8 and len(proxy.hit) > 4
    assert all(order[at + 1] == order[at].replace("in", "out") for at in range(0, 8, 2))


@pytest.mark.full
@pytest.mark.parametrize(
    "damage", [b"{", b"", b'{"owner": "x", "token": "y", "renewals": 0, "lasts_s": 1e9}']
)
def test_a_damaged_lease_is_nobodys(bucket: Bucket, told: list[str], damage: bytes) -> None:
    bucket.put("leases/work.json", damage)
    with leased(bucket, "work", wait=False, busy="", on_wait=told.append) as waited:
        assert not waited and told == []


@pytest.mark.full
@pytest.mark.parametrize("value", ["x", "0", "-1", "nan", "1e9"])
def test_a_time_that_no_lease_can_last_is_refused(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(LEASE_VARIABLE, value)
    with (
        pytest.raises(ConfigError, match=f"{LEASE_VARIABLE} is '{value}'; write seconds"),
        leased(bucket, "work", wait=False, busy="", on_wait=print),
    ):
        pass
