"""The validation report as one self-contained page, and its leak section for other reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from markupsafe import Markup

from brainmri_core.pages.environment import rendered, style_sheet

if TYPE_CHECKING:
    from brainmri_core.validation.leak_report import LeakReport
    from brainmri_core.validation.report import ValidationReport
    from brainmri_core.validation.shortcuts import ShortcutScore

FILES_SHOWN = 20


def render_validation_html(report: ValidationReport, *, pictures: Mapping[str, str] | None = None) -> str:
    """Render a validation report.

    Parameters
    ----------
    report : ValidationReport
        With its leak gallery.
    pictures : mapping or None
        Path of an image to its thumbnail as a data URI, shown with the findings.

    Returns
    -------
    str
        A complete, self-contained HTML document; all text is escaped.
    """
    from brainmri_core.validation.findings import CHECKS

    return rendered(
        "validation.html.j2",
        report=report,
        pictures=pictures or {},
        files_shown=FILES_SHOWN,
        meanings={name: meaning for name, (meaning, _) in CHECKS.items()},
        style=style_sheet("validation.css"),
        leak_section=render_leak_section(report.leak),
        shortcut_section=render_shortcut_section(report.shortcuts),
    )


def render_leak_section(leak: LeakReport) -> Markup:
    """Render the leak table and gallery as a ``<section>``; the page needs ``validation.css`` once."""
    return Markup(rendered("leak_section.html.j2", leak=leak))


def render_shortcut_section(shortcuts: list[ShortcutScore]) -> Markup:
    """Render the shortcut scores as a ``<section>``; the page needs ``validation.css`` once."""
    return Markup(rendered("shortcut_section.html.j2", shortcuts=shortcuts))
