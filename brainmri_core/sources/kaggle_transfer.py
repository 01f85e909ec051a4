"""Download of one file from Kaggle's storage over as many connections as needed, with verification."""

from __future__ import annotations

import base64
import errno
import hashlib
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import requests

from brainmri_core.config.data import ArchiveLimits, RetryConfig
from brainmri_core.errors import IntegrityError, SourceError, StorageError
from brainmri_core.sources.archive import BROKEN_ZIP, check_count
from brainmri_core.sources.kaggle_api import (
    NO_NETWORK,
    Connection,
    Log,
    Transient,
    connect,
    persist,
    retry_after_s,
)
from brainmri_core.system.clock import utc_now
from brainmri_core.system.json_files import read_json, write_json
from brainmri_core.system.storage import storage_error

_CHUNK = 1 << 16
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class _Remote:
    """What identifies the remote file: a partial download continues only if all of this is unchanged."""

    size: int | None
    md5: str | None
    validator: str | None


def transfer(
    dataset: str,
    version: int,
    part: Path,
    retry: RetryConfig,
    limits: ArchiveLimits,
    progress: Progress | None,
    log: Log,
) -> None:
    """Download one version's archive into `part`, continuing what is there, until it is complete and verified.

    Parameters
    ----------
    dataset : str
        ``owner/slug``.
    version : int
        Version of the data set on Kaggle.
    part : pathlib.Path
        File of the partial download.
    retry : RetryConfig
        Number of tries and pauses between them.
    limits : ArchiveLimits
        Largest size of the archive.
    progress : callable or None
        Called with the bytes downloaded and the total (None if unknown).
    log : callable
        Called with the events of the download.

    Raises
    ------
    SourceError
        If the tries are used up, Kaggle refuses, the archive is too large, or it arrives damaged twice.
    StorageError
        If `part` cannot be written, or the disk has no room for it.
    """
    damages = 0

    def step() -> None:
        nonlocal damages
        remote = _receive(connection, version, part, limits, progress, log)
        damage = _damage(part, remote, limits)
        if damage is None:
            return
        part.unlink()
        damages += 1
        if damages > 1:
            raise SourceError(
                f"The archive of {dataset} arrived twice and {damage} both times; Kaggle's file is damaged, or something in "
                "between changes it: try again later, or give fetch.archive a zip downloaded by hand."
            )
        raise Transient(f"the archive arrived, but {damage}")

    with connect(dataset, retry.timeout_s) as connection:
        persist(
            step,
            retry,
            log,
            held=lambda: part.stat().st_size if part.exists() else 0,
            failed=f"The download of {dataset} stopped: {{reason}} ({{times}} tries without progress); what arrived is kept, "
            f"so run it again to go on, or {NO_NETWORK}.",
        )


def part_record(part: Path) -> Path:
    """Return the path of the record of a part's remote file."""
    return part.with_name(f"{part.name}.json")


def _receive(
    connection: Connection,
    version: int,
    part: Path,
    limits: ArchiveLimits,
    progress: Progress | None,
    log: Log,
) -> _Remote:
    """Receive the remote file, or what is missing of it, into the part."""
    response = _open(connection, version)
    remote = _described(response)
    offset = _continuable(part, remote)
    if offset and offset == remote.size:
        response.close()
        return remote
    if offset:
        response.close()  # it was opened only for its new signed URL and its headers
        headers = {"Range": f"bytes={offset}-", "If-Range": str(remote.validator)}
        url = response.url
        response = connection.ask(lambda: connection.storage.get(url, headers=headers, stream=True))
        if response.status_code == 200:
            remote, offset = _described(response), 0
        elif response.status_code != 206:
            response.close()
            if response.status_code == 416:
                part.unlink()
            raise Transient(
                f"the server answered HTTP {response.status_code} when asked for the rest",
                retry_after_s(response.headers.get("Retry-After"), utc_now()),
            )
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            response.close()
            part.unlink()
            raise Transient("the server sent another range than asked for")
    log("receiving", version=version, from_byte=offset, bytes=remote.size)
    with response:
        _check_room(connection.dataset, remote.size or 0, offset, part, limits)
        _write(connection, response, part, offset, remote, limits, progress, log)
    return remote


def _check_room(dataset: str, size: int, offset: int, part: Path, limits: ArchiveLimits) -> None:
    """Refuse an archive that exceeds the limit or the free disk space."""
    if size > limits.max_archive_bytes:
        raise SourceError(
            f"The archive of {dataset} has {size} bytes or more, more than fetch.limits.max_archive_bytes "
            f"({limits.max_archive_bytes}); raise the limit if that is right."
        )
    free = shutil.disk_usage(part.parent).free
    if size - offset > free:
        raise StorageError(
            f"Cannot write {part}: {size - offset} bytes are still to come and the disk has {free} left; free some and run "
            "again."
        )


def _open(connection: Connection, version: int) -> requests.Response:
    """Ask for the archive and follow the redirect to a signed URL; the body is left unread."""
    from kagglesdk.datasets.types.dataset_api_service import ApiDownloadDatasetRequest

    request = ApiDownloadDatasetRequest()
    request.owner_slug, request.dataset_slug = connection.dataset.split("/")
    request.dataset_version_number = version
    response: requests.Response = connection.ask(lambda: connection.api.download_dataset(request), version)
    return response


def _described(response: requests.Response) -> _Remote:
    length = response.headers.get("Content-Length", "")
    etag = response.headers.get("ETag", "")
    found = re.search(r"md5=([A-Za-z0-9+/]{22}==)", response.headers.get("x-goog-hash", ""))
    return _Remote(
        size=int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None,
        md5=base64.b64decode(found[1]).hex() if found else None,
        # A weak ETag (W/"...") does not guarantee equal bytes.
        validator=etag if etag.startswith('"') else response.headers.get("Last-Modified"),
    )


def _continuable(part: Path, remote: _Remote) -> int:
    """Return how many bytes of a part belong to the current remote file."""
    if not part.is_file() or remote.validator is None or remote.size is None:
        return 0
    try:
        known = part_record(part).is_file() and read_json(part_record(part)) == asdict(remote)
    except IntegrityError:
        return 0
    size = part.stat().st_size
    return size if known and size <= remote.size else 0


def _write(
    connection: Connection,
    response: requests.Response,
    part: Path,
    offset: int,
    remote: _Remote,
    limits: ArchiveLimits,
    progress: Progress | None,
    log: Log,
) -> None:
    done, total = offset, remote.size
    line = max(total // 10, 1) if total else 1 << 26
    try:
        if not offset:
            part.unlink(missing_ok=True)
            write_json(part_record(part), asdict(remote))
        with part.open("ab") as handle:
            for chunk in connection.chunks(response, _CHUNK):
                handle.write(chunk)
                before, done = done, done + len(chunk)
                if total is not None and done > total:
                    break
                if done > limits.max_archive_bytes:
                    _check_room(connection.dataset, done, done, part, limits)
                if progress is not None:
                    progress(done, total)
                if done // line > before // line:
                    log("downloading", bytes=done, **({"percent": 100 * done // total} if total else {}))
    except OSError as error:
        raise storage_error(error, part) from error
    if total is not None and done > total:
        part.unlink()
        raise Transient("more bytes arrived than the server had declared")
    if total is not None and done != total:
        raise Transient(f"{done} of {total} bytes arrived")


def md5_file(path: Path) -> str:
    """Return the MD5 of a file as hexadecimal text; Kaggle's storage declares no stronger checksum."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _damage(part: Path, remote: _Remote, limits: ArchiveLimits) -> str | None:
    """Describe the damage of a complete part; None if there is none.

    The storage declares no MD5 for files that were uploaded in pieces; then the archive's own checksums are tested.
    """
    if remote.md5 is not None:
        return None if md5_file(part) == remote.md5 else "its checksum was wrong"
    try:
        check_count(part, limits)
        with zipfile.ZipFile(part) as archive:
            declared = sum(info.file_size for info in archive.infolist())
            if declared > min(limits.max_total_bytes, limits.max_ratio * part.stat().st_size):
                return None  # perhaps a zip bomb, which must not be read here: unpacking refuses it by the limits
            wrong = archive.testzip()
    except OSError as error:
        if error.errno != errno.EINVAL:  # zipfile seeks before the start of a truncated file
            raise storage_error(error, part, "read") from error
        return "it was no whole zip archive"
    except MemoryError as error:
        raise storage_error(OSError(errno.ENOMEM, ""), part, "read") from error
    except BROKEN_ZIP:
        return "it was no whole zip archive"
    return None if wrong is None else "an entry's checksum was wrong"
