from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brainmri_core.errors import StorageError
from brainmri_core.system.object_store import Bucket
from brainmri_core.system.store import RemoteStore
from tests.counts import trials
from tests.faults.fault_case import problems, tally
from tests.faults.warm import Warm

pytestmark = pytest.mark.training

TRIALS = "tests.faults.trials"
SLACK_KIB = trials([64, 1024], [8, 64, 256, 1024, 4096, 8192])


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own in memory, 256 MiB."""
    if os.geteuid() != 0:
        pytest.skip("full and read-only disks are real mounts here: run as root to test them")
    place = tmp_path / "mnt"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("stage", trials(["resize"], ["fetch", "split", "resize", "train"]))
def test_a_full_disk_leaves_the_old_state_and_says_so(
    warm: Warm, prepared: tuple[str, dict[str, list[str]]], mounted: Path, stage: str
) -> None:
    folder, hashes = prepared
    results = [
        warm.call(f"{TRIALS}:full_disk", folder, stage, hashes[stage], str(mounted), kib) for kib in SLACK_KIB
    ]
    tally("a full disk", stage, results)
    assert problems(results) == []
    assert {item["status"] for item in results} <= {StorageError.exit_code, 0}
    assert results[0]["status"] == StorageError.exit_code
    assert "no space left" in results[0]["said"]


@pytest.mark.full
@pytest.mark.parametrize("stage", ["fetch", "resize"])
def test_a_read_only_disk_leaves_the_old_state_and_says_so(
    warm: Warm, prepared: tuple[str, dict[str, list[str]]], mounted: Path, stage: str
) -> None:
    folder, hashes = prepared
    result = warm.call(f"{TRIALS}:read_only_disk", folder, stage, hashes[stage], str(mounted))
    tally("a read-only disk", stage, [result])
    assert problems([result]) == []
    assert result["status"] == StorageError.exit_code
    assert "read-only" in result["said"]


@pytest.mark.full
def test_a_full_disk_of_copies_is_named_and_nothing_half_is_left(
    store_url: str, mounted: Path, tmp_path: Path
) -> None:
    (tmp_path / "results/run").mkdir(parents=True)
    (tmp_path / "results/run/pack").write_bytes(os.urandom(8 << 20))
    RemoteStore(Bucket(store_url), tmp_path, ()).publish_folder("results/run")
    subprocess.run(["mount", "-o", "remount,size=4m", mounted], check=True)
    with pytest.raises(StorageError, match="there is no space left on the device; free some and run again"):
        RemoteStore(Bucket(store_url), mounted, ()).fetch_to_cache("results/run/pack")
    assert not any((mounted / "results/run").iterdir())
    subprocess.run(["mount", "-o", "remount,size=64m", mounted], check=True)
    brought = RemoteStore(Bucket(store_url), mounted, ()).fetch_to_cache("results/run/pack")
    assert brought.read_bytes() == (tmp_path / "results/run/pack").read_bytes()


@pytest.mark.parametrize("stage", ["split", "resize"])
def test_a_full_temporary_folder(
    warm: Warm, prepared: tuple[str, dict[str, list[str]]], mounted: Path, stage: str
) -> None:
    folder, hashes = prepared
    result = warm.call(f"{TRIALS}:full_temporary_folder", folder, stage, hashes[stage], str(mounted))
    tally("a full temporary folder", stage, [result])
    assert problems([result]) == []
    assert result["status"] == (StorageError.exit_code if stage == "split" else 0)


@pytest.mark.full
@pytest.mark.parametrize("stage", trials(["resize"], ["resize", "train"]))
def test_under_a_memory_limit(warm: Warm, prepared: tuple[str, dict[str, list[str]]], stage: str) -> None:
    folder, hashes = prepared
    results = [
        warm.call(f"{TRIALS}:little_memory", folder, stage, hashes[stage], mib)
        for mib in trials([0, 512], [0, 8, 32, 128, 512])
    ]
    tally("a memory limit", stage, results)
    assert problems(results) == []
    assert results[0]["status"] == StorageError.exit_code, results
    for item in results:  # a library may end with an error of its own, but nothing stored is blamed for it
        assert item["status"] in (0, StorageError.exit_code, 99), item
        assert item["status"] == 0 or "Error: " in item["said"], item


@pytest.mark.full
@pytest.mark.parametrize("stage", ["split", "resize"])
def test_the_clock_goes_backwards(warm: Warm, prepared: tuple[str, dict[str, list[str]]], stage: str) -> None:
    folder, hashes = prepared
    result: dict[str, Any] = warm.call(f"{TRIALS}:clock", folder, stage, hashes[stage], "backwards")
    tally("the clock goes backwards", stage, [result])
    assert problems([result]) == []
    assert result["history"] == 1


def test_history_names_in_one_microsecond(warm: Warm, prepared: tuple[str, dict[str, list[str]]]) -> None:
    folder, hashes = prepared
    result: dict[str, Any] = warm.call(f"{TRIALS}:clock", folder, "resize", hashes["resize"], "stopped")
    tally("history names in one microsecond", "resize", [result])
    assert problems([result]) == []
    assert result["history"] == 2
