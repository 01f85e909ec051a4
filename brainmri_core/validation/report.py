"""The validation report: its schema, how it is read, and its verdict in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from brainmri_core.project.layout import Layout
from brainmri_core.project.pointers import ValidationPointer
from brainmri_core.system.json_models import read_model
from brainmri_core.validation.accounting import Account
from brainmri_core.validation.finding import SEVERITIES, Finding
from brainmri_core.validation.leak_report import LeakReport
from brainmri_core.validation.shortcuts import ShortcutScore


class ValidationReport(BaseModel):
    """Everything validation found.

    Attributes
    ----------
    passed : bool
        False where a finding is blocking, or at least as severe as `fail_on`.
    counts : dict
        Side to class to number of images, including excluded ones.
    excluded : dict
        Reason to number of images left out.
    checks : list of str
        Checks that ran; one without a finding passed.
    findings : list of Finding
        Worst first.
    gray_ranges, scaled_by : dict
        How values of more than 8 bits became gray levels, as in the pack's pointer.
    split : dict
        Settings and result of the split, as far as recorded.
    leak : LeakReport
        Without the gallery, which is in ``leak.json``.
    account : Account or None
        What became of every file of the source; None in a report of an older version.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    dataset: str
    run_id: str
    written_at_utc: str
    fail_on: Literal["error", "warning", "never"]
    passed: bool
    classes: list[str]
    n_images: int
    n_packed: int
    size: int
    counts: dict[str, dict[str, int]]
    excluded: dict[str, int]
    gray_ranges: dict[str, tuple[float, float]] = {}
    scaled_by: dict[str, int] = {}
    split: dict[str, str | int | float | dict[str, float] | None]
    checks: list[str]
    findings: list[Finding]
    shortcuts: list[ShortcutScore]
    leak: LeakReport
    account: Account | None = None

    def finding(self, check: str) -> Finding | None:
        """Return what a check found, or None if it found nothing or did not run."""
        return next((finding for finding in self.findings if finding.check == check), None)

    @property
    def severities(self) -> dict[str, int]:
        """Number of findings of each severity."""
        return {name: sum(item.severity == name for item in self.findings) for name in SEVERITIES}


def load_report(layout: Layout, pointer: ValidationPointer) -> ValidationReport:
    """Read a validation report with its leak report and gallery.

    Raises
    ------
    IntegrityError
        If a file is missing, damaged, or of another version.
    """
    path = layout.absolute(pointer.report)
    problem, remedy = "is not a validation report", "run validate again"
    report = read_model(path, ValidationReport, problem, remedy)
    leak = read_model(path.with_name("leak.json"), LeakReport, problem, remedy)
    return report.model_copy(update={"leak": leak})


def failure_sentence(report: ValidationReport, page: Path = Path("report.html")) -> str:
    """Say in one sentence why validation failed and where its page is, or that it passed."""
    if report.passed:
        return f"The validation of {report.dataset} passed."
    grave = [item for item in report.findings if item.fails(report.fail_on)]
    named = "; ".join(f"{item.check}: {item.message.rstrip('.')}" for item in grave[:3])
    more = f"; and {len(grave) - 3} more" if len(grave) > 3 else ""
    remedy = (
        "a leak or a wrong mapping cannot be waved through"
        if any(item.blocking for item in grave)
        else f"correct the data or relax validate.fail_on, now {report.fail_on!r}"
    )
    return f"The validation of {report.dataset} failed ({named}{more}); {page} names every file; {remedy}."
