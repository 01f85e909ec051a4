"""Count the trials of a fault and their losses, for the reliability table."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def tally(name: str, stage: str, results: list[dict[str, Any]]) -> None:
    """Record the trials for the figures of the reliability table."""
    target = os.environ.get("BRAINMRI_TALLY")
    if target:
        with Path(target).open("a") as handle:
            test = os.environ["PYTEST_CURRENT_TEST"].partition("::")[2].partition("[")[0].partition(" ")[0]
            line = {"test": test, "fault": name, "stage": stage, "trials": len(results)}
            handle.write(
                json.dumps(line | {"losses": sum(bool(item["problems"]) for item in results)}) + "\n"
            )


def problems(results: list[dict[str, Any]]) -> list[str]:
    return [text for item in results for text in item["problems"]]


def points(total: int, wanted: int) -> list[int]:
    """Spread points evenly over the operations, the first and the last among them; a single one lies in the middle."""
    if wanted >= total:
        return list(range(1, total + 1))
    if wanted == 1:
        return [(1 + total) // 2]
    return [1 + round(step * (total - 1) / (wanted - 1)) for step in range(wanted)]
