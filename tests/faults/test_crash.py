from __future__ import annotations

import errno
import random

import pytest

from brainmri_core.config import STAGES
from brainmri_core.errors import StorageError
from tests.counts import rest, trials
from tests.faults.fault_case import points, problems, tally
from tests.faults.warm import Warm

pytestmark = pytest.mark.training

# Trials by stage, reduced and long: killed before the N-th file operation, power cut there, killed at a random time.
KILLS = {
    "fetch": trials(3, 30),
    "split": trials(3, 16),
    "resize": trials(4, 24),
    "validate": trials(2, 10),
    "train": trials(3, 14),
    "evaluate": trials(1, 6),
}
POWER = {
    "fetch": trials(3, 14),
    "split": trials(1, 6),
    "resize": trials(3, 14),
    "validate": trials(1, 4),
    "train": trials(2, 8),
    "evaluate": trials(1, 4),
}
RANDOM = {
    "fetch": trials(2, 10),
    "split": trials(1, 6),
    "resize": trials(2, 8),
    "validate": trials(1, 5),
    "train": trials(1, 6),
    "evaluate": trials(1, 4),
}
SECONDS = {"fetch": 0.2, "split": 1.0, "resize": 0.4, "validate": 1.5, "train": 2.5, "evaluate": 5.0}
ERRORS = {"ENOSPC": "no space", "EACCES": "permission", "EIO": "input/output"}


@pytest.mark.parametrize("stage", ["fetch", "resize", "train", *rest("split", "validate", "evaluate")])
def test_killed_before_a_file_operation(
    warm: Warm, prepared: tuple[str, dict[str, list[str]]], operations: dict[str, int], stage: str
) -> None:
    folder, hashes = prepared
    results = [
        warm.call("tests.faults.trials:crash", folder, stage, hashes[stage], "kill", at, 0.0)
        for at in points(operations[stage], KILLS[stage])
    ]
    tally("kill -9 before a file operation", stage, results)
    assert problems(results) == []
    assert all(item["status"] == -9 for item in results)


@pytest.mark.full
@pytest.mark.parametrize("stage", STAGES)
def test_power_cut_before_a_file_operation(
    warm: Warm, prepared: tuple[str, dict[str, list[str]]], operations: dict[str, int], stage: str
) -> None:
    folder, hashes = prepared
    results = [
        warm.call("tests.faults.trials:crash", folder, stage, hashes[stage], "power", at, 0.0)
        for at in points(operations[stage], POWER[stage])
    ]
    tally("power cut", stage, results)
    assert problems(results) == []
    assert any(item["lost"] for item in results), "nothing unsynced was ever lost: the trial shows nothing"


@pytest.mark.full
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_a_random_time(warm: Warm, prepared: tuple[str, dict[str, list[str]]], stage: str) -> None:
    folder, hashes = prepared
    seed = random.SystemRandom().randrange(2**32)
    print("seed of the kill times:", seed)
    moments = random.Random(seed)
    results = [
        warm.call(
            "tests.faults.trials:crash",
            folder,
            stage,
            hashes[stage],
            "kill",
            0,
            moments.uniform(0.01, SECONDS[stage]),
        )
        for _ in range(RANDOM[stage])
    ]
    tally("kill -9 at a random time", stage, results)
    assert problems(results) == []
    assert all(item["status"] in (-9, 0) for item in results)


@pytest.mark.full
@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("stage", trials(["fetch", "resize"], list(STAGES)))
def test_every_operation_fails_from_some_point_on(
    warm: Warm, prepared: tuple[str, dict[str, list[str]]], operations: dict[str, int], stage: str, name: str
) -> None:
    folder, hashes = prepared
    number = getattr(errno, name)
    results = [
        warm.call("tests.faults.trials:crash", folder, stage, hashes[stage], number, at, 0.0)
        for at in points(operations[stage], trials(2, 4))
    ]
    tally(f"{name} injected", stage, results)
    assert problems(results) == []
    assert {item["status"] for item in results} == {StorageError.exit_code}
