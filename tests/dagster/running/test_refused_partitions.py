from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterInvalidSubsetError

from brainmri_core.project.layout import ROOT_VARIABLE
from brainmri_dagster.definitions import defs
from brainmri_dagster.running.refused_partitions import refusal
from tests.counts import rest

pytestmark = pytest.mark.training

MATERIALIZE = [str(Path(sys.executable).with_name("dagster")), "asset", "materialize"]


@pytest.mark.parametrize(
    ("module", "options", "words"),
    [
        ("definitions", [], "No partition was given; choose a data set with --partition: "),
        *rest(
            ("definitions", ["--partition", "brainmri/fantom"], "did you mean 'brainmri/phantom'?"),
            (
                "definitions",
                ["--partition=brainmri/phantom|0"],
                "The selected assets have no partition 'brainmri/phantom|0';",
            ),
        ),
    ],
)
def test_dagster_s_command_ends_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, options: list[str], words: str
) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    command = [*MATERIALIZE, "-m", f"brainmri_dagster.{module}", "--select", "raw_dataset", *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    (said,) = [line for line in ended.stderr.splitlines() if line.startswith("brainmri: ")]
    assert words in said


def test_other_errors_stay_as_they_are() -> None:
    assert refusal(ValueError("a partition"), []) is None
    assert refusal(DagsterInvalidSubsetError("no asset is called x"), ["--partition", "no/such"]) is None


def test_a_run_without_partition_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    ended = dg.materialize(
        list(defs.assets or ()),  # type: ignore[arg-type]
        resources=defs.resources,
        selection=["raw_dataset"],
        raise_on_error=False,
    )
    (event,) = [item for item in ended.all_events if item.is_step_failure]
    failure = event.step_failure_data.user_failure_data
    assert failure is not None
    assert failure.description.startswith("The run of raw_dataset has no partition; choose a data set: ")
