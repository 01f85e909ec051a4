"""``report.html`` of the matrix of all data sets: self-contained and escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from brainmri_core.pages.environment import rendered, style_sheet
from brainmri_core.system.storage import write_bytes


def write_generalisation_page(
    path: Path,
    table: pd.DataFrame,
    models: pd.DataFrame,
    own: Mapping[str, Mapping[str, Any]],
    mixed: Sequence[str],
) -> None:
    """Write the page.

    Parameters
    ----------
    path : pathlib.Path
        The HTML file.
    table, models : pandas.DataFrame
        The pairs, with the columns `generalisation.COLUMNS`, and the result of `generalisation.rank_models`.
    own : mapping
        Data set to macro_f1, low and high of its model on its own test images; empty where it was not evaluated.
    mixed : sequence of str
        Data sets whose pairs come from several checkpoints.
    """
    trained = sorted(table["trained_on"].unique())
    pairs = _records(table)
    page = rendered(
        "generalisation.html.j2",
        trained=trained,
        measured=sorted({*trained, *table["evaluated_on"]}),
        pairs=pairs,
        cells={(item["trained_on"], item["evaluated_on"]): item for item in pairs},
        own=own,
        models=_records(models),
        mixed=mixed,
        style=style_sheet("evaluation.css"),
    )
    write_bytes(path, page.encode())


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table, with None for undefined values."""
    rows: list[dict[str, Any]] = table.astype(object).where(table.notna(), None).to_dict("records")
    return rows
