"""A local web page: drop an image in, see the classifier's prediction and how far to trust it.

Uploads stay in memory and are decoded in a worker process with limits. The server listens on loopback only, answers only
requests whose Host header names this machine, and sends a content security policy without inline scripts or styles.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from markupsafe import Markup
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from brainmri_core.classifier.neighbours import Neighbours, find_neighbours
from brainmri_core.config.formats import READABLE
from brainmri_core.errors import ConfigError
from brainmri_core.pages.environment import rendered
from brainmri_core.pictures.thumbnails import colour_bar, data_uri, overlay, resized
from brainmri_core.predict import NOTICE, Classifier, Prediction

HOST = "127.0.0.1"
MAX_UPLOAD_BYTES = 32 << 20
# A page of another origin cannot send this type without a CORS preflight request, which is not answered.
UPLOAD_TYPE = "application/octet-stream"
_NEAREST = 4
_PICTURE, _THUMB = 384, 160
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def make_app(classifier: Classifier) -> Starlette:
    """Return the page of a classifier as an ASGI application.

    Parameters
    ----------
    classifier : Classifier
        The model that predicts the uploads.

    Returns
    -------
    starlette.applications.Starlette
        Serves the page, its style and script, and ``POST /classify``.
    """
    page = _Page(classifier)
    return Starlette(
        routes=[
            Route("/", page.home),
            Route("/app.css", page.style),
            Route("/app.js", page.script),
            Route("/classify", page.classify, methods=["POST"]),
        ],
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=_with_headers),
            Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False),
        ],
    )


async def _with_headers(request: Request, follow: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await follow(request)
    response.headers.update(_HEADERS)
    return response


class _Page:
    """The routes of the page of one classifier."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.neighbours: Neighbours | None = find_neighbours(classifier.weights, classifier.inference)
        self.one_at_a_time = threading.Lock()

    async def home(self, _: Request) -> Response:
        return _html(
            "app.html.j2",
            meta=self.classifier.meta,
            caveats=self.classifier.caveats()[1:],
            max_bytes=MAX_UPLOAD_BYTES,
            readable=READABLE,
            has_neighbours=self.neighbours is not None,
        )

    async def style(self, _: Request) -> Response:
        text = "".join(rendered(name) for name in ("evaluation.css", "app.css"))
        return Response(text, media_type="text/css")

    async def script(self, _: Request) -> Response:
        return Response(rendered("app.js"), media_type="text/javascript")

    async def classify(self, request: Request) -> Response:
        """Answer an uploaded image with the HTML fragment of its result."""
        if request.headers.get("content-type") != UPLOAD_TYPE:
            return _refusal(f"Send the image as {UPLOAD_TYPE}.", 415)
        data = await _body(request)
        if data is None:
            return _refusal(
                f"The file has more than {MAX_UPLOAD_BYTES >> 20} MiB; use the command line for it.", 413
            )
        if not data:
            return _refusal("The file is empty.", 422)
        found = await run_in_threadpool(self.predict, data)
        if found.error is not None:
            return _refusal(found.error.replace("bytes 0", "This file", 1), 422)
        return _html("app_result.html.j2", **await run_in_threadpool(self.shown, found))

    def predict(self, data: bytes) -> Prediction:
        """Predict an image, or the middle slice of a volume."""
        with self.one_at_a_time:
            stream = self.classifier.stream([data], maps=True)
            return next(
                item for item in stream if item.slices is None or item.slice == (item.slices + 1) // 2
            )

    def shown(self, found: Prediction) -> dict[str, Any]:
        """Return the values of the result's template."""
        assert found.pixels is not None
        heat = found.heatmap
        ranked = sorted(found.probabilities.items(), key=lambda item: -item[1])
        with self.one_at_a_time:
            near = self.neighbours.nearest(found.pixels, _NEAREST) if self.neighbours else []
        return {
            "found": found,
            "ranked": ranked,
            "calibrated": self.classifier.temperature is not None,
            "threshold": self.classifier.outliers.threshold if self.classifier.outliers else None,
            "image": data_uri(resized(found.pixels, _PICTURE), 90),
            "overlay": None if heat is None else data_uri(resized(overlay(found.pixels, heat), _PICTURE), 90),
            "unsupported": heat is not None and not heat.any(),
            "bar": data_uri(colour_bar(240, 12), 90),
            "near": [(item, data_uri(resized(item.pixels, _THUMB))) for item in near],
            "by_features": bool(near) and near[0].likeness is not None,
            "is_copy": bool(near) and near[0].is_copy,
        }


async def _body(request: Request) -> bytes | None:
    """Read an upload into memory; return None as soon as it is known to be too large."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > MAX_UPLOAD_BYTES:
        return None
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_UPLOAD_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)


def _html(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    text = rendered(template, notice=NOTICE, **values)
    return HTMLResponse(text, status)


def _refusal(text: str, status: int) -> HTMLResponse:
    return HTMLResponse(Markup('<div class="box red" role="alert"><b>✗</b>{}</div>').format(text), status)


def serve(classifier: Classifier, port: int) -> None:
    """Serve the page on loopback until interrupted.

    Parameters
    ----------
    classifier : Classifier
        The model that predicts the uploads.
    port : int
        TCP port; 0 takes a free one.

    Raises
    ------
    ConfigError
        If the port cannot be used.
    """
    import uvicorn

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        raise ConfigError(
            f"The port {port} cannot be used ({error.strerror}); choose another with --port."
        ) from None
    with listener:
        app = make_app(classifier)
        print(f"http://{HOST}:{listener.getsockname()[1]}/  (Ctrl-C ends it)", flush=True)
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, limit_concurrency=32
        )
        uvicorn.Server(settings).run(sockets=[listener])
