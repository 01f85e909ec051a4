"""One bucket of an object store, through obstore: conditional writes, retries, and one error sentence for each problem.

Credentials come from the environment variables of the store's own tools. Of the store's answers only the error code is
shown, because their text holds names of keys.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from brainmri_core.errors import ConfigError, StorageError
from brainmri_core.system.storage import atomic_file
from brainmri_core.system.store_url import SCHEMES

PATIENCE_VARIABLE = "BRAINMRI_STORE_PATIENCE_S"
_PATIENCE_S = 120.0
_LONGEST_PAUSE_S = 5.0
_REQUEST_TIMEOUT = "60s"
_MOST_INCOMPLETE = 6
_PART = 1 << 20
_LARGEST_COPY = 5 << 30
"""Bytes; S3 copies no larger object in one request."""
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>")
_NOT_THE_KEYS = {
    "SignatureDoesNotMatch",
    "InvalidAccessKeyId",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "AuthenticationFailed",
}
T = TypeVar("T")


def blob(sha256: str) -> str:
    """Return the name of the object that holds a content."""
    return f"blobs/sha256/{sha256[:2]}/{sha256}"


@dataclass(frozen=True)
class Listed:
    """An object as a listing shows it.

    Attributes
    ----------
    modified : float
        When it was written, in seconds since 1970 by the clock of the store.
    """

    name: str
    size: int
    modified: float


class LostRaceError(Exception):
    """Another process has changed an object since it was read."""


class Bucket:
    """The objects below a URL, by name.

    A request that fails by an error of the server, a lost connection or a wrong length is tried again for
    ``BRAINMRI_STORE_PATIENCE_S`` (120) seconds.

    Parameters
    ----------
    url : str
        A URL from `checked_url`.
    patience : float or None
        Seconds of further tries in place of those of the environment.

    Raises
    ------
    ConfigError
        If obstore is not installed, or the environment's settings for the store are wrong.
    """

    def __init__(self, url: str, patience: float | None = None) -> None:
        try:
            import obstore
            import obstore.store
        except ImportError:
            raise ConfigError(
                f"The project is {url}, and obstore, which reads it, is not installed; pip install 'brainmri[cloud]'."
            ) from None
        self.url = url
        self._scheme = url.partition("://")[0]
        self._obstore = obstore
        connect: Any = obstore.store.from_url
        self._patience_s = patience_s() if patience is None else patience
        self._is_away = False
        insecure = os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL", "")).startswith(
            "http://"
        )
        options: dict[str, Any] = {"timeout": _REQUEST_TIMEOUT, **({"allow_http": True} if insecure else {})}
        retries: dict[str, Any] = {"max_retries": 2, "retry_timeout": timedelta(seconds=self._patience_s)}
        try:
            self._store: Any = connect(url, client_options=options, retry_config=retries)
        except (ValueError, obstore.exceptions.BaseError):
            raise ConfigError(
                f"The settings of the environment for {url} cannot be used; check those of the store's own tools "
                f"({SCHEMES[self._scheme]} and the end point)."
            ) from None

    def get(self, name: str) -> bytes | None:
        """Return an object's content, None where there is none."""
        found = self.get_tagged(name)
        return None if found is None else found[0]

    def get_tagged(self, name: str) -> tuple[bytes, Any] | None:
        """Return an object's content and its version tag for `compare_and_put`, None where there is none."""

        def read() -> tuple[bytes, Any] | None:
            answer = self._obstore.get(self._store, name)
            data = bytes(answer.bytes())
            self._check_whole(name, data, answer.meta)
            return data, self._tag(answer.meta)

        return self._patiently(read, "read", absent=_none)

    def _check_whole(self, name: str, data: bytes, meta: Any) -> None:
        """Compare an answer with its tag, which S3 makes of the content; elsewhere with what the store says of the object."""
        tag = str(meta["e_tag"]).strip('"')
        if tag != hashlib.md5(data, usedforsecurity=False).hexdigest():
            stored = self._obstore.head(self._store, name)
            if (len(data), meta["e_tag"]) != (stored["size"], stored["e_tag"]):
                raise _Incomplete

    def size(self, name: str) -> int | None:
        """Return an object's length in bytes, None where there is none."""

        def look() -> int | None:
            return int(self._obstore.head(self._store, name)["size"])

        return self._patiently(look, "read", absent=_none)

    def put(self, name: str, data: bytes) -> None:
        """Write an object, and replace an earlier one."""
        self._patiently(lambda: self._obstore.put(self._store, name, data), "write")

    def put_new(self, name: str, data: bytes) -> bool:
        """Write an object that must not exist yet; return False, changing nothing, when it does.

        The answer to an earlier try may have been lost after the store had written, so an object with the content `data`
        counts as written by this call. Two writers that compete for a name must therefore write different contents.
        """

        def create() -> bool:
            try:
                self._obstore.put(self._store, name, data, mode="create")
            except self._obstore.exceptions.AlreadyExistsError:
                return self.get(name) == data
            return True

        return self._patiently(create, "write")

    def compare_and_put(self, name: str, data: bytes, tag: Any) -> None:
        """Write an object that must still have the version of a tag.

        Raises
        ------
        LostRaceError
            If it has another version: read it again and decide again. It may hold `data` already, where the answer of an
            earlier try was lost.
        """

        def replace() -> None:
            try:
                self._obstore.put(self._store, name, data, mode=tag)
            except self._obstore.exceptions.PreconditionError:
                raise LostRaceError from None

        def gone() -> None:
            raise LostRaceError

        self._patiently(replace, "write", absent=gone)

    def check_conditions(self) -> None:
        """Try, on an object that is removed again, whether the store heeds the conditions of writes.

        Raises
        ------
        StorageError
            If it does not, so that two machines could overwrite each other's results.
        """
        name = f"probe-{secrets.token_hex(16)}"
        try:
            heeded = self.put_new(name, b"first") and not self.put_new(name, b"second")
            found = self.get_tagged(name)
            if heeded and found is not None:
                # Nobody else writes it: what is beaten here is a try whose answer was lost.
                with contextlib.suppress(LostRaceError):
                    self.compare_and_put(name, b"third", found[1])
                try:
                    self.compare_and_put(name, b"fourth", found[1])
                    heeded = False
                except LostRaceError:
                    heeded = self.get(name) == b"third"
        finally:
            self.remove(name)
        if not heeded or found is None:
            raise StorageError(
                f"Cannot use {self.url}: the store does not heed the conditions of a write (only if new, only if unchanged), "
                "so that two machines could overwrite each other's results; use one that does."
            )

    def list(self, prefix: str) -> list[str]:
        """Return the names of all objects below a prefix, which ends with a slash."""
        return [item.name for item in self.listed(prefix)]

    def listed(self, prefix: str) -> Sequence[Listed]:
        """Return all objects below a prefix, which ends with a slash, by name."""

        def look() -> Sequence[Listed]:
            found = [item for part in self._obstore.list(self._store, prefix) for item in part]
            every = (Listed(item["path"], item["size"], item["last_modified"].timestamp()) for item in found)
            return sorted(every, key=lambda item: item.name)

        return self._patiently(look, "read", absent=tuple)

    def now(self) -> float:
        """Return the time by the clock of the store: that at which it writes an object, which is removed again."""
        name = f"probe-{secrets.token_hex(16)}"

        def write() -> float:
            self._obstore.put(self._store, name, b"")
            return float(self._obstore.head(self._store, name)["last_modified"].timestamp())

        try:
            return self._patiently(write, "write")
        finally:
            self.remove(name)

    def age(self, name: str) -> float | None:
        """Return how many seconds ago an object was written, by the clock of the store, None where there is none.

        Stores give whole seconds, so it may be wrong by one.
        """

        def look() -> float:
            return float(self._obstore.head(self._store, name)["last_modified"].timestamp())

        written = self._patiently(look, "read", absent=_none)
        return None if written is None else self.now() - written

    def copy(self, name: str, target: str, size: int) -> bool:
        """Copy an object within the bucket; return False where there is none."""

        def copy() -> bool:
            if size <= _LARGEST_COPY:
                self._obstore.copy(self._store, name, target)
            else:
                self._obstore.put(self._store, target, self._obstore.get(self._store, name).stream())
            return True

        return self._patiently(copy, "write", absent=lambda: False)

    def remove(self, name: str) -> None:
        """Remove an object, if it exists."""
        self._patiently(lambda: self._obstore.delete(self._store, name), "remove from", absent=lambda: None)

    def upload(self, name: str, path: Path) -> None:
        """Write a file as an object, in parts where it is large."""
        self._patiently(lambda: self._obstore.put(self._store, name, path), "write")

    def download(self, name: str, target: Path, sha256: str) -> bool:
        """Download an object to a file, which appears only when it is complete and has the SHA-256.

        Returns
        -------
        bool
            False where there is no such object.

        Raises
        ------
        StorageError
            If the file cannot be written, or the content is wrong at every try.
        """

        def bring() -> bool:
            parts = self._obstore.get(self._store, name).stream(min_chunk_size=_PART)
            with atomic_file(target) as handle:
                digest = hashlib.sha256()
                for part in _streamed(parts):
                    digest.update(part)
                    handle.write(part)
                if digest.hexdigest() != sha256:
                    raise _Incomplete
            return True

        return self._patiently(bring, "read", absent=lambda: False)

    def _tag(self, meta: Any) -> Any:
        return {"version": meta["version"]} if self._scheme == "gs" else {"e_tag": meta["e_tag"]}

    def _patiently(self, action: Callable[[], T], verb: str, absent: Callable[[], T] | None = None) -> T:
        """Repeat an action while it fails for a temporary reason; return ``absent()`` where the object does not exist."""
        exceptions = self._obstore.exceptions
        end, pause, incomplete = time.monotonic() + (0 if self._is_away else self._patience_s), 0.1, 0
        while True:
            try:
                done = action()
                self._is_away = False
                return done
            except _Incomplete:
                incomplete += 1
                problem = "what comes is not what was stored: the connection is bad, or the object is damaged"
            except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
                raise self._refused(error, verb) from None
            except (exceptions.BaseError, FileNotFoundError) as error:
                self._refuse_no_bucket(error)
                if absent is not None and isinstance(error, FileNotFoundError):
                    return absent()
                problem = self._away(error)
            if time.monotonic() > end or incomplete == _MOST_INCOMPLETE:
                self._is_away = True  # later requests fail at once, without waiting again
                raise StorageError(
                    f"Cannot {verb} {self.url}: {problem}; nothing was changed there, run again when it is well."
                ) from None
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _away(self, error: Exception) -> str:
        text = str(error)
        if "169.254.169.254" in text or "metadata.google.internal" in text:
            raise StorageError(
                f"Cannot read {self.url}: there are no credentials; set {SCHEMES[self._scheme]} as for the store's own tools."
            ) from None
        code = _CODE.search(text)
        return f"the store answers {code[1]}" if code else "the store does not answer"

    def _refuse_no_bucket(self, error: Exception) -> None:
        code = _CODE.search(str(error))
        if code is not None and code[1] in ("NoSuchBucket", "ContainerNotFound"):
            raise StorageError(
                f"Cannot use {self.url}: there is no such bucket; create it, or correct paths.root."
            ) from None

    def _refused(self, error: Exception, verb: str) -> StorageError:
        code = _CODE.search(str(error))
        if code is not None and code[1] == "RequestTimeTooSkewed":
            why = "this machine's clock is wrong; set it"
        elif code is not None and code[1] in _NOT_THE_KEYS:
            why = f"the credentials are wrong or have expired; check {SCHEMES[self._scheme]}"
        else:
            why = "permission is denied; let the account read, list and write there, or use another one"
        return StorageError(f"Cannot {verb} {self.url}: {why}.")


class _Incomplete(Exception):
    """The downloaded content differs from the stored one in length or checksum."""


def _none() -> None:
    return None


def _streamed(parts: Any) -> Iterator[bytes]:
    """Yield the parts of a stream; its OSError comes from the store and must not look like an error of the disk."""
    iterator = iter(parts)
    while True:
        try:
            part = next(iterator)
        except StopIteration:
            return
        except OSError as error:
            raise _Incomplete from error
        yield bytes(part)


def patience_s() -> float:
    """Return how many seconds a server that is away is waited for.

    Raises
    ------
    ConfigError
        If the environment names no such number.
    """
    value = os.environ.get(PATIENCE_VARIABLE, "")
    try:
        seconds = float(value or _PATIENCE_S)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise ConfigError(f"{PATIENCE_VARIABLE} is {value!r}; write seconds, from 0 to 86400.")
    return seconds
