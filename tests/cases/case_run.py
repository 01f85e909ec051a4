"""A case written as files, and what a job makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from brainmri_core.project.catalogue import DatasetEntry
from brainmri_core.project.job import Job
from tests.cases.build import Case, packed


def write(case: Case, folder: Path) -> Path:
    if case.zipped:
        path = folder / "set.zip"
        path.write_bytes(packed(case.files))
        return path
    for name, data in case.files.items():
        path = folder / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / "set"


def own(job: Job, case: Case) -> Job:
    return replace(job, entry=DatasetEntry(key="clinic/brains", source="archive", classes=list(case.classes)))
