"""The UI as a user meets it, in order: each test goes on with the project that the one before has left."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from brainmri_core.validation.findings import CHECKS
from brainmri_dagster.defs.checks import VALIDATION_CHECKS
from brainmri_dagster.graph.asset_table import PIPELINE
from tests.counts import PATIENCE_S
from tests.e2e.conftest import PHANTOM, SCREENSHOTS, Server

pytestmark = [pytest.mark.journey, pytest.mark.e2e]

OTHERS = ["champion", "leaderboard", "fold_checkpoint", "fold_evaluation"]
EXPANDED = "global@global:data,global@global:model,global@global:cross_validation"
JOBS = "/locations/brainmri/jobs"
LAUNCH = """
mutation($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess {run {runId}}
    ... on RunConfigValidationInvalid {errors {message}}
    ... on PythonError {message}
  }
}
"""

STEP_S = 40.0
"""Patience for one step of a dialog, before all its steps are made again."""


def wait_for(browser: Any, xpath: str, timeout: float = PATIENCE_S) -> Any:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.expected_conditions import element_to_be_clickable
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, timeout).until(element_to_be_clickable((By.XPATH, xpath)), f"no {xpath}")


def click(browser: Any, xpath: str, timeout: float = PATIENCE_S) -> None:
    """Click what may be drawn anew, or lie under something for a moment, while we reach for it."""
    from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException

    deadline = time.monotonic() + timeout
    while True:
        try:
            wait_for(browser, xpath, timeout).click()
            return
        except (ElementClickInterceptedException, StaleElementReferenceException):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def launch_by_clicking(
    browser: Any, job: str, choose: Callable[[], None], button: str, launched: Callable[[], Any]
) -> None:
    """Launch a job by its dialog. A page that is still being drawn can lose a click or the whole dialog: then begin again."""
    from selenium.common.exceptions import TimeoutException

    deadline = time.monotonic() + PATIENCE_S
    while True:
        browser.get(job)
        with suppress(TimeoutException):
            click(browser, "//button[contains(., 'Materialize all')]", STEP_S)
            choose()
            click(browser, button, STEP_S)
        looked_until = time.monotonic() + STEP_S
        while time.monotonic() < looked_until:
            if launched():
                return
            time.sleep(0.5)
        assert time.monotonic() < deadline, page_text(browser)


def choose_data_set(browser: Any) -> None:
    """Choose the built-in data set in the open dialog, and close the list, which lies over what is below it, by a click beside it."""
    from selenium.webdriver import ActionChains

    click(browser, "(//*[contains(text(), 'Select a partition')])[1]", STEP_S)
    click(browser, f"//span[text()='{PHANTOM}']", STEP_S)
    title = wait_for(browser, "//*[contains(text(), 'Launch runs to materialize')]", STEP_S)
    ActionChains(browser).move_to_element(title).click().perform()


def page_text(browser: Any) -> str:
    from selenium.webdriver.common.by import By

    return str(browser.find_element(By.TAG_NAME, "body").text)


def wait_for_text(browser: Any, *texts: str, timeout: float = PATIENCE_S) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    def shown(driver: Any) -> bool:
        return all(text in page_text(driver) for text in texts)

    WebDriverWait(browser, timeout).until(shown, f"the page does not show all of {texts}")


def screenshot(browser: Any, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    assert browser.save_screenshot(str(SCREENSHOTS / f"{name}.png"))


def look_away(browser: Any) -> None:
    """Leave the page before waiting for a run: the UI redraws its bars many times a second, which slows the run down."""
    browser.get("about:blank")


def launch(server: Server, job: str, **config: dict[str, Any]) -> str:
    """Launch a job for the built-in data set as the launchpad does, and return the run's id."""
    selector = {
        "repositoryLocationName": "brainmri",
        "repositoryName": "__repository__",
        "jobName": job,
    }
    params = {
        "selector": selector,
        "runConfigData": {"ops": {name: {"config": value} for name, value in config.items()}},
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": PHANTOM}]},
        "mode": "default",
    }
    answer = server.query(LAUNCH, {"params": params})["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return str(answer["run"]["runId"])


def wait_for_status(server: Server, run_id: str, *statuses: str, timeout: float = PATIENCE_S) -> str:
    deadline = time.monotonic() + timeout
    while True:
        found = next(run["status"] for run in server.runs() if run["runId"] == run_id)
        if found in statuses:
            return str(found)
        assert time.monotonic() < deadline, f"{run_id} is {found}"
        time.sleep(0.5)


def manifest_of(server: Server, run_id: str) -> dict[str, Any]:
    return next(item for item in server.project.manifests() if item["dagster_run_id"] == run_id)


def test_the_graph_shows_every_asset_and_its_checks(server: Server, browser: Any) -> None:
    browser.get(f"{server.url}/asset-groups/?expanded={EXPANDED}")
    wait_for_text(browser, *PIPELINE, *OTHERS, "cross_vali")
    screenshot(browser, "graph-before")
    browser.set_window_size(1600, 2400)  # the list holds only the rows that are in sight
    browser.get(f"{server.url}/assets/validation_report?view=checks")
    wait_for_text(browser, f"Checks ({len(VALIDATION_CHECKS)})", *CHECKS)
    screenshot(browser, "checks-before")
    browser.set_window_size(1600, 1000)
    browser.get(f"{server.url}/assets/evaluation?view=checks")
    wait_for_text(browser, "Checks (3)", "beats_baselines", "calibration", "no_regression")


def test_the_launchpad_explains_types_and_bounds(server: Server, browser: Any) -> None:
    browser.get(f"{server.url}{JOBS}/pipeline/playground")
    click(browser, "//pre[contains(@class, 'CodeMirror-line') and contains(., 'test_frac')]")
    wait_for_text(
        browser,
        "Share of each class in the test split. (greater than 0, less than 1)",
        "test_frac?: Float",
        "Folds of the training side for cross-validation. (at least 2, at most 20)",
        "folds?: Int",
        "one of pooled, official, predefined",
    )
    screenshot(browser, "launchpad")


def test_a_partition_is_materialised_by_clicking(server: Server, browser: Any) -> None:
    def choose() -> None:
        choose_data_set(browser)
        screenshot(browser, "launch")

    button = "//button[contains(., 'Launch 1 run')]"
    launch_by_clicking(browser, f"{server.url}{JOBS}/pipeline", choose, button, server.runs)
    look_away(browser)
    (run,) = server.wait_for_runs(1)
    assert run["status"] == "SUCCESS", (server.project.root.parent / "server.log").read_text()[-5000:]
    browser.get(f"{server.url}/runs/{run['runId']}")
    wait_for_text(browser, "Success", *PIPELINE)
    screenshot(browser, "run")
    manifest = manifest_of(server, run["runId"])
    assert manifest["status"] == "success"
    assert [item["asset"] for item in manifest["stages"].values()] == list(PIPELINE)


@pytest.mark.full
def test_a_backfill_of_folds_is_launched_by_clicking(server: Server, browser: Any) -> None:
    def choose() -> None:
        choose_data_set(browser)
        click(browser, "(//button[normalize-space()='All'])[2]", STEP_S)
        screenshot(browser, "backfill-folds")

    button = "//button[contains(., 'Launch')]"
    launch_by_clicking(browser, f"{server.url}{JOBS}/folds", choose, button, lambda: backfills(server))
    assert [item["numPartitions"] for item in backfills(server)] == [2]
    look_away(browser)


def backfills(server: Server) -> list[dict[str, Any]]:
    text = "{partitionBackfillsOrError {... on PartitionBackfills {results {id status numPartitions}}}}"
    return list(server.query(text)["partitionBackfillsOrError"]["results"])


def test_the_evaluation_shows_its_pictures_and_numbers(server: Server, browser: Any) -> None:
    browser.get(f"{server.url}/assets/evaluation?view=partitions&partition={PHANTOM.replace('/', '%2F')}")
    wait_for_text(browser, "macro_f1", "confusion_matrix", "gradcam", "report")
    screenshot(browser, "evaluation")
    for label, alt in (("confusion_picture", "confusion matrix"), ("gradcam", "Grad-CAM overlays")):
        row = f"//tr[td[1][contains(., '{label}')]]"
        click(browser, f"{row}//*[contains(text(), 'Show Markdown')]")
        picture = wait_for(browser, f"//img[@alt='{alt}']")
        assert str(picture.get_attribute("src")).startswith("data:image/jpeg;base64,")
        assert int(picture.get_property("naturalWidth")) > 100, "the picture is decoded, not broken"
        screenshot(browser, label)
        click(browser, "//button[normalize-space()='Close']")
    browser.get(f"{server.url}/assets/evaluation?view=overview")
    click(browser, "//button[normalize-space()='Plots']")
    click(browser, "(//button[normalize-space()='Events'])[last()]")  # over time, not by partition
    wait_for(browser, "//canvas")
    wait_for_text(browser, "macro_f1", "balanced_accuracy", "ece")
    screenshot(browser, "evaluation-plots")
    look_away(browser)


@pytest.mark.full
def test_the_backfill_of_folds_finishes(server: Server, browser: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (found := backfills(server)[0])["status"] not in (
        "COMPLETED_SUCCESS",
        "COMPLETED_FAILED",
        "FAILED",
    ):
        assert time.monotonic() < deadline, found
        time.sleep(1)
    assert found["status"] == "COMPLETED_SUCCESS"
    browser.get(f"{server.url}/runs/b/{found['id']}")
    wait_for_text(browser, "folds", "100% completed", "Succeeded")
    screenshot(browser, "backfill-done")
    pointers = server.project.root / "outputs/pointers/fold_evaluation" / PHANTOM / "history"
    assert len(list(pointers.iterdir())) == 2


@pytest.mark.full
def test_another_seed_of_the_split_makes_all_downstream_out_of_date(server: Server, browser: Any) -> None:
    assert staleness(server) == dict.fromkeys(PIPELINE, "FRESH")
    config = Path(server.project.env["BRAINMRI_CONFIG"])
    config.write_text(re.sub(r"split: \{", "split: {seed: 9, ", config.read_text()))
    reload = 'mutation {reloadRepositoryLocation(repositoryLocationName: "brainmri") {__typename}}'
    server.query(reload)
    deadline = time.monotonic() + PATIENCE_S
    while (found := staleness(server))["dataset_split"] == "FRESH":
        assert time.monotonic() < deadline, found
        time.sleep(1)
    assert found == {**dict.fromkeys(PIPELINE, "STALE"), "raw_dataset": "FRESH"}
    browser.get(f"{server.url}/assets/dataset_split?view=partitions&partition={PHANTOM.replace('/', '%2F')}")
    wait_for_text(browser, "Unsynced")
    screenshot(browser, "unsynced")
    look_away(browser)


def staleness(server: Server) -> dict[str, str]:
    # Of these assets only: the key is no partition of those with two dimensions or none.
    keys = ", ".join(f'{{path: ["{name}"]}}' for name in PIPELINE)
    status = f"staleStatusByPartition(partitions: {json.dumps([PHANTOM])})"
    nodes = server.query(f"{{assetNodes(assetKeys: [{keys}]) {{assetKey {{path}} {status}}}}}")["assetNodes"]
    found = {node["assetKey"]["path"][0]: node["staleStatusByPartition"] for node in nodes}
    return {name: found[name][0] for name in PIPELINE}


@pytest.mark.full
def test_stopping_a_training_in_the_ui_keeps_what_was_learnt(server: Server, browser: Any) -> None:
    run_id = launch(server, "retrain", model_checkpoint={"loop": {"epochs": 1000}})
    logs = server.project.root / "outputs/orchestrator"
    deadline = time.monotonic() + PATIENCE_S
    while not any('"epoch": 2' in path.read_text() for path in logs.glob("*/logs/train.log")):
        assert time.monotonic() < deadline, "the training did not start"
        time.sleep(0.5)
    browser.get(f"{server.url}/runs/{run_id}")
    (process,) = {item["pid"] for item in manifest_of(server, run_id)["stages"].values() if "pid" in item}
    assert Path(f"/proc/{process}").exists()
    click(browser, "//button[contains(., 'Terminate')]")
    screenshot(browser, "terminate")
    click(browser, "//*[@role='dialog' or contains(@class,'dialog')]//button[contains(., 'Terminate')]")
    assert wait_for_status(server, run_id, "CANCELED", "FAILURE", "SUCCESS") == "CANCELED"
    stage = manifest_of(server, run_id)["stages"]["train"]
    assert (stage["status"], stage["exit_code"]) == ("cancelled", 130)
    resume = list((server.project.root / "models").rglob("resume/*/*.pth"))
    assert resume, "what was learnt is kept"
    look_away(browser)
    deadline = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{process}").exists():
        assert time.monotonic() < deadline, "the run's process is still there"
        time.sleep(0.2)


@pytest.mark.full
def test_a_leak_stops_training_and_is_shown(server: Server, browser: Any) -> None:
    run_id = launch(server, "pipeline", dataset_split={"group_by": "none"})
    assert wait_for_status(server, run_id, "SUCCESS", "FAILURE", "CANCELED") == "FAILURE"
    stages = manifest_of(server, run_id)["stages"]
    assert {name: item["status"] for name, item in stages.items()} == {
        "fetch": "success",
        "split": "success",
        "resize": "success",
        "validate": "failed",
        "train": "skipped",
        "evaluate": "skipped",
    }
    browser.get(f"{server.url}/assets/validation_report?view=checks&checkDetail=leak")
    wait_for_text(browser, "This is a blocking asset check", "Failed", "tied to training images")
    screenshot(browser, "leak")
    browser.get(f"{server.url}/runs/{run_id}")
    wait_for_text(browser, "Failure", "validation_report")
    screenshot(browser, "leak-run")
