"""A project folder, a real webserver with its daemon, and a real browser for end-to-end tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from brainmri_dagster.commands.backfill import DaemonError, require_daemon
from tests import ROOT
from tests.counts import PATIENCE_S

SCREENSHOTS = Path(os.environ.get("BRAINMRI_SCREENSHOTS", ROOT / "screenshots"))
PHANTOM = "brainmri/phantom"
SMALL = """\
fetch: {phantom: {subjects_per_class: 5, slices_per_subject: 4, copies_per_kind: 2, label_conflicts: 1}}
split: {folds: 2}
resize: {size: 64}
train:
  data: {image_size: 64, batch_size: 16}
  model: {name: mobilenet_v3_small, pretrained: false}
  loop: {epochs: 1}
evaluate: {bootstrap_resamples: 50, io: {top_per_class: 2}}
embeddings: {model: {pretrained: false}}
"""


@dataclass
class Project:
    """A project folder with a small configuration, and the environment that makes every program use it."""

    root: Path
    env: dict[str, str]
    cwd: Path = ROOT

    def run(self, *arguments: str, timeout: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        return subprocess.run(
            arguments,
            cwd=self.cwd,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def dagster(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the dagster command line."""
        return self.run(sys.executable, "-m", "dagster", *arguments)

    def brainmri(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run our command line."""
        return self.run(sys.executable, "-m", "brainmri_dagster.cli", *arguments)

    def manifests(self) -> list[dict[str, Any]]:
        """All run manifests, oldest first."""
        files = sorted((self.root / "outputs/orchestrator").glob("*/run_manifest.json"))
        return [json.loads(path.read_text()) for path in files]


def make_project(folder: Path) -> Project:
    """Lay out a project folder and its Dagster instance."""
    (folder / "configs").mkdir(parents=True)
    (folder / "home").mkdir()
    (folder / "configs/pipeline.yaml").write_text(SMALL)
    shutil.copy(ROOT / "brainmri_dagster/dagster.yaml", folder / "home")
    env = {
        **{key: value for key, value in os.environ.items() if key != "BRAINMRI_ARCHIVES"},
        "BRAINMRI_HOME": str(folder / "project"),
        "BRAINMRI_CONFIG": str(folder / "configs/pipeline.yaml"),
        "DAGSTER_HOME": str(folder / "home"),
        "PYTHONPATH": str(ROOT),
    }
    return Project(folder / "project", env)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty project."""
    return make_project(tmp_path)


@dataclass
class Daemon:
    """The daemon of a project, made to look for work every 2 s."""

    project: Project
    instance: dg.DagsterInstance
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the daemon and wait for its heartbeat."""
        log = self.project.root.with_name("daemon.log")
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.e2e.eager_daemon", "run", "-w", "workspace.yaml"],
                cwd=ROOT,
                env=self.project.env,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                require_daemon(self.instance)
                return
            except DaemonError:
                assert self.process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.5)

    def stop(self) -> None:
        """Stop it as Ctrl-C does."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGINT)
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextmanager
def running_daemon(project: Project) -> Iterator[Daemon]:
    """Start a project's daemon, and stop it afterwards."""
    with dg.DagsterInstance.from_config(project.env["DAGSTER_HOME"]) as instance:
        running = Daemon(project, instance)
        try:
            running.start()
            yield running
        finally:
            running.stop()


@dataclass
class Server:
    """A running webserver with its daemon."""

    url: str
    project: Project
    process: subprocess.Popen[bytes] = field(repr=False)

    def query(self, text: str, variables: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask the GraphQL interface."""
        body = json.dumps({"query": text, "variables": variables or {}}).encode()
        request = urllib.request.Request(
            f"{self.url}/graphql", data=body, headers={"Content-Type": "application/json"}
        )
        # Not urlopen: its global opener keeps the proxy settings of the first request of this process.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=PATIENCE_S) as answer:
            value = json.load(answer)
        assert "errors" not in value, value
        return dict(value["data"])

    def runs(self) -> list[dict[str, Any]]:
        """All runs, newest first."""
        text = "{runsOrError {... on Runs {results {runId status assetSelection {path} tags {key value}}}}}"
        return list(self.query(text)["runsOrError"]["results"])

    def wait_for_runs(self, count: int) -> list[dict[str, Any]]:
        """Wait until there are `count` runs and all have ended."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            runs = self.runs()
            if len(runs) >= count and all(
                run["status"] in ("SUCCESS", "FAILURE", "CANCELED") for run in runs
            ):
                return runs
            time.sleep(1)
        log = self.project.root.with_name("server.log").read_text()[-3000:]
        raise AssertionError(f"the runs did not end within {PATIENCE_S:.0f} s: {self.runs()}\n{log}")


def serve(project: Project) -> Iterator[Server]:
    """Start the UI as ``make ui`` does, in its own process group, and stop all of it afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (project.root.parent / "server.log").open("wb")
    command = ["dev", "--host", "127.0.0.1", "--port", str(port), "--workspace", "workspace.yaml"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dagster", *command],
        cwd=ROOT,
        env=project.env,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    server = Server(f"http://127.0.0.1:{port}", project, process)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                server.query("{version}")
                break
            except OSError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    text = (project.root.parent / "server.log").read_text()
                    raise AssertionError(f"the webserver did not start: {text[-3000:]}") from error
                time.sleep(0.5)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A webserver and daemon on a project of their own."""
    yield from serve(make_project(tmp_path_factory.mktemp("ui")))


@contextmanager
def chromium(width: int = 1600, height: int = 1000) -> Iterator[Any]:
    """A headless Chromium with a fresh profile; LookupError where none is installed."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        raise LookupError("no browser: install chromium and chromium-driver to run the UI tests")
    from selenium import webdriver

    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = program
        for flag in (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--window-size={width},{height}",
            f"--user-data-dir={profile}",
        ):
            options.add_argument(flag)
        chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            yield chrome
        finally:
            chrome.quit()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium for all tests that need one."""
    try:
        with chromium() as chrome:
            yield chrome
    except LookupError as error:
        pytest.skip(str(error))
