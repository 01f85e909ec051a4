from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from brainmri_core.config.data import ArchiveLimits, FetchConfig
from brainmri_core.errors import SourceError
from brainmri_core.fetch import fetch
from brainmri_core.project.catalogue import DatasetEntry
from brainmri_core.project.job import Job
from brainmri_core.project.logs import Record
from brainmri_core.sources.local import find_archive
from tests.cases.build import class_tree, packed


def entry(job: Job, key: str = "clinic/brains") -> Job:
    return replace(
        job,
        entry=DatasetEntry(
            key=key, source="archive", classes=["glioma", "meningioma", "notumor", "pituitary"]
        ),
    )


def test_an_unpacked_folder_or_another_case_is_found(tmp_path: Path) -> None:
    (tmp_path / "Brains").mkdir()
    assert find_archive("clinic/brains", None, tmp_path) == tmp_path / "Brains"
    (tmp_path / "BRAINS.zip").touch()
    assert find_archive("clinic/brains", None, tmp_path) == tmp_path / "BRAINS.zip"


def test_an_archive_folder_without_a_match_is_said_with_the_names_looked_for(
    tmp_path: Path, job: Job, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAINMRI_ARCHIVES", str(tmp_path))
    with pytest.raises(SourceError):
        fetch(FetchConfig(), entry(job))
    assert any(
        "clinic__brains.zip, brains.zip" in str(record) and str(tmp_path) in str(record) for record in records
    )


def test_an_archive_as_a_browser_saves_it_serves_one_data_set_only(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAINMRI_ARCHIVES", str(tmp_path))
    (tmp_path / "archive (1).zip").write_bytes(packed(class_tree()))
    assert fetch(FetchConfig(), entry(job)).n_images == 12
    with pytest.raises(SourceError, match="is the data set clinic/brains, which was fetched from it before"):
        fetch(FetchConfig(), entry(job, "clinic/others"))


@pytest.mark.parametrize(
    ("name", "kind"), [("brains.tar", "w"), ("brains.tar.gz", "w:gz"), ("brains.7z", "")]
)
def test_other_archives_are_named_with_a_way_out(tmp_path: Path, job: Job, name: str, kind: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(50))
    if kind:
        with tarfile.open(path, kind) as archive:  # type: ignore[call-overload]
            archive.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    with pytest.raises(
        SourceError, match=r"is a .* archive, and only zip .*unpack it and give fetch.archive"
    ):
        fetch(FetchConfig(archive=str(path)), entry(job))


def test_inner_archives_keep_to_the_limits_and_to_their_folder(tmp_path: Path, job: Job) -> None:
    path = tmp_path / "a.zip"
    inner = packed(class_tree())
    path.write_bytes(packed({"in.zip": inner}))
    with pytest.raises(SourceError, match=r"inner archive in\.zip unpacks to"):
        fetch(
            FetchConfig(archive=str(path), limits=ArchiveLimits(max_total_bytes=len(inner) + 100)), entry(job)
        )
    path.write_bytes(packed(class_tree() | {"in.zip": packed({"../../evil.jpg": b"x"})}))
    with pytest.raises(SourceError, match="leaves its folder"):
        fetch(FetchConfig(archive=str(path)), entry(job))
    assert not list(job.layout.root.rglob("evil*"))
