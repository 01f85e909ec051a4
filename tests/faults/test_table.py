from __future__ import annotations

import re
from pathlib import Path

from brainmri_core import errors
from brainmri_core.runs import CANCELLED_EXIT_CODE
from brainmri_dagster.backfill import DaemonError

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"


def rows(title: str) -> list[list[str]]:
    """Return the cells of the table under a heading, its header left out."""
    section = PAGE.read_text().split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_row_of_the_fault_table_names_a_test_that_exists() -> None:
    table = rows("Faults on trial")
    assert len(table) >= 15
    for row in table:
        assert len(row) == 5, row
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[2])
        assert named, f"no test in the row {row[0]!r}"
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test} does not exist"


def test_the_exit_codes_are_those_of_the_errors() -> None:
    listed = {int(row[0]): row[1] for row in rows("Exit codes")}
    raised = {
        value.exit_code: value.__name__
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.BrainMRIError)
    }
    raised[DaemonError.exit_code] = DaemonError.__name__
    assert set(listed) == {0, CANCELLED_EXIT_CODE, *raised}
    for code, name in raised.items():
        assert name in listed[code], f"exit code {code} is {name}"
