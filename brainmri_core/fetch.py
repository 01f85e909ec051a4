"""Fetch: bring a data set to the local disk, unchanged, and index its images by file hash."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from brainmri_core.config.data import FetchConfig
from brainmri_core.errors import ConfigError, IntegrityError, SourceError
from brainmri_core.project.catalogue import catalogue_path, replaces_shipped
from brainmri_core.project.foreign_names import shown_name
from brainmri_core.project.job import Job
from brainmri_core.project.layout import ARCHIVES_VARIABLE
from brainmri_core.project.pointers import FetchPointer
from brainmri_core.project.sample_table import FETCH_COLUMNS, content_hash, read_samples, write_samples
from brainmri_core.project.work_locks import work_lock
from brainmri_core.sources.archive import extract_archive, unpack_inner
from brainmri_core.sources.folder import copy_tree, list_folder
from brainmri_core.sources.index import LEFT_OUT, QUIET_KINDS, index_files
from brainmri_core.sources.labels import read_labels
from brainmri_core.sources.local import choose_archive, is_browser_name
from brainmri_core.sources.masks import MASKS
from brainmri_core.sources.scans import expand_scans
from brainmri_core.sources.tree import split_of
from brainmri_core.system.checksums import sha256_file, sha256_json
from brainmri_core.system.clock import timestamp, utc_now
from brainmri_core.system.json_files import read_json, write_json
from brainmri_core.system.storage import staging_folder
from brainmri_core.system.store import MANIFESTS

if TYPE_CHECKING:
    import pandas as pd

# Version of the rules for reading folders: a data set that an earlier version read is unpacked again.
_RULES = 4


@dataclass(frozen=True)
class _Source:
    kind: str
    key: str
    path: Path | None
    facts: dict[str, object]


class _Facts(BaseModel):
    """The content of ``source.json``, the record of an unpacked data set."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    root: str
    kind: str
    version: int | None = None
    licence: str | None = None
    last_updated: str | None = None
    archive_sha256: str | None = None
    n_files: int | None = None
    n_slices: int = 0
    left_out: dict[str, int] = Field(default_factory=dict)
    formats: dict[str, int] = Field(default_factory=dict)


def fetch(config: FetchConfig, job: Job) -> FetchPointer:
    """Bring a data set to the local disk and index it.

    Parameters
    ----------
    config : FetchConfig
        The source, and the folder to keep the data set in.
    job : Job
        The run. The catalogue entry of its data set names the source; a local archive is used first, if there is one.

    Returns
    -------
    FetchPointer
        Its `samples` has one row per image: path, label as found, origin, bytes and SHA-256; ``left_out.parquet``
        beside it names every other file of the source. Fetching the same bytes again changes nothing and gives the
        same `content_hash`.

    Raises
    ------
    ConfigError
        If the data set is not labelled, but ``fetch.labels_csv`` or ``fetch.subset`` is set.
    SourceError
        If the data set is not available or its archive cannot be used.
    DataError
        If it holds no class folders with images, or several trees of them and ``fetch.subset`` is empty; if it is not
        labelled and holds no image.
    IntegrityError
        If what an earlier fetch unpacked was changed.
    """
    if not job.entry.labelled and (config.labels_csv or config.subset):
        key = "labels_csv" if config.labels_csv else "subset"
        raise ConfigError(
            f"The data set {job.dataset} is not labelled: fetch.{key} has no use; leave it empty."
        )
    cache = job.layout.dataset_cache(config.cache_dir, job.dataset)
    if replaces_shipped(job.dataset):
        job.log.info("the catalogue's own entry is replaced by the user's", file=str(catalogue_path()))

    def say_who(owner: str) -> None:
        job.log.info("another machine may be fetching the data set; waiting for it", owner=owner)

    with work_lock(job.layout, job.layout.lock("fetch", job.dataset), on_wait=say_who) as waited:
        job.clear_stale(cache)
        reading = _reading(config, job)
        source = _locate(config, job, lambda: _fetched_elsewhere(config, job, reading) if waited else None)
        target = cache / f"{source.key}-{reading}"
        folder = job.layout.relative(target)
        if waited or target.is_dir():
            job.layout.absolute(folder)  # from another machine, or what this one has only a part of
        if target.is_dir():
            job.log.info("already unpacked", folder=folder)
        else:
            _unpack(config, source, target, job)
        job.layout.store.publish_folder(folder)  # so that a machine that waits finds it
    return _pointer(source, target, job)


def _fetched_elsewhere(config: FetchConfig, job: Job, reading: str) -> _Source | None:
    """Download the version from Kaggle that another machine has just published; return None where there is none."""
    cache = job.layout.relative(job.layout.dataset_cache(config.cache_dir, job.dataset))
    wanted = re.compile(rf"v({config.version or '[0-9]+'})-[0-9a-f]{{16}}(?=-{reading}\.json$)")
    names = (name.rpartition("/")[2] for name in job.layout.store.list(f"{MANIFESTS}/{cache}/v*.json"))
    found = [match for match in map(wanted.match, names) if match]
    key = max(found, key=lambda match: int(match[1]))[0] if found else None
    there = key is not None and job.layout.absolute(f"{cache}/{key}-{reading}").is_dir()
    return _Source("kaggle", key, None, {}) if key and there else None


def _reading(config: FetchConfig, job: Job) -> str:
    """Return a hash of the settings that decide how folders are read; each reading is unpacked to a folder of its own."""
    entry = job.entry
    slices = config.slices.model_dump(mode="json")
    table = job.layout.given(config.labels_csv) if config.labels_csv is not None else None
    labels = sha256_file(table) if table is not None and table.is_file() else config.labels_csv
    read_by = [_RULES, config.subset, entry.classes, entry.aliases, entry.modality, slices, labels]
    return sha256_json(read_by if entry.labelled else [_RULES, "unlabelled", entry.modality, slices])[:8]


def _locate(config: FetchConfig, job: Job, published: Callable[[], _Source | None]) -> _Source:
    if (path := choose_archive(config, job)) is not None:
        job.log.info("using a local copy", source=path.name)
        if path.is_dir():
            names = _listed(path, config, job)
            listing = [(name, sha256_file(path / name)) for name in names]
            return _Source("folder", f"folder-{sha256_json(listing)[:16]}", path, {})
        digest = sha256_file(path)
        key = f"archive-{digest[:16]}"
        if is_browser_name(path):
            _refuse_anothers(path, key, config, job)
        return _Source("archive", key, path, {"archive_sha256": digest})
    if job.entry.source == "phantom":
        second = job.entry.site == "second"
        made = config.phantom.model_dump(mode="json", exclude=None if second else {"second_site"})
        described = {"generator": 1, **made}
        return _Source("phantom", f"phantom-{sha256_json(described)[:16]}", None, {})
    if job.entry.source == "archive":
        raise SourceError(
            f"The data set {job.dataset} is only had as a local archive: give fetch.archive (or --archive PATH), or set "
            f"{ARCHIVES_VARIABLE} to a folder that holds {[f'{job.entry.slug}.zip', *job.entry.archives][-1]}."
        )
    return published() or _from_kaggle(config, job)


def _modified_before(config: FetchConfig, job: Job) -> float | None:
    return None if job.entry.labelled else config.modified_before


def _listed(path: Path, config: FetchConfig, job: Job) -> list[str]:
    """List the files of a folder to copy; warn how many changed too recently and are left to the next look."""
    late: list[str] = []
    names = list_folder(path, config.limits, modified_before=_modified_before(config, job), too_new=late)
    if late:
        job.log.warning(
            "files left to the next look: they changed after the folder was looked at",
            files=len(late),
            first=shown_name(late[0]),
        )
    return names


def _refuse_anothers(path: Path, key: str, config: FetchConfig, job: Job) -> None:
    """Refuse an archive whose name does not tell its data set if another data set was already fetched from it."""
    own = job.layout.dataset_cache(config.cache_dir, job.dataset)
    for other in own.parent.parent.glob(f"*/*/{key}-*"):
        if other.parent != own:
            owner, slug = other.parts[-3:-1]
            raise SourceError(
                f"The archive {shown_name(path)} is the data set {owner}/{slug}, which was fetched from it before; give "
                f"{job.dataset} its own as {job.entry.slug}.zip."
            )


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
        litter: list[str] = []
        if source.kind == "phantom":
            from brainmri_core.sources.phantom import write_phantom
            from brainmri_core.sources.second_site import write_second_site

            write = write_second_site if job.entry.site == "second" else write_phantom
            write(files, config.phantom)
        else:
            assert source.path is not None
            _bring(source.path, files, config, litter, _modified_before(config, job))
        scans = expand_scans(files, config, job)
        index = index_files(files, job.entry, config.subset, litter, scans, read_labels(config, files, job))
        images = scans.described(index.images, index.root) if scans.slices else index.images
        write_samples(staging / "samples.parquet", images)
        if scans.masks:
            below = f"{index.root}/" if index.root else ""
            scans.masks.write(staging / MASKS, {f"{below}{path}": path for path in images["path"]})
        write_samples(staging / LEFT_OUT, index.left_out)
        left_out = {str(kind): int(n) for kind, n in index.left_out["kind"].value_counts().items()}
        facts = {
            "root": f"files/{index.root}".rstrip("/"),
            "kind": source.kind,
            "n_files": len(index.images) + len(index.left_out),
            "n_slices": len(scans.slices),
            "left_out": left_out,
            "formats": index.formats,
        }
        write_json(staging / "source.json", {**facts, **source.facts})
    classes = int(index.images["label"].nunique()) if job.entry.labelled else 0
    job.log.info("unpacked", images=len(index.images), classes=classes)
    for note in index.notes:
        job.log.warning(note)
    _say_what_is_left_out(index.left_out, index.formats, job)


def _bring(
    path: Path, files: Path, config: FetchConfig, litter: list[str], modified_before: float | None
) -> None:
    """Unpack an archive, or copy a folder, and open the zip archives in it."""
    if path.is_dir():
        copy_tree(path, files, config.limits, litter, modified_before=modified_before)
        packed = sum(file.stat().st_size for file in files.rglob("*") if file.is_file())
    else:
        files.mkdir()
        packed = path.stat().st_size
        with tqdm(desc="unpacking", unit="B", unit_scale=True, disable=None) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            extract_archive(path, files, config.limits, progress=progress, litter=litter)
    unpack_inner(files, packed, config.limits, litter)


def _say_what_is_left_out(left_out: pd.DataFrame, formats: dict[str, int], job: Job) -> None:
    for (kind, reason), part in left_out.groupby(["kind", "reason"]):
        say = job.log.info if kind in QUIET_KINDS else job.log.warning
        say(
            "files left out",
            files=len(part),
            reason=reason,
            first=part["path"].iloc[0],
            remedy=part["remedy"].iloc[0],
        )
    if formats.get("GIF"):
        job.log.info("of each GIF, the first frame is used", files=formats["GIF"])


def _facts(target: Path) -> _Facts:
    path = target / "source.json"
    try:
        if not path.is_file():
            raise ValueError("it is missing")
        facts = _Facts.model_validate(read_json(path))
        if not (target / facts.root).resolve().is_relative_to(target.resolve()):
            raise ValueError("its root is outside its folder")
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

    def folder(origin: str) -> str | None:
        tops = sorted({path.partition("/")[0] for path in table["path"][table["origin"] == origin]})
        found = next((top for top in tops if split_of(top) == origin), None)
        return None if found is None else job.layout.relative(root / found)

    return FetchPointer(
        dataset=job.dataset,
        run_id=job.run_id,
        content_hash=content_hash(table, ["path", "label", "origin", "file_sha256"]),
        dataset_root=job.layout.relative(root),
        training_dir=folder("training"),
        testing_dir=folder("testing"),
        validation_dir=folder("validation"),
        version=facts.version,
        fetched_at_utc=timestamp(utc_now()),
        samples=job.layout.relative(target / "samples.parquet"),
        n_images=len(table),
        total_bytes=int(table["bytes"].sum()),
        class_counts={
            str(name): int(count)
            for name, count in table["label"].value_counts(sort=False).items()
            if job.entry.labelled
        },
        source=source.kind,
        licence=facts.licence or job.entry.licence,
        last_updated=facts.last_updated,
        archive_sha256=facts.archive_sha256,
        n_files=facts.n_files,
        n_slices=facts.n_slices,
        left_out=facts.left_out,
    )
