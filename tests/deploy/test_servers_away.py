"""Postgres, the broker, or the right version of the code is missing, at the start or in the middle."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from brainmri_core.errors import ConfigError, StorageError
from brainmri_core.system.object_store import PATIENCE_VARIABLE
from tests import ROOT
from tests.counts import PATIENCE_S, rest
from tests.deploy.celery_case import DEPLOY, Cluster, Server, free_port, postgres, running_cluster
from tests.e2e.conftest import PHANTOM, Project, make_project

PIPELINE = [sys.executable, "-m", "brainmri_dagster.cli", "pipeline", "--dataset", PHANTOM]
EPOCHS = 12


def with_postgres(folder: Path, url: str, patience_s: float = 120) -> Project:
    """Lay out a project whose runs are recorded in a Postgres."""
    project = make_project(folder)
    storage = "storage: {postgres: {postgres_url: {env: BRAINMRI_POSTGRES_URL}}}\n"
    (folder / "home/dagster.yaml").write_text(storage)
    config = Path(project.env["BRAINMRI_CONFIG"])
    config.write_text(config.read_text().replace("epochs: 1", f"epochs: {EPOCHS}"))
    project.env |= {"BRAINMRI_POSTGRES_URL": url, PATIENCE_VARIABLE: str(patience_s), "OMP_NUM_THREADS": "1"}
    return project


def wait_until(found: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not found():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.3)


def the_error(stderr: str) -> str:
    """Return the one sentence that a command has printed, after checking that there is no more than it."""
    assert "Traceback" not in stderr and "aPassWord" not in stderr, stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("brainmri: ")]
    return line


@pytest.mark.parametrize(
    ("url", "words", "code"),
    [
        (
            "postgresql+psycopg2://brainmri:aPassWord@127.0.0.1:{port}/brainmri",
            r"Cannot use Postgres.*127\.0\.0\.1.*Connection refused; start it, or correct its address",
            StorageError.exit_code,
        ),
        *rest(
            (
                "postgresql+psycopg2://brainmri:aPassWord@nowhere.invalid/brainmri",
                "nowhere.invalid",
                StorageError.exit_code,
            ),
            (
                "postgresql+psycopg2:/brainmri:aPassWord@127.0.0.1",
                "address of its storage",
                ConfigError.exit_code,
            ),
            ("", "BRAINMRI_POSTGRES_URL, which it names, is not set", ConfigError.exit_code),
        ),
    ],
)
def test_a_postgres_that_cannot_be_used_is_named(url: str, words: str, code: int, tmp_path: Path) -> None:
    project = with_postgres(tmp_path, url.format(port=free_port()), patience_s=0)
    if not url:
        del project.env["BRAINMRI_POSTGRES_URL"]
    ended = project.run(*PIPELINE)
    assert ended.returncode == code, ended.stderr
    assert re.search(words, the_error(ended.stderr))
    assert not list(project.root.glob("outputs/*")), "something was begun"


@pytest.fixture
def server() -> Iterator[Server]:
    with postgres() as running:
        yield running


def in_training(project: Project) -> subprocess.Popen[str]:
    """Start all stages, and return when the training has ended two epochs."""
    log = project.root.with_name("said.txt")
    running = subprocess.Popen(
        PIPELINE, cwd=ROOT, env=project.env, stdout=subprocess.DEVNULL, stderr=log.open("w"), text=True
    )

    def trains() -> bool:
        assert running.poll() is None, log.read_text()
        logs = list(project.root.glob("outputs/orchestrator/*/logs/train.log"))
        return bool(logs) and logs[0].read_text().count('"event": "epoch"') >= 2

    wait_until(trains, "second epoch")
    return running


@pytest.mark.full
@pytest.mark.training
def test_a_run_goes_on_when_its_postgres_comes_back(server: Server, tmp_path: Path) -> None:
    project = with_postgres(tmp_path, server.url)
    running = in_training(project)
    server.stop()
    time.sleep(10)  # longer than Dagster itself waits
    server.start()
    running.wait(PATIENCE_S)
    said = project.root.with_name("said.txt").read_text()
    assert running.returncode == 0, said
    assert "Postgres is away" in said and "aPassWord" not in said
    (manifest,) = project.manifests()
    assert manifest["status"] == "success"
    assert project.brainmri("verify").returncode == 0


@pytest.mark.full
@pytest.mark.training
def test_a_run_whose_postgres_stays_away_ends_with_a_sentence_and_is_closed_later(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = with_postgres(tmp_path, server.url, patience_s=2)
    running = in_training(project)
    server.stop()
    running.wait(PATIENCE_S)
    said = project.root.with_name("said.txt").read_text()
    assert running.returncode == StorageError.exit_code, said
    assert "Cannot use Postgres" in the_error(said)

    server.start()
    assert project.brainmri("verify").returncode == 0, "what was finished is whole"
    listed = project.brainmri("gc")  # any command closes the runs of dead processes
    assert listed.returncode == 0, listed.stderr
    (manifest,) = project.manifests()
    assert manifest["status"] == "failed"
    assert {entry["status"] for entry in manifest["stages"].values()} <= {"success", "failed", "skipped"}
    monkeypatch.setenv("BRAINMRI_POSTGRES_URL", server.url)
    with dg.DagsterInstance.from_config(project.env["DAGSTER_HOME"]) as instance:
        (run,) = instance.get_runs()
        assert run.status is dg.DagsterRunStatus.FAILURE
    again = project.run(*PIPELINE)
    assert again.returncode == 0, again.stderr


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("away")
    with pytest.MonkeyPatch.context() as patch:
        settings = (DEPLOY / "dagster.yaml").read_text()
        assert "retry_delay: 60" in settings
        home = folder / "deploy"
        shutil.copytree(DEPLOY, home)
        (home / "dagster.yaml").write_text(settings.replace("retry_delay: 60", "retry_delay: 2"))
        patch.setattr("tests.deploy.celery_case.DEPLOY", home)
        with running_cluster(folder, patch, {}) as running:
            yield running


def asked(cluster: Cluster) -> dg.DagsterRun:
    """Ask for the data stages, and return the run."""
    known = {run.run_id for run in cluster.daemon.instance.get_runs()}
    words = ("job", "backfill", "-w", "workspace.yaml", "-j", "prepare_data", "--partitions", PHANTOM)
    launched = cluster.project.dagster(*words, "--noprompt")
    assert launched.returncode == 0, launched.stderr
    wait_until(lambda: len(cluster.daemon.instance.get_runs()) > len(known), "run")
    (run,) = [run for run in cluster.daemon.instance.get_runs() if run.run_id not in known]
    return run


def messages(cluster: Cluster, run: dg.DagsterRun) -> str:
    """Return all that the event log says of a run, with the errors."""
    entries = cluster.daemon.instance.all_logs(run.run_id)
    events = [entry.dagster_event for entry in entries if entry.dagster_event is not None]
    errors = [str(getattr(event.event_specific_data, "error", "")) for event in events]
    return "\n".join([*(event.message or "" for event in events), *errors])


def has(cluster: Cluster, run: dg.DagsterRun, status: dg.DagsterRunStatus) -> bool:
    found = cluster.daemon.instance.get_run_by_id(run.run_id)
    return found is not None and found.status is status


@pytest.mark.full
@pytest.mark.e2e
def test_a_run_waits_in_the_queue_while_the_broker_is_away(cluster: Cluster) -> None:
    cluster.start_worker("one", "cpu")
    cluster.broker.stop()
    run = asked(cluster)
    wait_until(lambda: "Cannot use the broker at 127.0.0.1" in messages(cluster, run), "sentence")
    assert not has(cluster, run, dg.DagsterRunStatus.FAILURE)
    cluster.broker.start()
    wait_until(lambda: has(cluster, run, dg.DagsterRunStatus.SUCCESS), "success")
    assert cluster.project.brainmri("verify").returncode == 0
    cluster.kill("one")


@pytest.mark.full
@pytest.mark.e2e
def test_a_worker_of_another_version_refuses_a_run_and_one_of_the_same_version_makes_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    for name in ("brainmri_core", "brainmri_dagster"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "brainmri_core/split.py").open("a") as file:
        file.write("# another version\n")
    before, instance = len(cluster.project.manifests()), cluster.daemon.instance
    known = {run.run_id for run in instance.get_runs()}
    cluster.start_worker("old", "cpu", code=tmp_path)
    fill = ["backfill", "--select", "raw_dataset", "--dataset", PHANTOM]
    program = [sys.executable, "-m", "brainmri_dagster.cli", *fill]
    filling = subprocess.Popen(program, cwd=ROOT, env=cluster.project.env, stderr=subprocess.PIPE, text=True)
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE])
    wait_until(lambda: instance.get_runs(failed), "refusal")
    (run,) = [run for run in instance.get_runs(failed) if run.run_id not in known]
    assert "The worker cpu@old has another version of the code" in messages(cluster, run)
    assert len(cluster.project.manifests()) == before, "it has begun"
    cluster.kill("old")
    cluster.start_worker("new", "cpu")
    _, said = filling.communicate(timeout=PATIENCE_S)
    assert filling.returncode == 0, said
    assert said.splitlines()[-1] == "1 of 1 runs ended, 0 failed"
