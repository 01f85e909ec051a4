"""Galleries: selected predictions with captions, from the prediction table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainmri_core.arrays import I64, U8
from brainmri_core.evaluation.gradcam import Maps
from brainmri_core.pictures.thumbnails import Sheet, overlay, to_rgb

KINDS = ("most confident right", "most confident wrong", "least certain")
GALLERY_COLUMNS = (
    "gallery", "class", "rank", "row", "path", "truth", "predicted", "probability", "prob_truth", "caption",
)  # fmt: skip


def select_galleries(table: pd.DataFrame, classes: Sequence[str], top: int) -> pd.DataFrame:
    """Choose the images of each gallery, per true class.

    Parameters
    ----------
    table : pandas.DataFrame
        Test rows of the prediction table.
    classes : sequence of str
        Class names.
    top : int
        Most images per class and gallery.

    Returns
    -------
    pandas.DataFrame
        Columns `GALLERY_COLUMNS`; ``probability`` is the uncalibrated one of the predicted class, as in the table. Ties are
        ordered by path.
    """
    shares = table[[f"prob_{name}" for name in classes]].to_numpy(np.float64)
    number = np.arange(len(table))
    ranked = pd.DataFrame(
        {
            "row": table["row"].to_numpy(np.int64),
            "path": table["path"].to_numpy(object),
            "truth": table["label"].to_numpy(object),
            "predicted": table["predicted"].to_numpy(object),
            "probability": shares[number, table["predicted_index"].to_numpy(np.int64)],
            "prob_truth": shares[number, table["class_index"].to_numpy(np.int64)],
            "correct": table["correct"].to_numpy(bool),
        }
    )
    parts = []
    for kind in KINDS:
        chosen = ranked if kind == "least certain" else ranked[ranked["correct"] == (kind == KINDS[0])]
        ordered = chosen.sort_values(
            ["probability", "path"], ascending=[kind == "least certain", True], kind="stable"
        )
        for name in classes:
            part = ordered[ordered["truth"] == name].head(top)
            parts.append(part.assign(gallery=kind, **{"class": name}, rank=range(1, len(part) + 1)))
    found = pd.concat(parts, ignore_index=True)
    found["caption"] = [
        caption(*values)
        for values in zip(
            found["path"], found["truth"], found["predicted"], found["probability"], strict=True
        )
    ]
    return found[list(GALLERY_COLUMNS)]


def caption(path: str, truth: str, predicted: str, probability: float) -> str:
    """Return the caption of one prediction."""
    return f"{path}: is {truth}, called {predicted} ({100 * probability:.1f}%)"


def write_sheets(folder: Path, galleries: pd.DataFrame, classes: Sequence[str], pack: U8) -> list[Path]:
    """Write one PNG per gallery, a row per class, and ``galleries.csv`` with the captions.

    Parameters
    ----------
    folder : pathlib.Path
        An existing folder.
    galleries : pandas.DataFrame
        From `select_galleries`.
    pack : numpy.ndarray
        The pack, to whose rows ``row`` refers.

    Returns
    -------
    list of pathlib.Path
        The pictures written; none for a gallery without images.
    """
    galleries.to_csv(folder / "galleries.csv", index=False)
    written = []
    for kind in KINDS:
        part = galleries[galleries["gallery"] == kind]
        if part.empty:
            continue
        shown = [name for name in classes if (part["class"] == name).any()]
        sheet = Sheet(
            f"{kind.capitalize()} test predictions, by true class", int(part["rank"].max()), len(shown)
        )
        for row, name in enumerate(shown):
            sheet.heading(row, name)
            for item in part[part["class"] == name].to_dict("records"):
                sheet.place(row, item["rank"] - 1, to_rgb(pack[item["row"]]), _lines(item), colour=_ink(item))
        path = folder / f"{kind.replace(' ', '_')}.png"
        sheet.image.save(path, "PNG")
        written.append(path)
    return written


def _lines(item: dict[Any, Any]) -> list[str]:
    return [
        Path(item["path"]).name,
        f"is {item['truth']}",
        f"called {item['predicted']} {100 * item['probability']:.1f}%",
    ]


def _ink(item: dict[Any, Any]) -> str:
    return "black" if item["truth"] == item["predicted"] else "#a1121f"


def write_overlays(
    path: Path,
    galleries: pd.DataFrame,
    classes: Sequence[str],
    pack: U8,
    rows: I64,
    maps: Maps,
) -> bool:
    """Write a sheet with image, Grad-CAM and Grad-CAM++ of each class's most confident right and wrong prediction.

    Parameters
    ----------
    path : pathlib.Path
        The PNG to write.
    galleries, classes, pack
        As in `write_sheets`.
    rows : numpy.ndarray
        int64 ``(M,)``: pack rows of the maps.
    maps : Maps
        The maps of these rows.

    Returns
    -------
    bool
        False where there is no such image, and nothing was written.
    """
    part = galleries[(galleries["rank"] == 1) & galleries["gallery"].isin(KINDS[:2])]
    part = part[part["row"].isin(rows)].sort_values(
        "class", key=lambda column: column.map(list(classes).index), kind="stable"
    )
    if part.empty:
        return False
    sheet = Sheet("What supports the predicted class", len(part), 3)
    for row, name in enumerate(("image", "Grad-CAM", "Grad-CAM++")):
        sheet.heading(row, name)
    for column, item in enumerate(part.to_dict("records")):
        position = int(np.flatnonzero(rows == item["row"])[0])
        pixels = pack[item["row"]]
        sheet.place(0, column, to_rgb(pixels), _lines(item), colour=_ink(item))
        sheet.place(1, column, overlay(pixels, maps.gradcam[position]), [])
        sheet.place(2, column, overlay(pixels, maps.gradcam_plus_plus[position]), [])
    sheet.bar("no support", "strongest support in this image")
    sheet.image.save(path, "PNG")
    return True
