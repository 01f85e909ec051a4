from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import dagster as dg
import pytest

from brainmri_core.project.pointer_store import latest_pointer
from brainmri_core.project.pointers import CheckpointPointer
from brainmri_core.project.run_schema import Manifest, manifest_files, read_manifest
from brainmri_core.project.run_sharing import take_in_runs
from brainmri_core.system.store import RemoteStore
from brainmri_dagster.running.stage_run import run_id_of
from tests import ROOT
from tests.counts import trials
from tests.deploy.celery_case import Cluster, host, running_cluster, runs
from tests.e2e.conftest import PHANTOM
from tests.object_store import BUCKET, StoreServer

pytestmark = [pytest.mark.full, pytest.mark.e2e, pytest.mark.journey]

EPOCHS, FOLDS = 8, {"folder": 2, "bucket": trials(2, 5)}


@pytest.fixture(scope="module", params=[pytest.param("folder", marks=pytest.mark.slow), "bucket"])
def place(request: pytest.FixtureRequest) -> str:
    """What the workers share."""
    return str(request.param)


@pytest.fixture(scope="module")
def cluster(
    place: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    folder, bucket = tmp_path_factory.mktemp("celery"), None
    if place == "bucket":
        store: StoreServer = request.getfixturevalue("object_store")
        bucket = (f"s3://{BUCKET}/celery", store.environment)
    changes = {
        "epochs: 1": f"epochs: {EPOCHS}",
        "folds: 2": f"folds: {FOLDS[place]}",
        "per_class: 5": "per_class: 8",
    }
    with pytest.MonkeyPatch.context() as patch, running_cluster(folder, patch, changes, bucket) as running:
        yield running


def wait_until(found: Callable[[], object], what: str, seconds: float = 600) -> None:
    """Look every second; fail with `what` was waited for."""
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(1)


def checkpoint(cluster: Cluster) -> CheckpointPointer:
    """The newest checkpoint."""
    found = latest_pointer(cluster.layout, CheckpointPointer, PHANTOM)
    assert found is not None
    return found


def epochs(cluster: Cluster, run_id: str) -> list[int]:
    """The epochs that a run has logged."""
    layout = cluster.layout
    log = layout.store.newest(layout.relative(layout.run_dir(run_id) / "logs/train.log"))
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [line["epoch"] for line in lines if line["event"] == "epoch"]


def epochs_saved(cluster: Cluster, run_id: str) -> int:
    """How many epochs of a training that is running could be continued: in a bucket is no log before its end."""
    store = cluster.layout.store
    if not isinstance(store, RemoteStore):
        return len(epochs(cluster, run_id)) - 1
    newest = [file.newest() for file in store.shared_files()]
    return max((item.progress[0] for item in newest if item), default=0)


def manifests(cluster: Cluster) -> list[Manifest]:
    """The records of all runs, as a machine reads them that takes no part."""
    take_in_runs(cluster.layout)
    return [read_manifest(path) for path in manifest_files(cluster.layout)]


def test_a_run_goes_to_the_queue_that_its_job_asks_for(cluster: Cluster) -> None:
    cluster.start_worker("one", "gpu")
    cluster.start_worker("two", "cpu")
    asked = ("job", "backfill", "-w", "workspace.yaml", "-j", "prepare_data", "--partitions", PHANTOM)
    launched = cluster.project.dagster(*asked, "--noprompt")
    assert launched.returncode == 0, launched.stderr
    wait_until(lambda: [run for run in runs(cluster) if run.is_finished], "end of the run")
    (run,) = runs(cluster)
    assert run.status == dg.DagsterRunStatus.SUCCESS, cluster.log("two")
    assert (run.tags["dagster-celery/queue"], host(run)) == ("cpu", "two")
    (manifest,) = manifests(cluster)
    assert (manifest.status, len(manifest.stages)) == ("success", 4)
    printed = list((cluster.folder / "two/logs").rglob("*.err"))
    assert any("validate finished" in file.read_text() for file in printed), "the UI's stderr tab"


def test_the_folds_of_a_backfill_are_shared_by_two_machines(cluster: Cluster, place: str) -> None:
    cluster.start_worker("three", "gpu")
    done = cluster.project.brainmri("backfill", "--select", "fold_evaluation", "--dataset", PHANTOM)
    assert done.returncode == 0, done.stderr
    assert f"{2 * FOLDS[place]} partitions of fold_checkpoint, fold_evaluation" in done.stderr
    trained = runs(cluster)[1:]
    assert [run.status for run in trained] == [dg.DagsterRunStatus.SUCCESS] * FOLDS[place]
    assert {host(run) for run in trained} == {"one", "three"}


@pytest.mark.timeout(1400)  # two minutes of silence and two trainings, on a machine that has much else to do
def test_a_training_whose_machine_goes_down_ends_on_another_with_the_same_weights(cluster: Cluster) -> None:
    instance, earlier = cluster.daemon.instance, len(runs(cluster))
    fill = ("backfill", "--select", "model_checkpoint", "--dataset", PHANTOM)
    program = [sys.executable, "-m", "brainmri_dagster.cli", *fill]
    filling = subprocess.Popen(program, cwd=ROOT, env=cluster.project.env, stderr=subprocess.PIPE, text=True)

    def begun() -> object:
        assert filling.poll() is None, "the training ended before it was killed"
        latest = runs(cluster)[earlier:]
        return latest and epochs_saved(cluster, run_id_of(instance, latest[0])) >= 2

    wait_until(begun, "second epoch")
    first = runs(cluster)[-1]
    cluster.kill(host(first))
    _, said = filling.communicate(timeout=600)
    assert filling.returncode == 0, f"{said}\n{cluster.log('three')}"
    assert said.splitlines()[-1] == "1 of 1 runs ended, 0 failed"
    first, second = runs(cluster)[earlier:]
    assert (first.status, second.status) == (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS)
    assert (second.parent_run_id, second.root_run_id) == (first.run_id, first.run_id)
    assert {host(first), host(second)} == {"one", "three"}
    (closed,) = [item for item in manifests(cluster) if item.dagster_run_id == first.run_id]
    assert closed.status == "failed"
    assert "the machine went down" in str(closed.stages["train"].error)
    slots = instance.event_log_storage.get_concurrency_info("accelerator")
    assert first.run_id not in {*slots.active_run_ids, *slots.pending_run_ids}

    went_on, disturbed = epochs(cluster, run_id_of(instance, second)), checkpoint(cluster)
    assert went_on[0] > 1 and went_on[-1] == EPOCHS, "it began anew"
    again = cluster.project.brainmri(*fill)
    assert again.returncode == 0, again.stderr
    undisturbed = checkpoint(cluster)
    assert undisturbed.run_id != disturbed.run_id
    assert epochs(cluster, undisturbed.run_id) == list(range(1, EPOCHS + 1))
    assert undisturbed.content_hash == disturbed.content_hash
