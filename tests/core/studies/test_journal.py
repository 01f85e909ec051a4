from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from brainmri_core.errors import ConfigError, IntegrityError, StorageError
from brainmri_core.project.layout import Layout
from brainmri_core.studies.journal import importance_of, state_of, trials_of, working
from brainmri_core.studies.record import JOURNAL, Trial
from brainmri_core.studies.space import Setting
from tests import ROOT
from tests.core.studies.study_case import DATASET, HERE, SPACE, begun, finish, opened, work


def started(layout: Layout, run_id: str, trials: int, fate: str = "lives") -> subprocess.Popen[bytes]:
    words = ["-m", "tests.core.studies.study_case", str(layout.root), run_id, str(trials), fate]
    return subprocess.Popen([sys.executable, *words], cwd=ROOT)


def done(trials: list[Trial]) -> list[tuple[dict[str, object], float | None]]:
    return [(trial.record.values, trial.score) for trial in trials if trial.state == "complete"]


def test_a_study_that_is_continued_tries_what_one_that_ran_through_does(tmp_path: Path) -> None:
    whole = work(Layout(root=tmp_path / "whole"), "r1", 8)
    parts = Layout(root=tmp_path / "parts")
    assert len(work(parts, "r1", 3)) == 3
    assert len(work(parts, "r2", 3)) == 3, "it has all its trials"
    continued = work(parts, "r3", 8)
    assert done(continued) == done(whole)
    assert [trial.record.run_id for trial in continued] == ["r1"] * 3 + ["r3"] * 5
    assert len({str(trial.record.values) for trial in whole}) == 8
    importance = importance_of(opened(parts, 8), 1)
    assert sum(importance.values()) == pytest.approx(1)
    assert importance["train.optim.schedule"] < 0.2, "it decides nothing here"


@pytest.mark.parametrize("fate", ["dies in a line", pytest.param("dies in a trial", marks=pytest.mark.full)])
def test_the_trial_of_a_killed_process_is_made_again_and_its_lock_keeps_nobody_out(
    tmp_path: Path, slept: list[float], fate: str
) -> None:
    layout = Layout(root=tmp_path)
    killed = started(layout, "dead", 5, fate)
    assert killed.wait(60) == -signal.SIGKILL
    found = work(layout, "r2", 5)
    assert max(slept) < 1, "nobody waits for a dead process"
    assert [trial.state for trial in found] == ["complete", "abandoned", *["complete"] * 4]
    assert found[2].record.values == found[1].record.values
    assert (found[1].record.run_id, found[2].record.run_id) == ("dead", "r2")
    assert done(found) == done(work(Layout(root=tmp_path / "whole"), "r1", 5))
    assert (layout.study_dir(DATASET, "s") / JOURNAL).read_bytes().endswith(b"\n")


@pytest.mark.full
def test_several_processes_share_the_trials_and_none_is_made_twice(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    workers = [started(layout, f"r{number}", 24) for number in range(3)]
    assert [worker.wait(120) for worker in workers] == [0, 0, 0]
    found = trials_of(opened(layout, 24))
    assert [trial.state for trial in found] == ["complete"] * 24
    assert {trial.record.run_id for trial in found} == {"r0", "r1", "r2"}
    assert len({str(trial.record.values) for trial in found}) == 24


def test_a_running_trial_of_a_live_process_is_left_to_it(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    study = opened(layout, 2)
    with working(layout, "alive"):
        trial = begun(study, 2, layout, "alive")
        assert [item.state for item in work(layout, "r2", 2)] == ["running", "complete"]
        assert trial is not None
        finish(study, trial, "alive")
    assert [state_of(item) for item in study.trials] == ["complete", "complete"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"data": "e" * 8, "pack_run": "p2"},
            "begun on other data, the images of run p1 and not those of p2",
        ),
        (
            {"space": {**SPACE, "train.loop.epochs": Setting(kind="int", low=1, high=8)}},
            "'train.loop.epochs' was",
        ),
        ({"space": {"train.optim.lr": SPACE["train.optim.lr"]}}, "and is absent"),
        ({"settings": {"train.model.name": "resnet34"}}, "train.model.name was 'resnet18' and is 'resnet34'"),
    ],
)
def test_a_study_is_not_continued_with_something_else(
    tmp_path: Path, change: dict[str, object], told: str
) -> None:
    layout = Layout(root=tmp_path)
    opened(layout, 2)
    with pytest.raises(ConfigError) as caught:
        opened(layout, 2, HERE.model_copy(update=change))
    assert told in str(caught.value)
    assert "The study 's' was begun" in str(caught.value)
    opened(layout, 2, HERE.model_copy(update={"pack_run": "p3"}))


@pytest.mark.parametrize("text", [b"{}\n", b"no json\n{}\n", b'{"op_code":77}\n', b"\xff\xfe\n\n", b"[1]\n"])
def test_a_damaged_journal_is_named(tmp_path: Path, text: bytes) -> None:
    layout = Layout(root=tmp_path)
    opened(layout, 2)
    path = layout.study_dir(DATASET, "s") / JOURNAL
    path.write_bytes(path.read_bytes() + text)
    with pytest.raises(IntegrityError, match=r"The journal .*journal.log of the study is damaged"):
        opened(layout, 2)
    assert path.read_bytes().endswith(text)


def test_a_disk_that_is_full_is_named_and_the_study_goes_on_when_there_is_room(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    study = opened(layout, 3)
    path = layout.study_dir(DATASET, "s") / JOURNAL
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 40, before[1]))
    try:
        with pytest.raises(StorageError, match=r"Cannot write .*journal.log"):
            begun(study, 3, layout, "r1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not path.read_bytes().endswith(b"\n"), "half a line is left"
    assert [trial.state for trial in work(layout, "r1", 3)] == ["complete"] * 3
