from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from brainmri_core.config import STAGES
from tests.counts import trials
from tests.faults.fault_case import points, problems, tally
from tests.faults.launches import make_home
from tests.faults.tiny import launch_file
from tests.faults.warm import Warm
from tests.object_store import BUCKET, StoreServer, environment, is_listing, running_proxy

pytestmark = [pytest.mark.training, pytest.mark.full]

TRIALS = "tests.faults.remote_trials"
# Trials by stage, reduced and long; half are killed before an operation of the store, half after it.
KILLS = {
    "fetch": trials(2, 26),
    "split": trials(1, 18),
    "resize": trials(2, 26),
    "validate": trials(1, 13),
    "train": trials(1, 16),
    "evaluate": trials(1, 13),
}
PAIRS = trials(1, 50)
SHARED = 10
"""Pairs that share a project: the looks at it take longer with each."""
CLEARINGS = trials(4, 20)
PIPELINES = trials(1, 8)
RATE = 0.06
"""Share of the requests that fail."""


@pytest.fixture(scope="module")
def remote(warm: Warm, object_store: StoreServer) -> tuple[str, dict[str, tuple[int, list[str]]]]:
    """A place in the object store with a project for each stage; operations and content hashes of each."""
    url = f"s3://{BUCKET}/remote"
    return url, warm.call(f"{TRIALS}:prepare", url, object_store.environment)


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_an_operation_of_the_store(
    warm: Warm, remote: tuple[str, dict[str, tuple[int, list[str]]]], object_store: StoreServer, stage: str
) -> None:
    url, found = remote
    operations, hashes = found[stage]
    results: list[dict[str, Any]] = [
        warm.call(
            f"{TRIALS}:crash",
            url,
            object_store.environment,
            stage,
            hashes,
            ("kill before", "kill after")[number % 2],
            at,
        )
        for number, at in enumerate(points(operations, KILLS[stage]))
    ]
    killed = [item for item in results if item["status"] == -9]
    tally("kill -9 at an operation of the object store", stage, killed)
    assert problems(results) == []
    assert {item["status"] for item in results} <= {-9, 0}
    assert len(killed) >= 0.8 * len(results), "as many operations as were counted, give or take a few"


@pytest.mark.parametrize("seed", range(PIPELINES))
def test_all_stages_through_a_bad_connection_give_the_same(
    warm: Warm, remote: tuple[str, dict[str, tuple[int, list[str]]]], object_store: StoreServer, seed: int
) -> None:
    chance = random.Random(seed)

    def fault(method: str, path: str) -> str | None:
        if chance.random() > RATE:
            return None
        kinds = ["500", "503", "reset", "reset after"]
        if method == "GET":
            kinds += ["short", "cut"] + ["stale"] * 4 * is_listing(method, path)
        return chance.choice(kinds)

    with running_proxy(object_store.port) as proxy:
        proxy.fault = fault
        disturbed = environment(proxy.port)
        url = f"s3://{BUCKET}/connection-{seed}"
        found = warm.call(f"{TRIALS}:all_stages", url, disturbed, object_store.environment)
    tally("all stages through a bad connection", "pipeline", [found])
    assert found["problems"] == []
    assert found["made"] == {stage: hashes[0] for stage, (_, hashes) in remote[1].items()}
    assert len({kind for kind, _, _ in proxy.hit}) >= 5, "faults of all kinds were met"


def test_gc_killed_at_an_operation_of_the_store(warm: Warm, object_store: StoreServer) -> None:
    url, account = f"s3://{BUCKET}/clearing", object_store.environment
    operations = warm.call(f"{TRIALS}:prepare_clearing", url, account, CLEARINGS)
    hashes = [warm.call(f"{TRIALS}:latest_of", f"{url}/base", account, "split")]
    kills = [
        (("kill before", "kill after")[number % 2], at)
        for number, at in enumerate(points(operations, CLEARINGS))
    ]
    results = warm.call(f"{TRIALS}:clearing", url, account, kills, hashes)
    killed = [item for item in results if item["status"] == -9]
    tally("gc in a bucket killed at an operation", "gc", killed)
    assert problems(results) == []
    assert len(killed) >= 0.8 * len(results)


def test_two_machines_that_share_a_bucket_mix_nothing(
    warm: Warm, object_store: StoreServer, tmp_path: Path
) -> None:
    stages = ["fetch", "split", "resize"]
    results = []
    configs = {}
    for machine in "ab":
        make_home(tmp_path / machine)
        for variant in ("old", "new"):
            cache = {"cache": str(tmp_path / machine / "cache")}
            configs[machine, variant] = launch_file(tmp_path / machine, variant, paths=cache)
    for trial in range(PAIRS):
        last = trial % SHARED == SHARED - 1 or trial == PAIRS - 1
        url = f"s3://{BUCKET}/pairs-{trial // SHARED}"
        pair = {f"a{trial}": "old", f"b{trial}": "new" if trial % 2 else "old"}
        started = {}
        for run_id, variant in pair.items():
            home = str(tmp_path / run_id[0] / "home")
            config = str(configs[run_id[0], variant])
            started[run_id] = warm.start(
                f"{TRIALS}:pipeline", url, object_store.environment, home, config, run_id, stages
            )
        failed = [f"{run_id} failed: {warm.log(item)}" for run_id, item in started.items() if warm.wait(item)]
        seen = warm.call(f"{TRIALS}:looked_at", url, object_store.environment, pair, stages, last)
        results.append({"problems": [*failed, *seen]})
        tally("two machines with one bucket", "fetch to resize", results[-1:])
        if trial % SHARED == SHARED // 2:  # a machine whose copies are gone goes on as well
            shutil.rmtree(tmp_path / "b" / "cache")
    assert problems(results) == []
