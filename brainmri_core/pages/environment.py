"""The templates of all pages; HTML is escaped, and a missing value is an error."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from brainmri_core.copies.likeness import orientation_words
from brainmri_core.escaping import markdown


def rendered(template: str, /, **values: Any) -> str:
    """Return a template of ``templates/`` filled with values."""
    return environment_of_templates().get_template(template).render(**values)


def style_sheet(name: str) -> Markup:
    """Return a style sheet of ``templates/`` for a ``<style>`` element."""
    return Markup(rendered(name))


@cache
def environment_of_templates() -> Environment:
    """Return the template environment, with the filters that turn a value into text."""
    found = Environment(
        loader=PackageLoader("brainmri_core.pages"),
        autoescape=lambda name: name is None or name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "md": lambda value: markdown(str(value)),
        "sentence": lambda value: f"{str(value)[:1].upper()}{str(value)[1:]}",
        "percent": lambda value: "–" if value is None else f"{100 * value:.1f}%",
        "figure": _figure,
        "signed": lambda value: "–" if value is None else f"{value:+.3f}",
        "count": lambda value: "–" if value is None else f"{value:,}",
        "range": lambda item: "" if item is None else f"{item[0]:.3f} to {item[1]:.3f}",
        "range_percent": lambda item: "" if item is None else f"{100 * item[0]:.1f} to {100 * item[1]:.1f}%",
        "orientation": orientation_words,
    }
    return found


def _figure(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
