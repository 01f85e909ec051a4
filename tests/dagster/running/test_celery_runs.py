from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._serdes import pack_value

from brainmri_core.cluster.software import source_hash
from brainmri_core.project.layout import ROOT_VARIABLE, Layout
from brainmri_dagster.commands.launch import open_instance
from brainmri_dagster.definitions import defs
from brainmri_dagster.graph.asset_table import CODE_TAG
from brainmri_dagster.running.celery_app import execute_job
from brainmri_dagster.running.celery_runs import BrokerAwayError, CeleryLauncher, code
from brainmri_dagster.running.dagster_internals import (
    DagsterUserCodeUnreachableError,
    ExecuteRunArgs,
    LaunchRunContext,
)
from tests import ROOT
from tests.counts import rest


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    with open_instance(Layout(root=tmp_path)) as opened:
        yield opened


def handed_over(instance: dg.DagsterInstance, tags: dict[str, str]) -> dg.DagsterRun:
    job = defs.resolve_job_def("prepare_data")
    return instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTING)


def packed(run: dg.DagsterRun) -> object:
    """Return what the launcher sends to a worker."""
    code = ModuleCodePointer("brainmri_dagster.definitions", "defs", None)
    origin = JobPythonOrigin(run.job_name, RepositoryPythonOrigin(sys.executable, code))
    return pack_value(ExecuteRunArgs(job_origin=origin, run_id=run.run_id, instance_ref=None))


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({CODE_TAG: "brainmri 0.1.0 (code 0123456789ab), Dagster 1.12.0"}, "not brainmri 0.1.0"),
        *rest(({}, "not an older version"), ({CODE_TAG: code()[:-1]}, "not brainmri")),
    ],
)
def test_a_run_of_another_version_is_refused_by_name_before_anything_is_done(instance, tmp_path, tags, said):
    run = handed_over(instance, tags)
    result = execute_job.apply(kwargs={"execute_job_args_packed": packed(run)})
    assert result.get() == 1
    ended = instance.get_run_by_id(run.run_id)
    assert ended is not None and ended.status is dg.DagsterRunStatus.FAILURE
    (failed,) = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records
    message = failed.event_log_entry.dagster_event.message
    assert (
        f"another version of the code than the daemon that has launched the run: {code()}, {said}" in message
    )
    assert "\n" not in message
    assert {path.name for path in tmp_path.iterdir()} == {"home"}, "nothing was written to the project"


def test_a_changed_line_is_another_version(tmp_path: Path) -> None:
    copies = []
    for name in ("brainmri_core", "brainmri_dagster"):
        copies.append(tmp_path / name)
        shutil.copytree(ROOT / name, copies[-1], ignore=shutil.ignore_patterns("__pycache__"))
    assert source_hash(*copies) in code()
    with (copies[1] / "cli.py").open("a") as file:
        file.write("# a change\n")
    assert source_hash(*copies) not in code()


def test_a_broker_that_is_away_is_named_without_its_password(
    instance: dg.DagsterInstance, slept: list[float]
) -> None:
    broker = "redis://:aPassWord@127.0.0.1:1/0"
    launcher = CeleryLauncher(default_queue="gpu", broker=broker, backend=broker)
    launcher.register_instance(instance)
    run = handed_over(instance, {})
    with pytest.raises(
        DagsterUserCodeUnreachableError, match=r"^Cannot use the broker at 127\.0\.0\.1:1"
    ) as caught:
        launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
    assert caught.type is BrokerAwayError and "aPassWord" not in str(caught.value)
    assert "\n" not in str(caught.value) and sum(slept) < 30
