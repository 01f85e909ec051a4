"""The Kaggle API: credentials, retries, and error messages.

Errors of requests and urllib3 hold signed URLs and sometimes header values in their text. They are replaced by our own
errors outside the `except` blocks, so that no exception keeps one of them as its context.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ReadTimeoutError

from brainmri_core import __version__
from brainmri_core.config.data import RetryConfig
from brainmri_core.errors import SourceError
from brainmri_core.system.clock import utc_now

TWO_WAYS = (
    "set KAGGLE_API_TOKEN to a token from https://www.kaggle.com/settings, or put the kaggle.json from there into "
    "~/.kaggle (KAGGLE_USERNAME and KAGGLE_KEY do as well)"
)
NO_NETWORK = "fetch.offline: true takes what was downloaded before, fetch.archive a zip downloaded by hand"
_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_ENVIRONMENTS = (None, "PROD", "LOCALHOST", "QA", "TEST")
T = TypeVar("T")


class Log(Protocol):
    """A callback with the signature of `StageLog.info`."""

    def __call__(self, event: str, **fields: Any) -> None:
        """Log one event."""


class Transient(Exception):
    """A failure worth another try; its text names no URL."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class _TimedAdapter(HTTPAdapter):
    """Give every request a timeout; the SDK sets none."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__()
        self._timeout_s = timeout_s

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request; the timeout applies to connecting and to each wait for bytes."""
        kwargs["timeout"] = (min(10.0, self._timeout_s), self._timeout_s)
        return super().send(request, *args, **kwargs)


@dataclass(frozen=True)
class Connection:
    """An open client for one data set.

    Attributes
    ----------
    api : kagglesdk.datasets.services.dataset_api_service.DatasetApiClient
        The SDK's calls.
    storage : requests.Session
        Session for the storage server that downloads are redirected to; it never sends credentials.
    signed_in : bool
        Whether the calls carry credentials.
    """

    dataset: str
    api: Any
    storage: requests.Session
    signed_in: bool
    timeout_s: float

    def ask(self, call: Callable[[], T], version: int | None = None) -> T:
        """Make one call.

        Raises
        ------
        Transient
            If the call is worth another try.
        SourceError
            If Kaggle refuses the call, or the answer is not from its API.
        """
        problem: Exception
        try:
            return call()
        except requests.HTTPError as error:
            problem = self._foreign() if error.response is None else self._refusal(error.response, version)
        except requests.exceptions.SSLError:
            problem = SourceError(
                "The TLS certificate of the server that answers for Kaggle was not accepted; behind a proxy that inspects "
                "TLS, set REQUESTS_CA_BUNDLE to its certificate."
            )
        except requests.exceptions.JSONDecodeError:
            problem = self._foreign()
        except (requests.RequestException, ConnectionError, TimeoutError) as error:
            problem = Transient(self.words(error))
        except (ValueError, KeyError, TypeError, AttributeError):
            problem = self._foreign()
        raise problem

    def chunks(self, response: requests.Response, size: int) -> Iterator[bytes]:
        """Yield a body piece by piece.

        Raises
        ------
        Transient
            If the connection breaks or stalls.
        """
        try:
            yield from response.iter_content(size)
            return
        except (requests.RequestException, ConnectionError, TimeoutError) as error:
            reason = self.words(error)
        raise Transient(reason)

    def words(self, error: Exception) -> str:
        """Describe a network error without the library's text, which may hold a signed URL."""
        inner = error.args[0] if error.args else None
        if isinstance(error, requests.Timeout | TimeoutError) or isinstance(inner, ReadTimeoutError):
            return f"the server stayed silent for {self.timeout_s:g} s (fetch.retry.timeout_s)"
        if isinstance(error, requests.exceptions.ProxyError):
            return "the proxy refused the connection"
        return "the connection failed or broke"

    def _refusal(self, response: requests.Response, version: int | None) -> Exception:
        status = response.status_code
        if status < 400:  # the SDK also raises for an error code inside a JSON answer
            status = int(response.json()["code"])
        page = f"https://www.kaggle.com/datasets/{self.dataset}"
        if status in _TRY_AGAIN or response.history:
            # A refusal after a redirect means that the signature has expired: the next try gets a new one.
            return Transient(
                f"the server answered HTTP {status}",
                retry_after_s(response.headers.get("Retry-After"), utc_now()),
            )
        if status == 404:
            what = f"version {version} of {self.dataset}" if version else f"data set {self.dataset}"
            return SourceError(
                f"Kaggle has no {what} (HTTP 404); check fetch.dataset and fetch.version at {page}."
            )
        if status in (401, 403) and not self.signed_in:
            return SourceError(
                f"Kaggle gives {self.dataset} to signed-in users only (HTTP {status}) and no credentials were found: {TWO_WAYS}; "
                f"then accept the terms at {page} if it asks for that."
            )
        if status == 401:
            return SourceError(
                f"Kaggle refused the credentials for {self.dataset} (HTTP 401), which are wrong or expired: {TWO_WAYS}."
            )
        if status == 403:
            return SourceError(
                f"Kaggle denies access to {self.dataset} (HTTP 403): sign in at {page} with the same account and accept the terms "
                "there; a private or misspelt data set is denied like this too."
            )
        return SourceError(
            f"Kaggle refused the request for {self.dataset} (HTTP {status}); try again later, or {NO_NETWORK}."
        )

    def _foreign(self) -> SourceError:
        return SourceError(
            f"The answer to a request about {self.dataset} is not from Kaggle's API; a proxy or a sign-in page may be in "
            f"between: {NO_NETWORK}."
        )


@contextmanager
def connect(dataset: str, timeout_s: float) -> Iterator[Connection]:
    """Open a client with the user's credentials, if there are any.

    Raises
    ------
    SourceError
        If the credentials cannot be read or are not credentials.
    """
    from kagglesdk import KaggleClient

    if os.environ.get("KAGGLE_API_ENVIRONMENT") not in _ENVIRONMENTS:
        raise SourceError("KAGGLE_API_ENVIRONMENT names no known Kaggle environment; unset it.")
    credentials = _credentials()
    client = KaggleClient(user_agent=f"brainmri/{__version__}", verbose=False, **credentials)
    with _signatures_out_of_logs(), requests.Session() as storage, client:
        storage.auth = _anonymous
        for session in (storage, client.http_client()._session):
            session.rebuild_auth = _unauthorised  # type: ignore[method-assign]
            session.headers["Accept-Encoding"] = "identity"
            session.mount("https://", _TimedAdapter(timeout_s))
            session.mount("http://", _TimedAdapter(timeout_s))
        yield Connection(dataset, client.datasets.dataset_api_client, storage, bool(credentials), timeout_s)


def _anonymous(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Add no credentials; without this function, requests would take those of the host in ~/.netrc."""
    return request


def _unauthorised(request: requests.PreparedRequest, response: requests.Response) -> None:
    """Send no credentials after a redirect, neither Kaggle's nor those of the host in ~/.netrc."""
    request.headers.pop("Authorization", None)


def _credentials() -> dict[str, str]:
    """Return the user's credentials as arguments of the SDK's client, searched in Kaggle's order; empty without any."""
    from kagglesdk.kaggle_env import get_access_token_from_env

    value = os.environ.get("KAGGLE_API_TOKEN", "")
    try:
        # The SDK first takes the value for a file name, and fails where it is too long for one.
        token = value if len(value) > 255 and "/" not in value else get_access_token_from_env()[0]
    except (OSError, ValueError):
        token = "\0"
    if token:
        return {
            "api_token": _sendable(token, "the access token (KAGGLE_API_TOKEN or ~/.kaggle/access_token)")
        }
    name, key = os.environ.get("KAGGLE_USERNAME"), os.environ.get("KAGGLE_KEY")
    if name and key:
        where = "KAGGLE_USERNAME and KAGGLE_KEY"
        return {"username": _sendable(name, where), "password": _sendable(key, where)}
    configured = os.environ.get("KAGGLE_CONFIG_DIR")
    folders = [Path(configured)] if configured else []
    for folder in (*folders, Path("~/.kaggle"), Path("~/.config/kaggle")):
        path = folder.expanduser() / "kaggle.json"
        where = f"the file {path}"
        try:
            if not path.exists():
                continue
            found = json.loads(path.read_text())
            name, key = str(found["username"]), str(found["key"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            name = key = "\0"
        return {"username": _sendable(name, where), "password": _sendable(key, where)}
    return {}


def _sendable(secret: str, where: str) -> str:
    secret = secret.strip()
    if not secret or not all("!" <= char <= "~" for char in secret):
        raise SourceError(
            f"Kaggle credentials cannot be read: {where} is unreadable or holds something else; {TWO_WAYS}."
        )
    return secret


@contextmanager
def _signatures_out_of_logs() -> Iterator[None]:
    """Remove the query, which holds the signature, from the URLs in urllib3's debug log."""

    def cut(record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                item.partition("?")[0] if isinstance(item, str) else item for item in record.args
            )
        return True

    logger = logging.getLogger("urllib3.connectionpool")
    logger.addFilter(cut)
    try:
        yield
    finally:
        logger.removeFilter(cut)


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """Return the seconds that a Retry-After header asks to wait; None where it is absent or invalid.

    Parameters
    ----------
    header : str or None
        A number of seconds or an HTTP date.
    now : datetime.datetime
        Current time, with time zone.
    """
    text = (header or "").strip()
    if re.fullmatch(r"[0-9]+", text):
        return float(text[:18])
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - now).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return None


def persist(
    step: Callable[[], T],
    retry: RetryConfig,
    log: Log,
    *,
    failed: str,
    held: Callable[[], int] = lambda: 0,
) -> T:
    """Repeat a step until it succeeds, or fails `retry.attempts` times without progress.

    The pauses double up to `retry.max_delay_s`, with jitter so that many clients do not return at the same moment. A
    Retry-After header is obeyed, unless it is longer than `retry.max_retry_after_s`.

    Parameters
    ----------
    step : callable
        Raises `Transient` for a failure that is worth another try.
    retry : RetryConfig
        Tries and pauses.
    log : callable
        Called before every further try.
    failed : str
        Template of the final error, with ``{reason}`` and ``{times}``.
    held : callable
        Returns the bytes received so far.

    Raises
    ------
    SourceError
        When the tries are used up, or the server asks for too long a pause.
    """
    jitter = random.SystemRandom()
    failures, furthest = 0, held()
    while True:
        try:
            return step()
        except Transient as error:
            reason, asked = str(error), error.retry_after_s
        failures = 1 if held() > furthest else failures + 1
        furthest = max(furthest, held())
        if failures >= retry.attempts:
            raise SourceError(failed.format(reason=reason, times=failures))
        if asked is not None and asked > retry.max_retry_after_s:
            reason += f", and asks to wait {asked:.0f} s, longer than fetch.retry.max_retry_after_s"
            raise SourceError(failed.format(reason=reason, times=failures))
        backoff = retry.base_delay_s * 2.0 ** (failures - 1) * jitter.uniform(0.5, 1.0)
        pause = max(min(retry.max_delay_s, backoff), asked or 0.0)
        log("trying again", reason=reason, failures=failures, pause_s=round(pause, 3))
        time.sleep(pause)
