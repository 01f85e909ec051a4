from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from brainmri_core.errors import BusyError, ConfigError, IntegrityError
from brainmri_core.project.layout import Layout
from brainmri_core.studies.bucket_journal import BucketJournal, Draft
from brainmri_core.studies.journal import PREDICTIONS, lacking, trials_of, working
from brainmri_core.studies.record import Trial
from brainmri_core.system import leases
from brainmri_core.system.object_store import Bucket
from brainmri_core.system.store import RemoteStore
from tests import ROOT
from tests.core.studies.study_case import DATASET, HERE, begun, finish, opened, settings, work
from tests.object_store import Proxy


def machine(url: str, folder: Path, name: str) -> Layout:
    return Layout.at(url, str(folder / name))


def started(url: str, cache: Path, trials: int, fate: str = "lives") -> subprocess.Popen[bytes]:
    """A process that works on the study on a machine of its own."""
    words = ["-m", "tests.core.studies.study_case", url, cache.name, str(trials), fate, str(cache)]
    return subprocess.Popen([sys.executable, *words], cwd=ROOT)


def done(trials: list[Trial]) -> list[tuple[dict[str, object], float | None]]:
    return [(trial.record.values, trial.score) for trial in trials if trial.state == "complete"]


def journal(url: str) -> str:
    return f"outputs/studies/{DATASET}/s/journal"


def test_the_trial_of_a_machine_that_died_is_made_again_on_another(store_url: str, tmp_path: Path) -> None:
    killed = started(store_url, tmp_path / "dead", 5, "dies in a trial")
    assert killed.wait(60) == -signal.SIGKILL
    bucket, here = Bucket(store_url), machine(store_url, tmp_path, "here")
    assert bucket.list("leases/") == ["leases/study-run-dead.json"]
    until = time.monotonic() + 60
    while (bucket.age("leases/study-run-dead.json") or 0) < 7:
        assert time.monotonic() < until
        time.sleep(0.5)
    found = work(here, "here", 5)
    assert [trial.state for trial in found] == ["complete", "abandoned", *["complete"] * 4]
    assert found[2].record.values == found[1].record.values
    assert [trial.record.run_id for trial in found] == ["dead", "dead", *["here"] * 4]
    assert done(found) == done(work(Layout(root=tmp_path / "folder"), "r1", 5)), "as in a folder"
    assert bucket.list("leases/") == []
    assert lacking(machine(store_url, tmp_path, "third"), DATASET, settings(7)) == 2


@pytest.mark.full
@pytest.mark.parametrize("rate", [0.0, 0.05])
def test_several_machines_share_the_trials_and_none_is_made_twice(
    store_url: str, proxy: Proxy, tmp_path: Path, rate: float
) -> None:
    chance = random.Random(1)

    def fault(method: str, path: str) -> str | None:
        kinds = ["500", "503", "reset", "reset after", *(["short", "cut"] if method == "GET" else [])]
        return chance.choice(kinds) if chance.random() < rate else None

    proxy.fault = fault
    workers = [started(store_url, tmp_path / f"r{number}", 15) for number in range(3)]
    assert [worker.wait(200) for worker in workers] == [0, 0, 0]
    assert bool(proxy.hit) == bool(rate)
    proxy.fault = lambda method, path: None
    found = trials_of(opened(machine(store_url, tmp_path, "look"), 15))
    assert [trial.state for trial in found] == ["complete"] * 15
    assert {trial.record.run_id for trial in found} == {"r0", "r1", "r2"}
    assert len({str(trial.record.values) for trial in found}) == 15


@pytest.mark.full
def test_who_was_overtaken_decides_again(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = machine(store_url, tmp_path, "a"), machine(store_url, tmp_path, "b")
    mine, other = opened(here, 2), opened(there, 2)
    commit, overtaken = BucketJournal.commit, []

    def late(shared: BucketJournal, draft: Draft) -> bool:
        monkeypatch.setattr(BucketJournal, "commit", commit)
        overtaken.append(begun(other, 2, there, "b"))
        return commit(shared, draft)

    monkeypatch.setattr(BucketJournal, "commit", late)
    with working(here, "a"), working(there, "b"):
        trial = begun(mine, 2, here, "a")
        assert trial is not None and overtaken[0] is not None
        assert (overtaken[0].number, trial.number) == (0, 1)
        assert trial.params != overtaken[0].params
    assert lacking(here, DATASET, settings(2)) == 0


@pytest.mark.full
def test_a_running_trial_of_a_live_machine_is_left_to_it(store_url: str, tmp_path: Path) -> None:
    here, there = machine(store_url, tmp_path, "a"), machine(store_url, tmp_path, "b")
    study = opened(here, 2)
    with working(here, "alive"):
        trial = begun(study, 2, here, "alive")
        assert [item.state for item in work(there, "b", 2)] == ["running", "complete"]
        with pytest.raises(BusyError, match="another process works on the study under this run id"):
            work(there, "alive", 2)
        assert trial is not None
        finish(study, trial, "alive")
    assert [item.state for item in trials_of(opened(there, 2))] == ["complete", "complete"]


@pytest.mark.full
def test_who_was_taken_for_dead_cannot_end_the_trial_and_goes_on(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_keep", lambda *_: None)  # nobody renews the lease of a frozen machine
    monkeypatch.setenv(leases.LEASE_VARIABLE, "600")
    here, there = machine(store_url, tmp_path, "a"), machine(store_url, tmp_path, "b")
    study = opened(here, 3)
    with working(here, "frozen"):
        trial = begun(study, 3, here, "frozen")
        assert trial is not None
        Bucket(store_url).remove("leases/study-run-frozen.json")
        with working(there, "b"):
            again = begun(opened(there, 3), 3, there, "b")
            assert again is not None and again.params == trial.params
            with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
                finish(study, trial, "frozen")
            following = begun(study, 3, here, "frozen")
            assert following is not None and following.params != trial.params
            finish(study, following, "frozen")


@pytest.mark.full
def test_a_study_is_not_continued_on_other_data(store_url: str, tmp_path: Path) -> None:
    opened(machine(store_url, tmp_path, "a"), 2)
    with pytest.raises(ConfigError) as caught:
        opened(machine(store_url, tmp_path, "b"), 2, HERE.model_copy(update={"data": "e" * 8}))
    assert "The study 's' was begun on other data" in str(caught.value)
    assert f"delete {store_url}/outputs/studies/{DATASET}/s to begin it again" in str(caught.value)


@pytest.mark.full
def test_a_study_that_is_begun_again_takes_no_predictions_of_the_deleted_one(
    store_url: str, tmp_path: Path
) -> None:
    first = opened(machine(store_url, tmp_path, "a"), 2).user_attrs[PREDICTIONS]
    assert opened(machine(store_url, tmp_path, "b"), 2).user_attrs[PREDICTIONS] == first
    bucket = Bucket(store_url)
    for name in bucket.list(f"outputs/studies/{DATASET}/s/"):
        bucket.remove(name)
    assert opened(machine(store_url, tmp_path, "c"), 2).user_attrs[PREDICTIONS] != first


@pytest.mark.full
@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b"[{}]", b'[{"op_code":77}]', b"\xff\xfe", b"[]]"])
def test_a_damaged_record_is_named(store_url: str, tmp_path: Path, text: bytes) -> None:
    here = machine(store_url, tmp_path, "a")
    work(here, "r", 1)
    assert isinstance(here.store, RemoteStore)
    bucket, names = here.store.bucket, here.store.bucket.list(f"{journal(store_url)}/")
    bucket.put(names[1], text)
    with pytest.raises(IntegrityError, match=r"damaged.*; restore it, or delete .* to begin the study again"):
        opened(machine(store_url, tmp_path, "b"), 2)


@pytest.mark.full
def test_a_stale_listing_hides_no_record(store_url: str, proxy: Proxy, tmp_path: Path) -> None:
    opened(machine(store_url, tmp_path, "a"), 3)
    assert lacking(machine(store_url, tmp_path, "b"), DATASET, settings(3)) == 3
    proxy.fault = lambda method, path: "stale" if "list-type" in path else None
    work(machine(store_url, tmp_path, "c"), "c", 2)
    assert lacking(machine(store_url, tmp_path, "d"), DATASET, settings(3)) == 1
    assert {kind for kind, _, _ in proxy.hit} == {"stale"}
