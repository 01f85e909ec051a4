"""Data sets from Kaggle: their description, and downloads that are resumed, checked and kept by version."""

from __future__ import annotations

import re
from datetime import UTC
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from brainmri_core.config.data import ArchiveLimits, RetryConfig
from brainmri_core.errors import IntegrityError, SourceError
from brainmri_core.sources.kaggle_api import NO_NETWORK, Connection, Log, connect, persist
from brainmri_core.sources.kaggle_transfer import Progress, md5_file, part_record, transfer
from brainmri_core.system.clock import timestamp, utc_now
from brainmri_core.system.json_files import read_json, write_json
from brainmri_core.system.locks import exclusive
from brainmri_core.system.storage import make_dirs, publish_file, storage_error

_KEY = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*/[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


class DatasetInfo(BaseModel):
    """Kaggle's description of one version of a data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    version: int = Field(ge=1)
    title: str | None
    licence: str | None
    total_bytes: int | None
    last_updated: str | None


class Download(BaseModel):
    """A verified archive on the local disk and its description."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    info: DatasetInfo


class _Record(BaseModel):
    """The record beside a complete archive, by which it can be checked without the network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    info: DatasetInfo
    bytes: int
    md5: str
    downloaded_at_utc: str


def dataset_info(
    dataset: str, *, version: int | None = None, retry: RetryConfig | None = None, log: Log | None = None
) -> DatasetInfo:
    """Ask Kaggle about a data set.

    Parameters
    ----------
    dataset : str
        Key, owner/slug.
    version : int or None
        Version to describe; None means the current one.
    retry : RetryConfig or None
        Tries, pauses and timeout; None means the defaults.
    log : callable or None
        Called before every further try.

    Returns
    -------
    DatasetInfo
        Size and title are those of the current version; for an older one the size is None.

    Raises
    ------
    SourceError
        If Kaggle cannot be reached, refuses, or has no such data set or version.
    """
    settings = retry or RetryConfig()
    with connect(_checked_key(dataset), settings.timeout_s) as connection:
        return persist(
            lambda: _ask_info(connection, version),
            settings,
            log or _silent,
            failed=f"Kaggle could not be asked about {dataset}: {{reason}} ({{times}} tries); check the connection and try "
            f"again, or {NO_NETWORK}.",
        )


def current_version(dataset: str, *, retry: RetryConfig | None = None) -> int:
    """Return the number of a data set's current version on Kaggle."""
    return dataset_info(dataset, retry=retry).version


def download(
    dataset: str,
    *,
    version: int | None,
    dest_dir: Path,
    retry: RetryConfig | None = None,
    limits: ArchiveLimits | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    log: Log | None = None,
) -> Download:
    """Download one version of a data set as a zip archive, unless it is there already.

    An interrupted download continues where it stopped, also in another process. Size and MD5 are checked against those
    that the server declares before the archive gets its name, ``<owner>__<slug>__v<version>.zip``.

    Parameters
    ----------
    dataset : str
        Key, owner/slug.
    version : int or None
        Version to fetch; None means the current one.
    dest_dir : pathlib.Path
        Folder of downloaded archives; made if need be.
    retry : RetryConfig or None
        Tries, pauses and timeout; None means the defaults.
    limits : ArchiveLimits or None
        Its `max_archive_bytes` limits the download; None means the defaults.
    offline : bool
        Never use the network: take the requested version, or the newest, from `dest_dir`.
    progress : callable or None
        Called with the bytes received and the total, which is None where the server does not declare it.
    log : callable or None
        Called with events, at most a dozen unless there are problems.

    Returns
    -------
    Download
        Path and description of the archive.

    Raises
    ------
    SourceError
        If the version cannot be downloaded: no network, no credentials, terms not accepted, no such data set, damaged.
    StorageError
        If the archive cannot be written.
    """
    stem = _checked_key(dataset).replace("/", "__")
    settings, tell = retry or RetryConfig(), log or _silent
    if offline or version is not None:
        wanted = _present_versions(dest_dir, stem) if version is None else [version]
        for number in wanted:
            if found := _cached(dest_dir, dataset, number, tell):
                return found
    if offline:
        raise SourceError(
            f"{dataset}{f' version {version}' if version else ''} was not downloaded before and fetch.offline is set; "
            "unset it once, or give fetch.archive a zip downloaded by hand."
        )
    info = dataset_info(dataset, version=version, retry=settings, log=tell)
    make_dirs(dest_dir)
    with exclusive(dest_dir / f".{stem}__v{info.version}.lock"):
        if found := _cached(dest_dir, dataset, info.version, tell):
            return found
        target = dest_dir / f"{stem}__v{info.version}.zip"
        part = target.with_name(f"{target.name}.part")
        transfer(dataset, info.version, part, settings, limits or ArchiveLimits(), progress, tell)
        record = _Record(
            info=info,
            bytes=part.stat().st_size,
            md5=md5_file(part),
            downloaded_at_utc=timestamp(utc_now()),
        )
        write_json(target.with_suffix(".json"), record.model_dump(mode="json"))
        publish_file(part, target)
        part_record(part).unlink(missing_ok=True)
    tell("downloaded", version=info.version, bytes=record.bytes)
    return Download(path=target, info=info)


def _silent(event: str, **fields: Any) -> None:
    """Log nothing."""


def _checked_key(dataset: str) -> str:
    if not _KEY.fullmatch(dataset):
        raise SourceError(f"{dataset!r} cannot be a Kaggle data set; write owner/slug.")
    return dataset


def _ask_info(connection: Connection, version: int | None) -> DatasetInfo:
    from kagglesdk.datasets.types.dataset_api_service import ApiGetDatasetRequest

    request = ApiGetDatasetRequest()
    request.owner_slug, request.dataset_slug = connection.dataset.split("/")
    return connection.ask(
        lambda: _described_version(connection.dataset, connection.api.get_dataset(request), version)
    )


def _described_version(dataset: str, answer: Any, version: int | None) -> DatasetInfo:
    current = answer.current_version_number
    dates = {item.version_number: item.creation_date for item in answer.versions}
    if not (answer.ref or current or dates):
        raise ValueError("the answer has no field of a data set")  # the SDK accepts any JSON
    number = version or current
    if not number:
        raise SourceError(f"Kaggle names no current version of {dataset}; pin one in fetch.version.")
    known = {current, *dates} - {0}
    if version is not None and (version > current > 0 or (dates and version not in known)):
        raise SourceError(
            f"Kaggle has no version {version} of {dataset}; it has {', '.join(map(str, sorted(known)[-10:]))}: correct "
            "fetch.version."
        )
    updated = answer.last_updated if number == current else dates.get(number)
    return DatasetInfo(
        dataset=dataset,
        version=number,
        title=answer.title or None,
        licence=answer.license_name or None,
        total_bytes=(answer.total_bytes or None) if number == current else None,
        last_updated=timestamp(updated.replace(tzinfo=UTC)) if updated else None,
    )


def _present_versions(dest_dir: Path, stem: str) -> list[int]:
    """Return the versions in the folder, newest first."""
    names = (path.name for path in dest_dir.glob(f"{stem}__v*.zip"))
    numbers = (re.fullmatch(rf"{re.escape(stem)}__v(\d{{1,9}})\.zip", name) for name in names)
    return sorted((int(match[1]) for match in numbers if match), reverse=True)


def _cached(dest_dir: Path, dataset: str, version: int, log: Log) -> Download | None:
    """Return the stored archive of a version, or None.

    An archive that is damaged (which is logged) or of another data set is not returned, and the download replaces it.
    """
    path = dest_dir / f"{dataset.replace('/', '__')}__v{version}.zip"
    if not path.is_file():
        return None
    beside = path.with_suffix(".json")
    try:
        record = _Record.model_validate(read_json(beside)) if beside.is_file() else None
        whole = record is not None and path.stat().st_size == record.bytes and md5_file(path) == record.md5
    except (IntegrityError, ValidationError):
        record, whole = None, False
    except OSError as error:
        raise storage_error(error, path, "read") from error
    if record is None or not whole:
        log("the downloaded archive is damaged", path=path.name)
        return None
    if (record.info.dataset, record.info.version) != (dataset, version):
        return None
    log("already downloaded", version=version)
    return Download(path=path, info=record.info)
