"""A finding: the result of one check, with severity, message and images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from brainmri_core.wording import agreeing

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


class Finding(BaseModel):
    """What one check found.

    Attributes
    ----------
    check : str
        Name of the check, a key of `CHECKS`.
    count : int
        Number of images (or classes) concerned.
    files : list of str
        The images, as paths relative to the data set's root.
    blocking : bool
        Whether it fails validation whatever `fail_on` says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    check: str
    severity: Severity
    count: int
    message: str
    files: list[str] = []
    blocking: bool = False

    def fails(self, fail_on: Literal["error", "warning", "never"]) -> bool:
        """Say whether this finding fails validation: it is blocking, or at least as severe as `fail_on`."""
        failing = {"error": ("error",), "warning": ("error", "warning"), "never": ()}[fail_on]
        return self.blocking or self.severity in failing


def about_images(
    check: str,
    severity: Severity,
    files: Iterable[str],
    message: str,
    *,
    blocking: bool = False,
    count: int | None = None,
    noun: str = "image",
) -> Finding | None:
    """Return a finding about images, or None without any.

    Parameters
    ----------
    check, severity, files, blocking
        As in `Finding`.
    message : str
        Template for `wording.agreeing`.
    count : int or None
        Number to report; None means that of the files.
    noun : str
        What is counted.
    """
    named = [str(path) for path in files]
    if not named:
        return None
    count = len(named) if count is None else count
    return Finding(
        check=check,
        severity=severity,
        count=count,
        message=agreeing(message, count, noun),
        files=named,
        blocking=blocking,
    )
