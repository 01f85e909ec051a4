"""A loopback server that speaks as much of the Kaggle API as a download needs, with faults on demand.

The real SDK reaches it as its HTTP proxy: `settings` gives the environment variables. Every request is recorded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

# Settings of the user's that a test's client must not see.
SETTINGS = (
    "KAGGLE_API_TOKEN KAGGLE_USERNAME KAGGLE_KEY KAGGLE_CONFIG_DIR KAGGLE_KERNEL_RUN_TYPE HTTP_PROXY HTTPS_PROXY ALL_PROXY "
    "NO_PROXY http_proxy https_proxy all_proxy no_proxy REQUESTS_CA_BUNDLE CURL_CA_BUNDLE NETRC"
).split()
DATASET = "owner/brain-set"
SIGNATURE = "canary-signature-7f3a"
LAST_MODIFIED = "Mon, 02 Nov 2026 10:00:00 GMT"
Route = Literal["GetDataset", "DownloadDataset", "storage"]


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request; without any field set, nothing does.

    Attributes
    ----------
    status : int or None
        Answer with this status, `headers` and `body` instead.
    cut, stall : int or None
        Send this many bytes of the body, then close the connection, or keep it open in silence.
    flip : int or None
        Send the body with a bit of this byte flipped; its checksum is declared as if it were whole.
    declare : int or None
        Bytes declared beyond what is sent; None declares no length.
    endless : bool
        Go on sending after the body, until the client hangs up.
    before : callable or None
        Called before answering, for a remote that changes.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    stall: int | None = None
    flip: int | None = None
    declare: int | None = 0
    endless: bool = False
    before: Callable[[], None] | None = None


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    route: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class KaggleServer:
    """State of the server: what it offers, what it demands, what goes wrong next, and what was asked."""

    versions: dict[int, bytes]
    port: int = 0
    authorization: str | None = None
    hashes: bool = True
    etag: bool = True
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def fail(self, route: Route, *faults: Fault) -> None:
        """Let the next requests of a route fail, one after the other; later ones succeed."""
        self.faults.setdefault(route, []).extend(faults)

    def asked(self, route: Route) -> list[Seen]:
        """Return the requests of one route so far."""
        return [seen for seen in self.seen if seen.route == route]

    def settings(self) -> dict[str, str]:
        """Return the environment variables that bring the SDK here."""
        return {"KAGGLE_API_ENVIRONMENT": "LOCALHOST", "HTTP_PROXY": f"http://127.0.0.1:{self.port}"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: KaggleServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length) or b"{}")
        route = urlsplit(self.path).path.rpartition("/")[2]
        fault = self._note(route, body)
        expected = self.state.authorization
        if expected is not None and self.headers.get("Authorization") != expected:
            return self._json(401, {"code": 401, "message": "Unauthenticated"})
        if fault.status is not None:
            return self._send(fault.status, fault.headers, fault.body)
        if f"{body.get('ownerSlug')}/{body.get('datasetSlug')}" != DATASET:
            return self._json(404, {"code": 404, "message": "Not found"})
        if route == "GetDataset":
            return self._json(200, self._described())
        version = body.get("datasetVersionNumber", max(self.state.versions))
        if version not in self.state.versions:
            return self._json(404, {"code": 404, "message": "Not found"})
        url = f"http://storage.localhost/bucket/{version}.zip?X-Goog-Signature={SIGNATURE}"
        return self._send(302, {"Location": url}, b"")

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        fault = self._note("storage", {})
        if fault.status is not None:
            return self._send(fault.status, fault.headers, fault.body)
        if parse_qs(url.query) != {"X-Goog-Signature": [SIGNATURE]}:
            return self._send(403, {}, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
        content = self.state.versions[int(Path(url.path).stem)]
        headers = self._identity(content)
        status, start = 200, 0
        asked = self.headers.get("Range")
        if asked and self.headers.get("If-Range") in (None, headers.get("ETag"), LAST_MODIFIED):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content) + (fault.declare or 0):
                return self._send(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self._body(status, headers, content, start, fault)

    def _note(self, route: str, body: dict[str, Any]) -> Fault:
        state = self.state
        state.seen.append(Seen(route, {key.lower(): value for key, value in self.headers.items()}, body))
        waiting = state.faults.get(route)
        fault = waiting.pop(0) if waiting else state.always.get(route, Fault())
        if fault.before is not None:
            fault.before()
        return fault

    def _described(self) -> dict[str, Any]:
        versions = self.state.versions
        return {
            "ref": DATASET,
            "title": "Brain set",
            "licenseName": "CC0: Public Domain",
            "totalBytes": len(versions[max(versions)]),
            "lastUpdated": "2026-11-02T10:00:00.123Z",
            "currentVersionNumber": max(versions),
            "versions": [
                {"versionNumber": number, "creationDate": f"2026-10-0{number}T08:00:00Z"}
                for number in sorted(versions, reverse=True)
            ],
        }

    def _identity(self, content: bytes) -> dict[str, str]:
        digest = hashlib.md5(content).digest()
        headers = {
            "Content-Type": "application/zip",
            "Accept-Ranges": "bytes",
            "Last-Modified": LAST_MODIFIED,
        }
        if self.state.etag:
            headers["ETag"] = f'"{digest.hex()}"'
        if self.state.hashes:
            headers["x-goog-hash"] = f"crc32c=AAAAAA==,md5={base64.b64encode(digest).decode()}"
        return headers

    def _body(self, status: int, headers: dict[str, str], content: bytes, start: int, fault: Fault) -> None:
        if fault.flip is not None:
            damaged = bytearray(content)
            damaged[fault.flip] ^= 1
            content = bytes(damaged)
        body = content[start:]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if fault.declare is not None:
            self.send_header("Content-Length", str(len(body) + fault.declare))
        self.end_headers()
        end = next((number for number in (fault.cut, fault.stall) if number is not None), len(body))
        try:
            self.wfile.write(body[:end])
            self.wfile.flush()
            while fault.endless:
                self.wfile.write(bytes(1 << 16))
            if fault.stall is not None:
                self.state.closing.wait(600)
        except ConnectionError:
            self.close_connection = True  # the client hung up, as it may: it opens bodies it does not read
        if end < len(body) or fault.declare != 0:
            self.close_connection = True

    def _json(self, status: int, value: dict[str, Any]) -> None:
        self._send(status, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    errors: list[BaseException | None]

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):  # clients may hang up at any time
            self.errors.append(error)


@contextmanager
def serving(versions: dict[int, bytes]) -> Iterator[KaggleServer]:
    """Serve `versions` of the data set ``owner/brain-set`` on a free port of the loopback interface."""
    state = KaggleServer(versions)
    handler = type("_BoundHandler", (_Handler,), {"state": state})
    server = _Server(("127.0.0.1", 0), handler)
    server.errors = []
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        state.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
    assert not server.errors, server.errors
