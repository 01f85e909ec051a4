from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from brainmri_core.config import load_config
from brainmri_core.config.experiments import apply_experiment
from brainmri_core.config.training import TrainConfig
from brainmri_core.errors import ConfigError, ModelError, StorageError
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.checkpoint import load_model, save_checkpoint
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import latest_pointer
from brainmri_core.project.pointers import CheckpointPointer, PackPointer, TuningPointer
from brainmri_core.project.sample_table import read_samples
from brainmri_core.studies.record import StudyReport, read_report
from brainmri_core.studies.space import with_values
from brainmri_core.system import leases
from brainmri_core.system.checksums import sha256_file
from brainmri_core.system.object_store import Bucket
from brainmri_core.train import train
from brainmri_core.verify import verify
from tests import ROOT
from tests.core.tuning_case import PHANTOM, SPACE, around, make_packed, pack_in, project_in, search
from tests.counts import PATIENCE_S
from tests.dagster.defs.champion_case import teach
from tests.once import once

pytestmark = pytest.mark.training


@pytest.fixture
def root(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A project with a pack of two folds, in a folder with a study."""
    made = once(tmp_path_factory, "tuning", make_packed)
    write_study(tmp_path, SPACE)
    monkeypatch.chdir(tmp_path)
    yield Path(shutil.copytree(made, tmp_path / "project"))


def write_study(folder: Path, text: str) -> None:
    (folder / "configs/studies").mkdir(parents=True, exist_ok=True)
    (folder / "configs/studies/small.yaml").write_text(text)


def report_of(root: Path, pointer: TuningPointer) -> StudyReport:
    return read_report(Layout(root=root).absolute(pointer.metrics))


def found_by(report: StudyReport) -> list[object]:
    """What a study has found, without its times and run ids."""
    return [(trial.state, trial.score, trial.record.values) for trial in report.trials]


def test_the_best_trial_becomes_an_experiment_and_every_trial_leaves_its_record(root: Path) -> None:
    pointer = search(root, "r1", 2)
    report, layout = report_of(root, pointer), Layout(root=root)
    table = read_samples(layout.absolute(pack_in(root).samples))
    training = table[(table["split"] == "train") & (table["row"] >= 0)]
    assert [trial.state for trial in report.trials] == ["complete", "complete"]
    for trial in report.trials:
        assert [fold.fold for fold in trial.record.folds] == [0, 1]
        assert sum(fold.images for fold in trial.record.folds) == len(training)
        assert trial.score == trial.record.folds[-1].pooled_macro_f1
        assert trial.record.run_id == "r1" and trial.record.seconds > 0
        calls = read_samples(root / f"outputs/studies/{PHANTOM}/small/out_of_fold/{trial.number:05}.parquet")
        assert sorted(calls["path"]) == sorted(training["path"])
    best = max(report.trials, key=lambda trial: trial.score or 0)
    assert (report.best, report.score) == (best.number, pointer.headline["macro_f1"])
    assert (
        f"is the best of 2 (0 pruned, 0 failed). Its out-of-fold macro F1 is {best.score:.4f}" in pointer.note
    )
    assert ", the greatest of 2 on the same images and so optimistic, here by about" in pointer.note

    file = layout.absolute(pointer.experiment_file)
    again = apply_experiment(load_config(), file).train
    wanted = with_values(around(), best.record.values, "best")
    assert again.model_copy(update={"io": wanted.io}) == wanted.model_copy(
        update={"data": wanted.data.model_copy(update={"image_size": again.data.image_size})}
    ), "the usual settings are those of TrainConfig here, and only pipeline.yaml names an image size"
    assert set(best.record.values) <= {
        f"train.{block}.{key}"
        for block, keys in yaml.safe_load(file.read_text())["train"].items()
        for key in keys
    }
    with Image.open(layout.absolute(pointer.plot)) as picture:
        assert picture.width > 600
    assert not list(root.rglob("*.pth")), "no trial keeps its weights"
    assert not (root / "outputs/test_ledger").exists(), "nobody has looked at the test split"


@pytest.mark.full
def test_no_test_image_is_looked_at(root: Path, tmp_path: Path) -> None:
    pack = pack_in(root)
    first = report_of(root, search(root, "r1", 2))
    other = Path(shutil.copytree(root, tmp_path / "noise"))
    shutil.rmtree(other / "outputs/studies")
    file = other / pack.pack
    pixels, table = np.load(file), read_samples(other / pack.samples)
    rows = table.loc[(table["split"] == "test") & (table["row"] >= 0), "row"].to_numpy()
    assert len(rows) > 10
    pixels[rows] = np.random.default_rng(0).integers(0, 256, pixels[rows].shape)
    np.save(file, pixels)
    changed: PackPointer = pack.model_copy(update={"pack_sha256": sha256_file(file)})
    assert found_by(report_of(other, search(other, "r2", 2, pack=changed))) == found_by(first)
    seen = table.loc[(table["split"] == "train") & (table["row"] >= 0), "row"].to_numpy()
    pixels[seen] = 255 - pixels[seen]
    np.save(file, pixels)
    shutil.rmtree(other / "outputs/studies")
    changed = pack.model_copy(update={"pack_sha256": sha256_file(file)})
    assert found_by(report_of(other, search(other, "r3", 2, pack=changed))) != found_by(first)


@pytest.mark.full
def test_a_stopped_trial_is_made_again_with_its_values(root: Path) -> None:
    begun: list[str] = []

    def stopped(config: TrainConfig, pack: PackPointer, job: Job) -> CheckpointPointer:
        begun.append(job.run_id)
        if len(begun) == 4:
            raise KeyboardInterrupt
        return train(config, pack, job)

    whole = report_of(root, search(root, "whole", 3))
    shutil.rmtree(root / "outputs/studies")
    with pytest.raises(KeyboardInterrupt):
        search(root, "r1", 3, fit=stopped)
    assert begun == ["r1-0-0", "r1-0-1", "r1-1-0", "r1-1-1"]
    continued = report_of(root, search(root, "r2", 3))
    assert [trial.state for trial in continued.trials] == ["complete", "abandoned", "complete", "complete"]
    assert continued.trials[1].record.interrupted and len(continued.trials[1].record.folds) == 1
    kept = [item for item in found_by(continued) if item[0] == "complete"]  # type: ignore[index]
    assert kept == found_by(whole)
    assert "is the best of 3 (0 pruned, 0 failed)" in continued.note
    assert not list((root / f"outputs/studies/{PHANTOM}/small").glob(".tmp-*"))


@pytest.mark.full
def test_a_full_disk_ends_the_run_and_not_the_trial(root: Path) -> None:
    def full(config: TrainConfig, pack: PackPointer, job: Job) -> CheckpointPointer:
        raise StorageError("There is no space left.")

    with pytest.raises(StorageError, match="no space left"):
        search(root, "r1", 1, fit=full)
    assert [trial.state for trial in report_of(root, search(root, "r2", 1)).trials] == [
        "abandoned",
        "complete",
    ]


@pytest.mark.full
def test_values_that_do_not_go_together_fail_their_trial_and_no_other(root: Path, tmp_path: Path) -> None:
    write_study(tmp_path, "space: {train.optim.balanced_sampling: {}, train.optim.lr: {low: 0.001, high: 1}}")
    report = report_of(root, search(root, "r1", 6))
    states = {
        bool(trial.record.values["train.optim.balanced_sampling"]): trial.state for trial in report.trials
    }
    assert states == {True: "failed", False: "complete"}
    failed = next(trial for trial in report.trials if trial.state == "failed")
    assert "balanced_sampling and class_weights would make up for rare classes twice" in str(
        failed.record.reason
    )
    assert f"({report.count('pruned')} pruned, {report.count('failed')} failed)" in report.note


def test_a_study_whose_every_trial_fails_ends_soon_and_says_why(root: Path, tmp_path: Path) -> None:
    write_study(tmp_path, "space: {train.data.start_size: {low: 64, high: 128}}")
    with pytest.raises(
        ModelError, match=r"3 trials of the study 'small' failed .*start_size is \d+ but training ends"
    ):
        search(root, "r1", 20)


@pytest.mark.full
def test_a_trial_that_falls_behind_is_stopped_after_a_fold(root: Path, tmp_path: Path) -> None:
    write_study(tmp_path, "space: {train.optim.lr: {choices: [0.02, 1e-9]}}")

    def told(config: TrainConfig, pack: PackPointer, job: Job) -> CheckpointPointer:
        """Train, and where the rate is the good one fit the last layer to every answer."""
        pointer = train(config, pack, job)
        if config.optim.lr == 0.02:
            path = job.layout.absolute(pointer.checkpoint)
            model, meta = load_model(path, torch.device("cpu"))
            table = read_samples(job.layout.absolute(pack.samples))
            calls = table[table["row"] >= 0].sort_values("row")["class_index"].to_numpy()
            teach(model, open_pack(job.layout, pack), meta.preprocessing, calls)
            save_checkpoint(path, model.state_dict(), meta)
        return pointer

    more = {"pruner": "median", "unpruned": 1, "random_trials": 6}
    report = report_of(root, search(root, "r1", 6, fit=told, **more))
    rates = [trial.record.values["train.optim.lr"] for trial in report.trials]
    first = rates.index(0.02)
    for trial, rate in zip(report.trials, rates, strict=True):
        behind = rate == 1e-9 and trial.number > first
        assert (trial.state, len(trial.record.folds)) == (("pruned", 1) if behind else ("complete", 2))
    assert report.count("pruned") > 0
    assert report.best == first and report.score > 0.5
    assert f"({report.count('pruned')} pruned, 0 failed)" in report.note


@pytest.mark.full
def test_two_processes_work_on_one_study_at_the_same_time(root: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.core.tuning_case import search; "
        "search(Path(sys.argv[1]), sys.argv[2], 4)"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(root), run_id],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""},
        )
        for run_id in ("a", "b")
    ]
    assert [worker.wait(300) for worker in workers] == [0, 0]
    reports = [report_of_run(root, run_id) for run_id in ("a", "b")]
    last = max(reports, key=lambda report: report.count("complete"))
    assert [trial.state for trial in last.trials] == ["complete"] * 4
    assert {trial.record.run_id for trial in last.trials} == {"a", "b"}
    assert len({json.dumps(trial.record.values) for trial in last.trials}) == 4


def report_of_run(root: Path, run_id: str) -> StudyReport:
    return read_report(root / f"outputs/studies/{PHANTOM}/small/outcomes/{run_id}/study.json")


@pytest.mark.full
def test_machines_that_share_a_bucket_work_on_one_study_and_one_is_killed(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path, SPACE)
    make_packed(store_url)
    program = (
        "import sys; from tests.core.tuning_case import search; from brainmri_core.project.pointer_store import write_pointer; "
        "from tests.core.tuning_case import project_in; url, run, trials = sys.argv[1:]; "
        "write_pointer(project_in(url, run), search(url, run, int(trials)))"
    )

    def start(run_id: str, trials: int) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", program, store_url, run_id, str(trials)]
        return subprocess.Popen(words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})

    killed, bucket = start("killed", 3), Bucket(store_url)
    place = f"outputs/studies/{PHANTOM}/small/journal/"
    until = time.monotonic() + PATIENCE_S
    while b'"step":0' not in b"".join(bucket.get(name) or b"" for name in bucket.list(place)):
        assert killed.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    killed.kill()
    killed.wait()
    time.sleep(8)  # longer than a lease lasts here
    workers = [start(run_id, 3) for run_id in ("a", "b")]
    assert [worker.wait(PATIENCE_S) for worker in workers] == [0, 0]

    layout = project_in(store_url, "look")
    found = latest_pointer(layout, TuningPointer, f"{PHANTOM}+small")
    assert found is not None
    assert layout.absolute(found.experiment_file).is_file() and layout.absolute(found.plot).is_file()
    again = read_report(project_in(store_url, "again").absolute(search(store_url, "again", 3).metrics))
    states = [trial.state for trial in again.trials]
    assert sorted(states) == ["abandoned", *["complete"] * 3]
    lost = again.trials[states.index("abandoned")]
    assert lost.record.run_id == "killed"
    assert lost.record.values in [trial.record.values for trial in again.trials if trial is not lost]
    assert again.optimism is not None, "the predictions of all machines are there"
    assert [bucket.list(f"{prefix}/") for prefix in ("leases", "shared")] == [[], []]
    assert verify(layout).problems == []


@pytest.mark.full
def test_a_machine_that_was_taken_for_dead_gives_its_trial_up_and_makes_the_next(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path, SPACE)
    pack = make_packed(store_url)
    monkeypatch.setattr(leases, "_keep", lambda *_: None)  # nobody renews the lease of a frozen machine
    begun: list[str] = []

    def overtaken(config: TrainConfig, seen: PackPointer, job: Job) -> CheckpointPointer:
        begun.append(job.run_id)
        if len(begun) == 1:
            Bucket(store_url).remove("leases/study-run-frozen.json")
            search(store_url, "other", 2, per_run=1)
        return train(config, seen, job)

    report = read_report(
        project_in(store_url, "frozen").absolute(
            search(store_url, "frozen", 2, fit=overtaken, pack=pack).metrics
        )
    )
    assert [trial.state for trial in report.trials] == ["abandoned", "complete", "complete"]
    assert [trial.record.run_id for trial in report.trials] == ["frozen", "other", "frozen"]
    assert report.trials[0].record.values == report.trials[1].record.values
    assert begun == ["frozen-0-0", "frozen-2-0", "frozen-2-1"]


def test_without_optuna_the_extra_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"not installed; install it with `pip install 'brainmri\[tune\]'`"):
        search(root, "r1", 1)
