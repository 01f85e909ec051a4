from __future__ import annotations

import threading
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._daemon.types import DaemonHeartbeat
from typer.testing import CliRunner

from brainmri_core.errors import ConfigError
from brainmri_core.project.layout import ROOT_VARIABLE
from brainmri_dagster.cli import app
from brainmri_dagster.code_location import defs
from brainmri_dagster.commands.backfill import DaemonError, backfill, require_daemon, targets
from brainmri_dagster.running.dagster_internals import BulkActionStatus
from tests.dagster.conftest import PHANTOM, Workbench

pytestmark = pytest.mark.training

OTHER = "masoudnickparvar/brain-tumor-mri-dataset"
DAEMONS = ("BACKFILL", "QUEUED_RUN_COORDINATOR", "SENSOR")
FOLDS = [f"{PHANTOM}|{fold}" for fold in range(5)]


def beat(instance: dg.DagsterInstance, age_s: float) -> None:
    for name in DAEMONS:
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - age_s, name, "d", []))


def test_a_daemon_silent_for_minutes_is_gone(tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        with pytest.raises(DaemonError, match=r"No Dagster daemon is running.*`DAGSTER_HOME="):
            require_daemon(instance)
        beat(instance, 200)
        with pytest.raises(DaemonError):
            require_daemon(instance)
        beat(instance, 40)
        require_daemon(instance)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--select", "raw_dataset"], 9, "No Dagster daemon is running"),
        (["--select", "row_dataset"], 2, "selects no asset; choose from batch_predictions, champion"),
        (["--select", "raw_dataset+("], 2, "is not a valid asset selection"),
        (["--select", "raw_dataset", "--dataset", "brainmri/fantom"], 2, "did you mean 'brainmri/phantom'?"),
        (
            ["--select", "raw_dataset", "--experiment", "nothing"],
            2,
            "There is no experiment 'nothing'; known: densenet",
        ),
    ],
)
def test_a_backfill_that_cannot_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, sentence: str
) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    result = CliRunner().invoke(app, ["backfill", *arguments])
    assert result.exit_code == code, result.output
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_the_partitions_follow_from_selection_and_data_sets(packed: Workbench) -> None:
    graph, instance = defs.resolve_asset_graph(), packed.instance

    def chosen(select: str, *datasets: str, only_missing: bool = False) -> dict[str, list[str]]:
        return targets(instance, graph, select, list(datasets), only_missing=only_missing)

    assert chosen("raw_dataset", PHANTOM, OTHER) == {"raw_dataset": [PHANTOM, OTHER]}
    assert chosen("raw_dataset", PHANTOM, OTHER, only_missing=True) == {"raw_dataset": [OTHER]}
    assert chosen("raw_dataset", PHANTOM, only_missing=True) == {}
    folds = chosen("fold_evaluation+", PHANTOM)
    assert {name: sorted(keys) for name, keys in folds.items()} == {
        "fold_checkpoint": FOLDS,
        "fold_evaluation": FOLDS,
        "cross_validation_report": [PHANTOM],
        "fold_ensemble": [PHANTOM],
    }, "the ensemble is made, but no more looks at the test split are taken than asked for"
    with pytest.raises(ConfigError, match="selects no asset"):
        chosen("group:nothing", PHANTOM)


@pytest.mark.parametrize(
    ("experiment", "block", "key", "value"),
    [("seed-43", "data", "seed", 43), ("from-scratch", "optim", "lr", 0.002)],
)
def test_a_backfill_of_an_experiment_has_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experiment: str, block: str, key: str, value: float
) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        beat(instance, 0)
        canceller = threading.Thread(target=cancel_the_first, args=(instance,), daemon=True)
        canceller.start()
        backfill(instance, "fold_evaluation", [PHANTOM], experiment=experiment)
        (found,) = instance.get_backfills()
    assert found.tags["brainmri/experiment"] == experiment
    assert found.run_config["ops"]["fold_checkpoint"]["config"][block][key] == value
    job = defs.resolve_implicit_global_asset_job_def()
    for name in ("fold_checkpoint", "fold_evaluation"):  # each run of the backfill makes some of the assets
        dg.validate_run_config(job.get_subset(asset_selection={dg.AssetKey(name)}), found.run_config)


@pytest.mark.parametrize(
    ("select", "queue"),
    [("key:raw_dataset or key:leaderboard", "cpu"), ("key:raw_dataset or key:fold_checkpoint", None)],
)
def test_a_backfill_without_a_model_asks_for_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select: str, queue: str | None
) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        beat(instance, 0)
        threading.Thread(target=cancel_the_first, args=(instance,), daemon=True).start()
        backfill(instance, select, [PHANTOM])
        (found,) = instance.get_backfills()
    assert found.tags.get("dagster-celery/queue") == queue
    assert ("dagster-k8s/config" in found.tags) == (queue is not None)


def cancel_the_first(instance: dg.DagsterInstance) -> None:
    while not (found := instance.get_backfills()):
        time.sleep(0.05)
    instance.update_backfill(found[0].with_status(BulkActionStatus.CANCELED))
