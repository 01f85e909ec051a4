"""The validation report as one self-contained page, and its leak section for other reports."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from brainmri_core.copies.likeness import orientation_words

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
        Path of an image to its small picture as a data URI, shown with the findings.

    Returns
    -------
    str
        A complete HTML document that loads nothing from elsewhere; all text is escaped.
    """
    from brainmri_core.validation.findings import CHECKS

    return (
        _environment()
        .get_template("validation.html.j2")
        .render(
            report=report,
            pictures=pictures or {},
            files_shown=FILES_SHOWN,
            meanings={name: meaning for name, (meaning, _) in CHECKS.items()},
            style=validation_style(),
            leak_section=render_leak_section(report.leak),
            shortcut_section=render_shortcut_section(report.shortcuts),
        )
    )


def render_leak_section(leak: LeakReport) -> Markup:
    """Render the leak table and gallery as a ``<section>``; the page needs `validation_style` once."""
    return Markup(_environment().get_template("leak_section.html.j2").render(leak=leak))


def render_shortcut_section(shortcuts: list[ShortcutScore]) -> Markup:
    """Render the shortcut scores as a ``<section>``; the page needs `validation_style` once."""
    return Markup(_environment().get_template("shortcut_section.html.j2").render(shortcuts=shortcuts))


def validation_style() -> Markup:
    """Return the style sheet of these sections, to stand in a ``<style>`` element."""
    return Markup(_environment().get_template("validation.css").render())


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("brainmri_core.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f}%"
    environment.filters["figure"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.filters["orientation"] = orientation_words
    environment.filters["count"] = lambda value: "–" if value is None else f"{value:,}"
    return environment
