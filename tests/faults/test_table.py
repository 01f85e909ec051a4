from __future__ import annotations

import importlib
import math
import re

from brainmri_core import errors
from brainmri_core.project.run_record import CANCELLED_EXIT_CODE
from brainmri_dagster.commands.backfill import DaemonError
from tests import ROOT

PAGE = ROOT / "docs" / "reliability.md"


def rows(title: str) -> list[list[str]]:
    """Return the cells of all tables under a heading, their headers left out."""
    section = PAGE.read_text().split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    tables = re.findall(r"^\|.*\n\| ---.*\n((?:\|.*\n?)+)", section, re.MULTILINE)
    lines = [line for table in tables for line in table.splitlines()]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def cases(test: str) -> int:
    """Return how many cases a test of ours has, by the lists it is parametrised with."""
    file, *names = test.split("::")
    found: object = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    for name in names:
        found = getattr(found, name)
    marks = getattr(found, "pytestmark", [])
    return math.prod(len(mark.args[1]) for mark in marks if mark.name == "parametrize")


def test_every_row_of_the_fault_table_names_a_test_that_exists() -> None:
    table = rows("Faults on trial")
    assert len(table) >= 60
    for row in table:
        assert len(row) == 5, row
        named = re.findall(r"`(tests/[\w/]+\.py)::(?:\w+::)?(\w+)`", row[2])
        assert named, f"no test in the row {row[0]!r}"
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test} does not exist"


def test_the_cases_of_the_fault_table_are_as_many_as_its_tests_have() -> None:
    table = [row for row in rows("Faults on trial") if row[3].split()[-1] in ("case", "cases")]
    assert len(table) >= 15
    named = {row[0]: re.findall(r"`(tests/[\w/]+\.py(?:::\w+)+)`", row[2]) for row in table}
    stated = {row[0]: int(row[3].split()[0]) for row in table}
    assert stated == {fault: sum(map(cases, tests)) for fault, tests in named.items()}


def test_the_exit_codes_are_those_of_the_errors() -> None:
    listed = {int(row[0]): row[1] for row in rows("Exit codes")}
    raised = {
        value.exit_code: value.__name__
        for value in vars(errors).values()
        if isinstance(value, type)
        and issubclass(value, errors.BrainMRIError)
        and "exit_code" in vars(value)  # else it is a special case of the error it inherits the code from
    }
    raised[DaemonError.exit_code] = DaemonError.__name__
    assert set(listed) == {0, CANCELLED_EXIT_CODE, *raised}
    for code, name in raised.items():
        assert name in listed[code], f"exit code {code} is {name}"
