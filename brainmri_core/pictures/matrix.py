"""The heat map of every model on every data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

_WIDEST = 22


def write_matrix(path: Path, table: pd.DataFrame, own: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw macro F1 with its interval, and the share of images taken out, for each pair of data sets into a PNG.

    Each model's score on its own test images is framed.

    Parameters
    ----------
    path : pathlib.Path
        The PNG.
    table : pandas.DataFrame
        A row per pair, with the columns `generalisation.COLUMNS`.
    own : mapping
        Data set to macro_f1, low and high of its model on its own test images; empty where it was not evaluated.
    """
    trained = sorted(table["trained_on"].unique())
    measured = sorted({*trained, *table["evaluated_on"]})
    values, texts = np.full((len(trained), len(measured)), np.nan), {}
    for row, name in enumerate(trained):
        home = own.get(name) or {}
        if home:
            place = row, measured.index(name)
            values[place], texts[place] = home["macro_f1"], _text(home, "own test images")
    for item in table.to_dict("records"):
        place = trained.index(item["trained_on"]), measured.index(item["evaluated_on"])
        if pd.isna(item["macro_f1"]):
            texts[place] = "no score"
        else:
            out = "seen images unknown" if item["obstacle"] else f"{item['taken_out_share']:.0%} taken out"
            values[place], texts[place] = item["macro_f1"], _text(item, out)
    figure = Figure(figsize=(2.6 + 1.75 * len(measured), 2.4 + 0.85 * len(trained)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("#eceff1")
    drawn = axes.imshow(np.ma.masked_invalid(values), cmap="viridis", vmin=0, vmax=1, aspect="auto")
    figure.colorbar(drawn, ax=axes, label="macro F1")
    for (row, column), text in texts.items():
        dark = not np.isnan(values[row, column]) and values[row, column] < 0.6
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    for row, name in enumerate(trained):
        corner = measured.index(name) - 0.48, row - 0.48
        axes.add_patch(Rectangle(corner, 0.96, 0.96, fill=False, edgecolor="#d55e00", linewidth=2))
    axes.set_xticks(range(len(measured)), [_short(name) for name in measured], rotation=20, ha="right")
    axes.set_yticks(range(len(trained)), [_short(name) for name in trained])
    axes.set_xlabel("measured on")
    axes.set_ylabel("trained on")
    figure.savefig(path, format="png", dpi=110)


def _text(item: Mapping[str, Any], below: str) -> str:
    known = item["low"] is not None and not pd.isna(item["low"])
    span = f"{item['low']:.2f} to {item['high']:.2f}\n" if known else ""
    return f"{item['macro_f1']:.3f}\n{span}{below}"


def _short(name: str) -> str:
    """Return the key of a data set in two short lines."""
    owner, _, slug = name.partition("/")
    return f"{owner[:_WIDEST]}/\n{slug if len(slug) <= _WIDEST else slug[: _WIDEST - 1] + '…'}"
