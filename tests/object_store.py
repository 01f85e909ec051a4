"""A real object store on loopback: SeaweedFS, with two accounts, and a proxy in front of it that injects faults."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from brainmri_core.system.leases import LEASE_VARIABLE
from tests.counts import PATIENCE_S

BUCKET = "projects"
OWNER = {"AWS_ACCESS_KEY_ID": "owner", "AWS_SECRET_ACCESS_KEY": "canary-secret-of-the-owner"}
READER = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "canary-secret-of-the-reader"}
WEED = str(Path(sys.executable).with_name("weed"))


@dataclass(frozen=True)
class StoreServer:
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        """What the store's own tools read, for the account that may do everything."""
        return environment(self.port)


def environment(port: int, account: dict[str, str] = OWNER) -> dict[str, str]:
    """Return the variables that lead an account to a server or proxy; leases are short, so that no test waits a minute."""
    where = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_REGION": "us-east-1"}
    return {**where, LEASE_VARIABLE: "5", **account}


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@contextmanager
def running_store() -> Iterator[StoreServer]:
    """Run SeaweedFS, listening on loopback alone, with one bucket."""
    folder = Path(tempfile.mkdtemp(prefix="brainmri-seaweedfs-"))
    accounts = [
        {"name": "owner", "actions": ["Admin", "Read", "Write", "List"], **_keys(OWNER)},
        {"name": "reader", "actions": ["Read", "List"], **_keys(READER)},
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": accounts}))
    options = [
        *("-filer", "-s3", f"-s3.config={folder}/s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *("-s3.autoCreateBucket=false", "-master.telemetry=false", "-master.volumeSizeLimitMB=64"),
        *(
            f"-dir={folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-volume.max=100",
            "-volume.minFreeSpace=50MiB",
        ),
    ]
    try:
        with running_weed([WEED, "server", *options], folder) as (process, ports):
            _make_bucket(ports["filer.port"])
            yield StoreServer(ports["s3.port"], process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_weed(
    command: list[str], folder: Path, env: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, int]]]:
    """Run SeaweedFS on free ports, and wait until S3 answers. The value is its process and the ports by option (``s3.port.grpc``)."""
    from brainmri_dagster.running.processes import die_with_parent

    names = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    parent = os.getpid()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *(f"-{name}={port}" for name, port in ports.items())],
            stdout=log,
            stderr=log,
            cwd=folder,
            env=env,
            preexec_fn=lambda: die_with_parent(parent),
        )
    try:
        _until_it_answers(ports["s3.port"], process, folder / "log")
        yield process, ports
    finally:
        process.kill()
        process.wait(60)


def _keys(account: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    key, secret = account.values()
    return {"credentials": [{"accessKey": key, "secretKey": secret}]}


# Not urlopen: its global opener keeps the proxy settings of the first request of this process, which may be another test's.
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _until_it_answers(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with suppress(urllib.error.HTTPError, OSError):
            _LOCAL.open(f"http://127.0.0.1:{port}/status", timeout=5).close()
            return
        ended = process.poll() is not None or time.monotonic() > deadline
        assert not ended, f"SeaweedFS did not start:\n{log.read_text()[-2000:]}"
        time.sleep(0.1)


def _make_bucket(filer: int) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{filer}/buckets/{BUCKET}/", method="POST")
    _LOCAL.open(request, timeout=60).close()


Fault = Callable[[str, str], str | None]
"""From method and path of a request to what happens to it: one of `Proxy`'s faults, or None."""


@dataclass
class Proxy:
    """Passes requests on to a server unless `fault` says otherwise.

    Faults are ``500``, ``503`` (SlowDown), ``reset`` before and ``reset after`` the server has done it, ``short`` (fewer
    bytes than announced), ``cut`` (fewer bytes, and announced as such), ``agreed`` (it says that it is done), ``skewed`` (the clock is wrong)
    and ``stale`` (what the same request was answered the first time).
    """

    target: int
    port: int = 0
    fault: Fault = field(default=lambda method, path: None)
    hit: list[tuple[str, str, str]] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    first: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)


@contextmanager
def running_proxy(target: int) -> Iterator[Proxy]:
    """Run a proxy on loopback."""
    proxy = Proxy(target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            _pass_on(self, proxy)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


_ERRORS = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "skewed": (403, "RequestTimeTooSkewed"),
}


def _pass_on(handler: BaseHTTPRequestHandler, proxy: Proxy) -> None:
    body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    proxy.seen.append((handler.command, handler.path))
    fault = proxy.fault(handler.command, handler.path)
    if fault is not None:
        proxy.hit.append((fault, handler.command, handler.path))
    if fault in _ERRORS:
        status, code = _ERRORS[fault]
        text = f"<Error><Code>{code}</Code></Error>".encode()
        _answer(handler, status, {"Content-Length": str(len(text))}, text)
        return
    if fault == "agreed":
        _answer(handler, 200, {"Content-Length": "0", "ETag": '"0"'}, b"")
        return
    if fault == "reset":
        _hang_up(handler)
        return
    if fault == "stale" and handler.path in proxy.first:
        _answer(handler, *proxy.first[handler.path])
        return
    connection = http.client.HTTPConnection("127.0.0.1", proxy.target, timeout=60)
    try:
        connection.request(handler.command, handler.path, body, dict(handler.headers))
        answer = connection.getresponse()
        data = answer.read()
    except OSError:
        _hang_up(handler)  # the server is gone
        return
    finally:
        connection.close()
    if fault == "reset after":
        _hang_up(handler)
        return
    headers = {key: value for key, value in answer.getheaders() if key.lower() not in _NOT_PASSED}
    if is_listing(handler.command, handler.path) and answer.status == 200:
        proxy.first.setdefault(
            handler.path, (answer.status, {**headers, "Content-Length": str(len(data))}, data)
        )
    sent = data[: len(data) // 2] if fault in ("short", "cut") else data
    length = len(sent) if fault == "cut" else len(data)
    if handler.command == "HEAD":
        length = int(answer.getheader("Content-Length") or 0)
    _answer(handler, answer.status, {**headers, "Content-Length": str(length)}, sent)
    if fault == "short":
        _hang_up(handler)


def is_listing(method: str, path: str) -> bool:
    """Say whether a request asks for a list of objects."""
    return method == "GET" and "list-type=2" in path


_NOT_PASSED = {"content-length", "transfer-encoding", "connection"}


def _answer(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], data: bytes) -> None:
    handler.send_response_only(status)
    for key, value in headers.items():
        handler.send_header(key, value)
    handler.end_headers()
    with suppress(OSError):
        handler.wfile.write(data)


def _hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    with suppress(OSError):
        handler.connection.shutdown(socket.SHUT_RDWR)
