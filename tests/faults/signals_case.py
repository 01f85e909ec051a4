"""A pipeline to interrupt, its processes and its manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PIPELINE = "tests.faults.launches:pipeline"


def children_of(session: int) -> list[str]:
    """Return the command lines of the live processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdigit() else []
            if fields and int(fields[3]) == session and fields[0] != "Z":
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except (OSError, ValueError):
            continue
    return found


def manifest(root: Path, run_id: str) -> dict[str, Any]:
    path = root / "outputs/orchestrator" / run_id / "run_manifest.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}
