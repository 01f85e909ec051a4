from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from brainmri_core.config.data import PhantomConfig
from brainmri_core.sources.phantom import write_phantom
from tests.counts import PATIENCE_S
from tests.e2e.conftest import PHANTOM, Daemon, Project, make_project, running_daemon

pytestmark = [pytest.mark.full, pytest.mark.e2e]

REAL = "sartajbhuvaji/brain-tumor-classification-mri"
OTHER = "masoudnickparvar/brain-tumor-mri-dataset"
FIGSHARE = "figshare/1512427"
SECOND_SITE = "brainmri/phantom-b"
ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def write_archive(path: Path, seed: int) -> None:
    """Write a small data set, laid out like the real one, as a zip archive; it appears in one rename."""
    tree = path.with_suffix("")
    write_phantom(
        tree,
        PhantomConfig(
            seed=seed, subjects_per_class=5, slices_per_subject=4, copies_per_kind=2, label_conflicts=1
        ),
    )
    temporary = shutil.make_archive(str(path.with_name(f"new-{path.stem}")), "zip", tree)
    shutil.rmtree(tree)
    Path(temporary).replace(path)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    project = make_project(tmp_path_factory.mktemp("daemon"))
    archives(project).mkdir()
    project.env["BRAINMRI_ARCHIVES"] = str(archives(project))
    config = Path(project.env["BRAINMRI_CONFIG"])
    config.write_text(config.read_text().replace("fetch: {", "fetch: {offline: true, "))
    with running_daemon(project) as running:
        yield running


def archives(project: Project) -> Path:
    """The folder of archives that the project watches."""
    return project.root.with_name("archives")


def archive(daemon: Daemon, dataset: str) -> Path:
    """Path of a data set's archive."""
    return archives(daemon.project) / f"{dataset.replace('/', '__')}.zip"


def runs_with(daemon: Daemon, **tags: str) -> list[dg.DagsterRun]:
    """Runs with these tags, newest first; a double underscore stands for a slash."""
    wanted = {name.replace("__", "/"): value for name, value in tags.items()}
    return list(daemon.instance.get_runs(dg.RunsFilter(tags=wanted)))


def test_one_bad_data_set_does_not_keep_the_others_from_finishing(daemon: Daemon) -> None:
    write_archive(archive(daemon, REAL), 1)
    write_archive(archive(daemon, FIGSHARE), 3)
    done = daemon.project.brainmri("backfill", "--select", "raw_dataset")
    assert done.returncode == 1, done.stderr
    assert "5 of 5 runs ended, 1 failed" in done.stderr
    (why,) = [line for line in done.stderr.splitlines() if line.startswith(f"{OTHER}: ")]
    assert "no local archive" in why or "offline" in why
    statuses = {run.tags["dagster/partition"]: run.status.value for run in runs_with(daemon)}
    assert statuses.pop(OTHER) == "FAILURE"
    assert statuses == dict.fromkeys((PHANTOM, SECOND_SITE, REAL, FIGSHARE), "SUCCESS")

    write_archive(archive(daemon, OTHER), 2)
    again = daemon.project.brainmri("backfill", "--select", "raw_dataset", "--only-missing")
    assert again.returncode == 0, again.stderr
    assert "1 of 1 runs ended, 0 failed" in again.stderr
    nothing = daemon.project.brainmri("backfill", "--select", "raw_dataset", "--only-missing")
    assert nothing.returncode == 0
    assert "no partition is missing" in nothing.stdout


@pytest.mark.slow
def test_all_folds_and_their_report_are_filled_by_one_command(daemon: Daemon) -> None:
    daemon.instance.event_log_storage.set_concurrency_slots("accelerator", 2)
    prepared = daemon.project.brainmri("pipeline", "--skip", "train", "--skip", "evaluate")
    assert prepared.returncode == 0, prepared.stderr
    done = daemon.project.brainmri("backfill", "--select", "fold_evaluation+", "--dataset", PHANTOM)
    assert done.returncode == 0, done.stderr
    assert (
        "6 partitions of fold_checkpoint, fold_evaluation, cross_validation_report, fold_ensemble"
        in done.stderr
    )
    assert "3 of 3 runs ended, 0 failed" in done.stderr
    assert "all 6 partitions are done" in done.stdout
    pointers = daemon.project.root / "outputs/pointers/cross_validation" / PHANTOM
    pointer = json.loads((pointers / "latest.json").read_text())
    metrics = json.loads((daemon.project.root / pointer["metrics"]).read_text())
    assert sorted(metrics["folds"]) == ["0", "1"]
    assert metrics["ensemble"] is not None
    trained = [
        stats
        for run in runs_with(daemon)
        for stats in daemon.instance.get_run_step_stats(run.run_id, ["fold_checkpoint"])
    ]
    assert len(trained) == 2
    begun, ended = [item.start_time or 0 for item in trained], [item.end_time or 0 for item in trained]
    assert max(begun) < min(ended), "two slots, but the folds were trained one after the other"
    best = daemon.project.root / "models" / "best.pth"
    assert not best.exists(), "no fold takes the place of the whole model"


def test_a_daemon_that_runs_with_older_settings_is_to_be_restarted(daemon: Daemon) -> None:
    config = Path(daemon.project.env["BRAINMRI_CONFIG"])
    before = config.read_text()
    config.write_text(before.replace("folds: 2", "folds: 3"))
    try:
        done = daemon.project.brainmri("backfill", "--select", "fold_checkpoint", "--dataset", PHANTOM)
    finally:
        config.write_text(before)
    assert done.returncode == 1
    (last,) = done.stderr.splitlines()[-1:]
    assert "the daemon knows fewer partitions than this command" in last
    assert last.endswith("restart it and ask again.")


@pytest.mark.slow
def test_every_trial_of_a_study_is_a_run_of_the_queue(daemon: Daemon) -> None:
    prepared = daemon.project.brainmri(
        "pipeline", "--skip", "train", "--skip", "evaluate", "--stale-only", "--dataset", PHANTOM
    )
    assert prepared.returncode == 0, prepared.stderr
    studies = Path(daemon.project.env["BRAINMRI_CONFIG"]).parent / "studies"
    studies.mkdir()
    (studies / "queued.yaml").write_text("space: {train.optim.lr: {low: 1e-4, high: 0.1, log: true}}")
    command = ("tune", "--study", "queued", "--queue", "--dataset", PHANTOM, "--trials")
    done = daemon.project.brainmri(*command, "2")
    assert done.returncode == 0, done.stderr
    more = daemon.project.brainmri(*command, "3")
    assert more.returncode == 0, more.stderr
    assert (done.stderr.count("backfill "), more.stderr.count("backfill ")) == (2, 1)
    runs = [item for item in daemon.project.manifests() if "tune" in item["stages"]]
    assert [item["status"] for item in runs] == ["success"] * 3
    report = json.loads((daemon.project.root / runs[-1]["stages"]["tune"]["pointer"]["metrics"]).read_text())
    assert [trial["state"] for trial in report["trials"]] == ["complete"] * 3
    # Two runs of one second are in no order by their ids.
    assert {trial["record"]["run_id"] for trial in report["trials"]} == {item["run_id"] for item in runs}
    nothing = daemon.project.brainmri(*command, "3")
    assert (nothing.returncode, nothing.stdout) == (
        0,
        "The study 'queued' has all its 3 trials; --trials asks for more.\n",
    )
    refused = daemon.project.brainmri(*command, "4", "--run-id", "mine")
    assert refused.returncode == 2 and "--run-id names one run" in refused.stderr


def test_a_replaced_archive_is_trained_on_and_evaluated_once(daemon: Daemon) -> None:
    write_archive(archive(daemon, REAL), 3)
    started = daemon.project.dagster("sensor", "start", "new_dataset_version", "-w", "workspace.yaml")
    assert started.returncode == 0, started.stderr
    deadline = time.monotonic() + PATIENCE_S
    while True:
        runs = runs_with(daemon, dagster__sensor_name="new_dataset_version")
        if runs and all(run.status in ENDED for run in runs) and _skipped(daemon.instance, since=0.0):
            break
        assert time.monotonic() < deadline, runs
        time.sleep(1)
    (run,) = runs
    assert run.status == dg.DagsterRunStatus.SUCCESS
    assert run.tags["dagster/partition"] == REAL
    manifest = next(item for item in daemon.project.manifests() if item["dagster_run_id"] == run.run_id)
    assert manifest["status"] == "success"
    assert list(manifest["stages"])[-3:] == ["train", "evaluate", "champion"]
    assert (daemon.project.root / "models" / REAL / "champion.pth").is_file()

    daemon.stop()
    restarted = time.time()
    daemon.start()
    while not _skipped(daemon.instance, since=restarted):
        assert time.monotonic() < deadline
        time.sleep(1)
    assert len(runs_with(daemon, dagster__sensor_name="new_dataset_version")) == 1, (
        "one version, one run, ever"
    )


def test_new_validated_images_are_trained_on_by_the_retrain_sensor(daemon: Daemon) -> None:
    started = daemon.project.dagster("sensor", "start", "retrain", "-w", "workspace.yaml")
    assert started.returncode == 0, started.stderr
    stages = ("--skip", "train", "--skip", "evaluate", "-o", "split.seed=9")
    made = daemon.project.brainmri("pipeline", "--dataset", REAL, *stages)
    assert made.returncode == 0, made.stderr
    deadline = time.monotonic() + PATIENCE_S
    while not (
        (runs := runs_with(daemon, dagster__sensor_name="retrain"))
        and all(run.status in ENDED for run in runs)
    ):
        assert time.monotonic() < deadline, runs
        time.sleep(1)
    (run,) = runs
    assert run.status == dg.DagsterRunStatus.SUCCESS
    manifest = next(item for item in daemon.project.manifests() if item["dagster_run_id"] == run.run_id)
    assert (manifest["status"], list(manifest["stages"])[:2]) == ("success", ["train", "evaluate"])
    captured = Path(daemon.project.env["DAGSTER_HOME"]) / "storage" / run.run_id / "compute_logs"
    assert "epoch=1 " in "".join(file.read_text() for file in captured.glob("*.err")), "the UI's stderr tab"


def _skipped(instance: dg.DagsterInstance, since: float) -> bool:
    """Whether the sensor has looked again, after a moment in seconds since the epoch, and found nothing new."""
    (state,) = [item for item in instance.all_instigator_state() if item.name == "new_dataset_version"]
    ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, after=since, limit=1)
    return bool(ticks) and "nothing new" in (ticks[0].skip_reason or "")
