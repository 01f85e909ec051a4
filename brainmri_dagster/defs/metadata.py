"""Numbers, paths, tables and pictures in the forms that the Dagster UI shows."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from brainmri_core.escaping import markdown
from brainmri_core.project.layout import Layout

Metadata = dict[str, Any]
_PICTURE_SIDE = 480


def numbers(values: Mapping[str, Any], prefix: str = "") -> Metadata:
    """Return the finite numbers of a mapping; NaN and infinity would break the UI and are left out."""
    return {
        f"{prefix}{name}": value
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def path_of(layout: Layout, stored: str) -> dg.PathMetadataValue:
    """Return a stored path as a link."""
    return dg.MetadataValue.path(str(layout.absolute(stored)))


def table(rows: Mapping[str, Mapping[str, Any]], corner: str) -> dg.MarkdownMetadataValue:
    """Return a table of numbers as Markdown; a missing cell becomes 0, an undefined one a dash."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [f"| {corner} | {' | '.join(map(_cell, columns))} |", f"|---|{'---:|' * len(columns)}"]
    lines += [
        f"| {_cell(name)} | {' | '.join(_cell(row.get(c, 0)) for c in columns)} |"
        for name, row in rows.items()
    ]
    return dg.MetadataValue.md("\n".join(lines))


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else markdown(str(value))


def picture(path: Path, alt: str, side: int = _PICTURE_SIDE) -> dg.MarkdownMetadataValue | None:
    """Return a picture, made small, as Markdown with a data URI; None if the file is not there."""
    if not path.is_file():
        return None
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return dg.MetadataValue.md(
        f"![{alt}](data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()})"
    )
