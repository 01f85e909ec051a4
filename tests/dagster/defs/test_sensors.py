from __future__ import annotations

import json
import os
import socket
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dagster as dg
import pytest

from brainmri_core.errors import BrainMRIError, IntegrityError, StorageError
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.layout import ARCHIVES_VARIABLE, ROOT_VARIABLE, Layout
from brainmri_core.project.run_record import close_run, make_plan, write_plan
from brainmri_core.project.run_schema import PlannedStage
from brainmri_dagster.code_location import defs
from brainmri_dagster.defs import sensors
from brainmri_dagster.defs.sensors import (
    WEBHOOK_VARIABLE,
    cancelled_manifest,
    dead_runs,
    failed_manifest,
    new_dataset_version,
    post_failure,
    retrain,
    weekly,
)
from brainmri_dagster.graph.asset_table import PROCESS_TAG, RUN_ID_TAG
from brainmri_dagster.running.dead_runs import close_dead_runs, close_manifest
from brainmri_dagster.running.processes import this_process
from brainmri_dagster.running.stage_run import run_id_of
from tests.kaggle_server import DATASET, SETTINGS, KaggleServer, serving

pytestmark = pytest.mark.training

REAL = "sartajbhuvaji/brain-tumor-classification-mri"
OTHER = "masoudnickparvar/brain-tumor-mri-dataset"


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an archive of both Kaggle data sets, and no way to the network."""
    folder = tmp_path / "archives"
    folder.mkdir()
    for key in (REAL, OTHER):
        write_zip(folder / f"{key.replace('/', '__')}.zip", "one")
    monkeypatch.setenv(ARCHIVES_VARIABLE, str(folder))
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "project"))
    return folder


def write_zip(path: Path, text: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", text)


def tick(instance: dg.DagsterInstance, cursor: str | None) -> dg.SensorResult:
    context = dg.build_sensor_context(instance=instance, cursor=cursor, definitions=defs)
    result = new_dataset_version(context)
    assert isinstance(result, dg.SensorResult)
    return result


def test_one_version_is_requested_once_ever(archives):
    with dg.DagsterInstance.ephemeral() as instance:
        first = tick(instance, None)
        assert [request.partition_key for request in first.run_requests] == [REAL, OTHER]
        assert first.run_requests[0].run_key.startswith(f"{REAL}@archive-")
        second = tick(instance, first.cursor)
        assert not second.run_requests
        assert "nothing new" in second.skip_reason.skip_message
        os.utime(archives / f"{REAL.replace('/', '__')}.zip", (1, 1))
        touched = tick(instance, second.cursor)
        assert not touched.run_requests, "the same bytes under a new time are no new version"
        write_zip(archives / f"{REAL.replace('/', '__')}.zip", "two")
        third = tick(instance, touched.cursor)
        assert [request.partition_key for request in third.run_requests] == [REAL]
        assert third.run_requests[0].run_key != first.run_requests[0].run_key


def test_a_damaged_pointer_keeps_one_data_set_from_being_asked_for_not_the_others(archives, monkeypatch):
    def damaged(instance, layout, asset, key):
        if key == REAL:
            raise IntegrityError("The pointer is damaged.")

    monkeypatch.setattr(sensors, "recorded_pointer", damaged)
    with dg.DagsterInstance.ephemeral() as instance:
        answer = tick(instance, None)
        assert [request.partition_key for request in answer.run_requests] == [OTHER]
        assert "version" not in json.loads(answer.cursor)[REAL], "asked again at the next tick"


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KaggleServer]:
    """A server that speaks Kaggle's API, asked by the real client; its data set is the only one of the catalogue."""
    (tmp_path / "home").mkdir()
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "project"))
    entry = load_catalogue()[REAL].model_copy(update={"key": DATASET})
    monkeypatch.setattr(sensors, "catalogue", lambda: {DATASET: entry})
    with serving({1: b"first"}) as state:
        for name, value in state.settings().items():
            monkeypatch.setenv(name, value)
        yield state


def test_a_new_version_on_kaggle_is_asked_for_once_and_kaggle_rarely(kaggle, monkeypatch):
    with dg.DagsterInstance.ephemeral() as instance:
        first = tick(instance, None)
        assert [request.run_key for request in first.run_requests] == [f"{DATASET}@v1"]
        second = tick(instance, first.cursor)
        assert not second.run_requests
        assert len(kaggle.asked("GetDataset")) == 1, "not asked again within hours"
        monkeypatch.setattr(sensors, "KAGGLE_EVERY_S", 0)
        third = tick(instance, second.cursor)
        assert not third.run_requests
        assert len(kaggle.asked("GetDataset")) == 2
        kaggle.versions[2] = b"second"
        fourth = tick(instance, third.cursor)
        assert [request.run_key for request in fourth.run_requests] == [f"{DATASET}@v2"]
        assert not tick(instance, fourth.cursor).run_requests


def test_without_credentials_that_kaggle_wants_the_sensor_says_so(kaggle):
    kaggle.authorization = "Bearer wanted"
    with dg.DagsterInstance.ephemeral() as instance:
        answer = tick(instance, None)
    assert not answer.run_requests
    assert "no credentials were found" in answer.skip_reason.skip_message
    assert "kaggle.json" in answer.skip_reason.skip_message


def test_the_sensor_is_quiet_when_kaggle_cannot_be_asked_and_does_not_ask_again_at_once(
    archives, monkeypatch
):
    for key in (REAL, OTHER):
        (archives / f"{key.replace('/', '__')}.zip").unlink()
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(archives))
    monkeypatch.delenv("NO_PROXY", raising=False)
    with dg.DagsterInstance.ephemeral() as instance:
        first = tick(instance, None)
        assert not first.run_requests
        assert f"{REAL}: Kaggle could not be asked" in first.skip_reason.skip_message
        second = tick(instance, first.cursor)
        assert "could not be asked" not in second.skip_reason.skip_message
        assert json.loads(second.cursor)[REAL]["asked_at"] == json.loads(first.cursor)[REAL]["asked_at"]


def test_retraining_is_not_asked_for_without_a_checkpoint(archives):
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_sensor_context(instance=instance, definitions=defs)
        (answer,) = list(retrain(context))
        assert isinstance(answer, dg.SkipReason)


def test_the_weekly_schedule_asks_once_a_week_for_each_kaggle_data_set():
    from datetime import UTC, datetime

    context = dg.build_schedule_context(scheduled_execution_time=datetime(2026, 11, 23, 3, tzinfo=UTC))
    requests = weekly(context)
    assert [request.run_key for request in requests] == [f"{REAL}@2026-W48", f"{OTHER}@2026-W48"]


class Hook(BaseHTTPRequestHandler):
    bodies: list[dict[str, str]] = []  # noqa: RUF012 - one server, one test

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.bodies.append(json.loads(self.rfile.read(length)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_the_webhook_hears_of_a_failed_run(archives, monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv(WEBHOOK_VARIABLE, f"http://127.0.0.1:{server.server_port}/hook")
    try:
        with dg.DagsterInstance.ephemeral() as instance:
            job = defs.resolve_job_def("retrain")
            result = job.execute_in_process(
                instance=instance, partition_key=REAL, raise_on_error=False, resources=None
            )
            assert not result.success
            run = instance.get_run_by_id(result.run_id)
            event = (
                instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
                .records[0]
                .event_log_entry.dagster_event
            )
            context = dg.build_run_status_sensor_context(
                "failed_manifest", dagster_event=event, dagster_instance=instance, dagster_run=run
            ).for_run_failure()
            failed_manifest(context)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    (body,) = Hook.bodies
    assert body["text"] == (
        f"retrain failed for {REAL}: There is no pack of resized images of {REAL} yet; "
        f"make it with `brainmri resize --dataset {REAL}` or set train.data.train_in."
    )


def unfinished(instance: dg.DagsterInstance, root: Path, process: str) -> tuple[dg.DagsterRun, Path]:
    """Record a run that a process is working on, with the manifest it would have left, and return that file."""
    tags = {PROCESS_TAG: process, RUN_ID_TAG: f"run-{process.rpartition(':')[2]}"}
    run = instance.create_run_for_job(
        defs.resolve_job_def("retrain"), tags=tags, status=dg.DagsterRunStatus.STARTED
    )
    layout, run_id = Layout(root=root), run_id_of(instance, run)
    stages = [PlannedStage(stage=name, asset=name, config={}) for name in ("train", "evaluate")]
    plan = make_plan(
        run_id=run_id, dagster_run_id=run.run_id, dataset=REAL, command="", env={}, stages=stages
    )
    assert write_plan(layout, plan)
    return run, layout.run_dir(run_id) / "run_manifest.json"


def test_runs_whose_process_died_are_closed_and_others_left_alone(archives, tmp_path):
    host = socket.gethostname()
    with dg.DagsterInstance.ephemeral() as instance:
        gone, manifest = unfinished(instance, tmp_path / "project", f"{host}:{os.getpid()}:1")
        here, _ = unfinished(instance, tmp_path / "project", this_process())
        for odd in ("", "x", "x:y", f"{host}:y:z"):  # tags are anybody's to set
            instance.create_run_for_job(
                defs.resolve_job_def("retrain"),
                tags={PROCESS_TAG: odd},
                status=dg.DagsterRunStatus.STARTED,
            )
        answer = dead_runs(dg.build_sensor_context(instance=instance, definitions=defs))
        assert answer.skip_message == f"Closed {gone.run_id}."
        assert instance.get_run_by_id(gone.run_id).status == dg.DagsterRunStatus.FAILURE
        ended = json.loads(manifest.read_text())
        first, *later = [entry["status"] for entry in ended["stages"].values()]
        assert (ended["status"], first, set(later)) == ("failed", "failed", {"skipped"})
        assert instance.get_run_by_id(here.run_id).status == dg.DagsterRunStatus.STARTED
        again = dead_runs(dg.build_sensor_context(instance=instance, definitions=defs))
        assert again.skip_message == "No run has died."


def test_a_manifest_that_cannot_be_closed_keeps_no_other_run_from_being_closed(
    archives, tmp_path, monkeypatch
):
    host, layout = socket.gethostname(), Layout(root=tmp_path / "project")
    with dg.DagsterInstance.ephemeral() as instance:
        runs = [unfinished(instance, layout.root, f"{host}:{os.getpid()}:{number}") for number in (1, 2, 3)]
        runs[0][1].write_text("[]")
        full = runs[1][1].parent
        real = close_run

        def close(layout, run_id, *rest):
            if layout.run_dir(run_id) == full:
                raise StorageError("The disk is full.")
            real(layout, run_id, *rest)

        monkeypatch.setattr("brainmri_dagster.running.dead_runs.close_run", close)
        with pytest.raises(BrainMRIError):
            close_dead_runs(instance, layout)
        statuses = [instance.get_run_by_id(run.run_id).status for run, _ in runs]
        ended, later = dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.STARTED
        assert statuses == [ended, later, ended], "the one on the full disk is looked at again"
        assert json.loads(runs[2][1].read_text())["status"] == "failed"
        monkeypatch.undo()
        close_dead_runs(instance, layout)
        assert json.loads(runs[1][1].read_text())["status"] == "failed"


@pytest.mark.parametrize("run_id", ["../../../elsewhere", "/elsewhere", "a/b", "..", "a\n", "a" * 101])
def test_a_run_id_tag_cannot_lead_out_of_the_project(archives, tmp_path, run_id):
    tags = {RUN_ID_TAG: run_id.replace("/elsewhere", f"{tmp_path}/elsewhere")}
    with dg.DagsterInstance.ephemeral() as instance:
        result = defs.resolve_job_def("retrain").execute_in_process(
            instance=instance, partition_key=REAL, tags=tags, raise_on_error=False
        )
        assert not result.success
        failed = next(event for event in result.all_events if event.is_step_failure)
        said = failed.step_failure_data.user_failure_data.description
        assert "cannot name a folder; use up to 100 letters" in said
        run = instance.get_run_by_id(result.run_id)
        assert not close_manifest(instance, Layout(root=tmp_path / "project"), run, "", cancelled=False)
    assert not [path for path in tmp_path.rglob("*") if "manifest" in path.name or path.name == "plan.json"]


def test_a_cancelled_run_closes_its_manifest(archives, tmp_path):
    with dg.DagsterInstance.ephemeral() as instance:
        run, manifest = unfinished(instance, tmp_path / "project", this_process())
        instance.report_run_canceled(run)
        records = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_CANCELED).records
        context = dg.build_run_status_sensor_context(
            "cancelled_manifest",
            dagster_event=records[0].event_log_entry.dagster_event,
            dagster_instance=instance,
            dagster_run=instance.get_run_by_id(run.run_id),
        )
        cancelled_manifest(context)
        ended = json.loads(manifest.read_text())
        first, *later = [entry["status"] for entry in ended["stages"].values()]
        assert (ended["status"], first, set(later)) == ("cancelled", "cancelled", {"skipped"})


def test_the_webhook_must_be_http():
    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(defs.resolve_job_def("retrain"))
        with pytest.raises(ValueError, match="http or https"):
            post_failure("file:///etc/passwd", run, "x")
