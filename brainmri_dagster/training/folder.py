"""The folder that the processes of a training share: the request to train, and the reports that they leave when they fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "BRAINMRI_TRAIN_FOLDER"
PARENT_VARIABLE = "BRAINMRI_TORCHRUN_PID"
KINDS = ("sentence", "stopped", "killed", "lost", "crash", "terminated")
Request = dict[str, Any]
Report = dict[str, Any]


def leave_request(folder: Path, request: Request) -> None:
    """Write the request for the processes."""
    (folder / "request.json").write_text(json.dumps(request))


def read_request(folder: Path) -> Request:
    """Return the request."""
    return dict(json.loads((folder / "request.json").read_text()))


def leave_report(folder: Path, kind: str, name: str | int, report: Report) -> None:
    """Leave a report of a failure, in a file of its own, for the process that waits for the training.

    Some reports come from other machines, so a kind that is not in `KINDS` never becomes part of a file name.
    """
    if kind not in KINDS:
        return
    (folder / f"{kind}-{name}.json").write_text(json.dumps(report))


def read_reports(folder: Path, kind: str) -> list[Report]:
    """Return the reports of a kind, earliest first."""
    reports = [json.loads(path.read_text()) for path in folder.glob(f"{kind}-*.json")]
    return sorted(reports, key=lambda report: (report.get("time", 0), report["rank"]))


def all_reports(folder: Path) -> list[tuple[str, Report]]:
    """Return all reports, each with its kind."""
    return [(path.name.partition("-")[0], json.loads(path.read_text())) for path in folder.glob("*-*.json")]
