"""Fetch: bring a data set to the local disk, unchanged, and index its images by file hash."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from brainmri_core.config.data import ALL_EXTENSIONS, FetchConfig
from brainmri_core.cores import cores, threads
from brainmri_core.errors import DataError, IntegrityError, SourceError
from brainmri_core.job import Job
from brainmri_core.layout import ARCHIVES_VARIABLE, timestamp, utc_now
from brainmri_core.locks import exclusive
from brainmri_core.pointers import FetchPointer
from brainmri_core.samples import FETCH_COLUMNS, content_hash, read_samples, write_samples
from brainmri_core.sources.archive import copy_tree, extract_archive, find_archive, list_folder
from brainmri_core.storage import (
    read_json,
    remove_stale,
    sha256_file,
    sha256_json,
    staging_folder,
    write_json,
)

_TRAINING = {"training", "train"}
_TESTING = {"testing", "test"}
_NOT_DATA = {"truth", "__macosx"}
_CHUNK = 64


@dataclass(frozen=True)
class _Source:
    kind: str
    key: str
    path: Path | None
    facts: dict[str, object]


class _Facts(BaseModel):
    """What ``source.json`` says of an unpacked data set."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    root: str
    kind: str
    version: int | None = None
    licence: str | None = None
    last_updated: str | None = None
    archive_sha256: str | None = None


def fetch(config: FetchConfig, job: Job) -> FetchPointer:
    """Bring a data set to the local disk and index it.

    Parameters
    ----------
    config : FetchConfig
        Where to take it from and where to keep it.
    job : Job
        The data set's catalogue entry names its source; a local archive, if there is one, goes first.

    Returns
    -------
    FetchPointer
        Its `samples` has one row per image: path, label as found, origin, bytes and SHA-256. Fetching the same
        bytes again changes nothing and gives the same `content_hash`.

    Raises
    ------
    SourceError
        If the data set cannot be had or its archive cannot be used.
    DataError
        If it holds no class folders with images.
    """
    cache = job.layout.dataset_cache(config.cache_dir, job.dataset)
    with exclusive(job.layout.lock("fetch", job.dataset)):
        for stale in remove_stale(cache) if cache.is_dir() else []:
            job.log.info("removed a stale temporary", path=stale.name)
        source = _locate(config, job)
        target = cache / source.key
        if target.is_dir():
            job.log.info("already unpacked", folder=job.layout.relative(target))
        else:
            _unpack(config, source, target, job)
    return _pointer(source, target, job)


def _locate(config: FetchConfig, job: Job) -> _Source:
    folder = os.environ.get(ARCHIVES_VARIABLE)
    path = find_archive(
        job.dataset,
        Path(config.archive).expanduser() if config.archive else None,
        Path(folder).expanduser() if folder and job.entry.source != "phantom" else None,
    )
    if path is not None:
        job.log.info("using a local copy", source=path.name)
        if path.is_dir():
            listing = [(name, sha256_file(path / name)) for name in list_folder(path, config.limits)]
            return _Source("folder", f"folder-{sha256_json(listing)[:16]}", path, {})
        digest = sha256_file(path)
        return _Source("archive", f"archive-{digest[:16]}", path, {"archive_sha256": digest})
    if job.entry.source == "phantom":
        described = {"generator": 1, **config.phantom.model_dump(mode="json")}
        return _Source("phantom", f"phantom-{sha256_json(described)[:16]}", None, {})
    if job.entry.source == "archive":
        raise SourceError(
            f"The data set {job.dataset} is only had as a local archive: give fetch.archive (or --archive PATH), or set "
            f"{ARCHIVES_VARIABLE} to a folder that holds {job.entry.slug}.zip."
        )
    return _from_kaggle(config, job)


def _from_kaggle(config: FetchConfig, job: Job) -> _Source:
    from brainmri_core.sources.kaggle import download

    with tqdm(desc=f"downloading {job.dataset}", unit="B", unit_scale=True, disable=None) as bar:

        def progress(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        got = download(
            job.dataset,
            version=config.version,
            dest_dir=job.layout.downloads(config.cache_dir),
            retry=config.retry,
            limits=config.limits,
            offline=config.offline,
            progress=progress,
            log=job.log.info,
        )
    digest = sha256_file(got.path)
    facts = {
        "archive_sha256": digest,
        "version": got.info.version,
        "licence": got.info.licence,
        "last_updated": got.info.last_updated,
    }
    return _Source("kaggle", f"v{got.info.version}-{digest[:16]}", got.path, facts)


def _unpack(config: FetchConfig, source: _Source, target: Path, job: Job) -> None:
    with staging_folder(target) as staging:
        files = staging / "files"
        if source.kind == "phantom":
            from brainmri_core.sources.phantom import write_phantom

            write_phantom(files, config.phantom)
        elif source.kind == "folder":
            assert source.path is not None
            copy_tree(source.path, files, config.limits)
        else:
            assert source.path is not None
            files.mkdir()
            with tqdm(desc="unpacking", unit="B", unit_scale=True, disable=None) as bar:

                def progress(done: int, total: int) -> None:
                    bar.total = total
                    bar.update(done - bar.n)

                extract_archive(source.path, files, config.limits, progress=progress)
        root = _dataset_root(files, job.dataset)
        table = _index(root, job.dataset)
        write_samples(staging / "samples.parquet", table)
        write_json(
            staging / "source.json",
            {"root": root.relative_to(staging).as_posix(), "kind": source.kind, **source.facts},
        )
    job.log.info("unpacked", images=len(table), classes=int(table["label"].nunique()))


def _dataset_root(files: Path, dataset: str) -> Path:
    """Return the shallowest folder that holds Training/Testing folders, else the one that holds class folders."""
    folders = [files, *(path for path in sorted(files.rglob("*")) if path.is_dir())]
    folders.sort(key=lambda path: (len(path.parts), path))
    for folder in folders:
        children = {path.name.casefold() for path in folder.iterdir() if path.is_dir()}
        if children & (_TRAINING | _TESTING):
            return folder
    for folder in folders:
        if (
            sum(any(_is_image(file) for file in path.iterdir()) for path in folder.iterdir() if path.is_dir())
            >= 1
        ):
            return folder
    raise DataError(
        f"The data set {dataset} holds no class folders with images; expected <class>/*.jpg or "
        "Training/<class>/*.jpg and Testing/<class>/*.jpg."
    )


def _is_image(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in ALL_EXTENSIONS


def _index(root: Path, dataset: str) -> pd.DataFrame:
    official = [
        path for path in root.iterdir() if path.is_dir() and path.name.casefold() in _TRAINING | _TESTING
    ]
    rows = []
    for part in sorted(official) or [root]:
        origin = "none" if part == root else ("training" if part.name.casefold() in _TRAINING else "testing")
        for folder in sorted(
            path for path in part.iterdir() if path.is_dir() and path.name.casefold() not in _NOT_DATA
        ):
            images = [path for path in folder.rglob("*") if _is_image(path)]
            if not images:
                raise DataError(
                    f"The class folder {folder.relative_to(root).as_posix()!r} of {dataset} holds no image "
                    f"({', '.join(ALL_EXTENSIONS)}); remove the folder or add its images."
                )
            rows += [(path.relative_to(root).as_posix(), folder.name, origin) for path in images]
    names = [row[0] for row in rows]
    with threads(cores()) as pool:
        parts = pool.map(
            lambda start: [_measured(root / name) for name in names[start : start + _CHUNK]],
            range(0, len(names), _CHUNK),
        )
        measured = [item for part in parts for item in part]
    table = (
        pd.DataFrame(
            [row + facts for row, facts in zip(rows, measured, strict=True)], columns=list(FETCH_COLUMNS)
        )
        .astype(FETCH_COLUMNS)
        .sort_values("path", ignore_index=True)
    )
    if table["label"].nunique() < 2:
        raise DataError(
            f"The data set {dataset} has fewer than two classes ({', '.join(table['label'].unique()) or 'none'}); "
            "a classifier needs one folder per class."
        )
    return table


def _measured(path: Path) -> tuple[int, str]:
    """Return size and SHA-256 of a file."""
    return path.stat().st_size, sha256_file(path)


def _facts(target: Path) -> _Facts:
    path = target / "source.json"
    try:
        if not path.is_file():
            raise ValueError("it is missing")
        facts = _Facts.model_validate(read_json(path))
        if not (target / facts.root).resolve().is_relative_to(target.resolve()):
            raise ValueError("it leads out of its folder")
    except ValueError as error:  # pydantic's among them
        reason = str(error).splitlines()[0]
        raise IntegrityError(
            f"The record {path} was changed ({reason}); delete {target} and fetch again."
        ) from None
    return facts


def _pointer(source: _Source, target: Path, job: Job) -> FetchPointer:
    facts = _facts(target)
    root = target / facts.root
    table = read_samples(target / "samples.parquet", FETCH_COLUMNS)
    for path, size in zip(table["path"], table["bytes"], strict=True):
        file = root / path
        if not file.is_file() or file.stat().st_size != size:
            raise IntegrityError(
                f"The fetched file {file} is missing or was changed; delete {target} and fetch again."
            )
    official = {path.name.casefold(): path for path in root.iterdir() if path.is_dir()}

    def folder(names: set[str]) -> str | None:
        return next((job.layout.relative(official[name]) for name in sorted(names) if name in official), None)

    return FetchPointer(
        dataset=job.dataset,
        run_id=job.run_id,
        content_hash=content_hash(table, ["path", "label", "origin", "file_sha256"]),
        dataset_root=job.layout.relative(root),
        training_dir=folder(_TRAINING),
        testing_dir=folder(_TESTING),
        version=facts.version,
        fetched_at_utc=timestamp(utc_now()),
        samples=job.layout.relative(target / "samples.parquet"),
        n_images=len(table),
        total_bytes=int(table["bytes"].sum()),
        class_counts={
            str(name): int(count) for name, count in table["label"].value_counts(sort=False).items()
        },
        source=source.kind,
        licence=facts.licence or job.entry.licence,
        last_updated=facts.last_updated,
        archive_sha256=facts.archive_sha256,
    )
