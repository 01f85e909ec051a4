from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from brainmri_core.evaluation.galleries import KINDS, caption, select_galleries, write_overlays, write_sheets
from brainmri_core.evaluation.gradcam import Maps
from brainmri_core.pictures.thumbnails import colour_bar, colour_table, overlay, resized, shortened
from tests.core.evaluation.metrics_case import CLASSES, table_of


def table_by_hand() -> pd.DataFrame:
    """Truth, and the probabilities of glioma, notumor and pituitary."""
    rows = [
        (0, 0.90, 0.05, 0.05),
        (0, 0.60, 0.30, 0.10),
        (0, 0.10, 0.80, 0.10),
        (0, 0.30, 0.30, 0.40),
        (1, 0.01, 0.98, 0.01),
        (1, 0.55, 0.40, 0.05),
        (0, 0.90, 0.05, 0.05),
        (0, 0.34, 0.33, 0.33),
    ]
    labels = np.array([row[0] for row in rows])
    return table_of(labels, np.log([row[1:] for row in rows]), CLASSES)


def shown(galleries: pd.DataFrame, kind: str, name: str) -> list[int]:
    part = galleries[(galleries["gallery"] == kind) & (galleries["class"] == name)]
    assert part["rank"].tolist() == list(range(1, len(part) + 1))
    return part["row"].tolist()


def test_each_gallery_shows_what_its_name_says() -> None:
    found = select_galleries(table_by_hand(), CLASSES, top=2)
    assert shown(found, "most confident right", "glioma") == [0, 6], "equals in the order of their paths"
    assert shown(found, "most confident right", "notumor") == [4]
    assert shown(found, "most confident wrong", "glioma") == [2, 3]
    assert shown(found, "most confident wrong", "notumor") == [5]
    assert shown(found, "least certain", "glioma") == [7, 3]
    assert shown(found, "least certain", "notumor") == [5, 4]
    assert not (found["class"] == "pituitary").any()


def test_captions_say_file_truth_prediction_and_probability() -> None:
    table = table_by_hand()
    found = select_galleries(table, CLASSES, top=8).set_index("row")
    assert found.loc[[2], "caption"].unique().tolist() == ["test/002.png: is glioma, called notumor (80.0%)"]
    assert found.loc[[2], "prob_truth"].unique() == pytest.approx(0.1)
    rows = table.set_index("row")
    for number, item in found.iterrows():
        row = rows.loc[number]
        assert (item["path"], item["truth"], item["predicted"]) == (
            row["path"],
            row["label"],
            row["predicted"],
        )
        assert item["probability"] == row[f"prob_{row['predicted']}"]
        assert item["caption"] == caption(
            row["path"], row["label"], row["predicted"], row[f"prob_{row['predicted']}"]
        )


def test_sheets_show_the_very_pixels(tmp_path: Path) -> None:
    table = table_by_hand()
    pack = np.stack([np.full((176, 176), 20 + 25 * row, np.uint8) for row in range(len(table))])
    galleries = select_galleries(table, CLASSES, top=2)
    written = write_sheets(tmp_path, galleries, CLASSES, pack)
    assert [path.name for path in written] == [f"{kind.replace(' ', '_')}.png" for kind in KINDS]
    with Image.open(tmp_path / "most_confident_wrong.png") as image:
        pixels = np.asarray(image.convert("L"))
    levels, counts = np.unique(pixels, return_counts=True)
    tiles = {int(level) for level, count in zip(levels, counts, strict=True) if count >= 176 * 176}
    assert tiles - {255} == {20 + 25 * row for row in (2, 3, 5)}
    assert pd.read_csv(tmp_path / "galleries.csv")["caption"].tolist() == galleries["caption"].tolist()


def test_a_faultless_model_has_no_sheet_of_errors(tmp_path: Path) -> None:
    labels = np.array([0, 1, 2])
    table = table_of(labels, np.eye(3) * 5, CLASSES)
    galleries = select_galleries(table, CLASSES, top=2)
    names = [path.name for path in write_sheets(tmp_path, galleries, CLASSES, np.zeros((3, 8, 8), np.uint8))]
    assert "most_confident_wrong.png" not in names
    assert len(names) == 2


@pytest.mark.parametrize("colour", [False, True])
def test_overlays_of_the_surest_predictions_are_drawn(tmp_path: Path, colour: bool) -> None:
    table = table_by_hand()
    shape = (8, 32, 32, 3) if colour else (8, 32, 32)
    pack = np.full(shape, 90, np.uint8)
    galleries = select_galleries(table, CLASSES, top=1)
    rows = np.unique(galleries["row"].to_numpy())
    hot = np.zeros((len(rows), 16, 16), np.float32)
    hot[:, :8] = 1
    assert write_overlays(tmp_path / "cam.png", galleries, CLASSES, pack, rows, Maps(hot, hot, 2))
    with Image.open(tmp_path / "cam.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    coloured = (pixels.max(axis=-1) - pixels.min(axis=-1) > 40).sum()
    tiles = 2 * 4  # both maps of right and wrong of two classes; half of each is hot
    assert coloured > tiles * 176 * 176 / 2 * 0.8
    nothing = galleries.iloc[:0]
    assert not write_overlays(tmp_path / "none.png", nothing, CLASSES, pack, rows, Maps(hot, hot, 2))
    assert not (tmp_path / "none.png").exists()


def test_an_overlay_leaves_the_anatomy_where_nothing_supports_the_class() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8)
    values = np.zeros((32, 32), np.float32)
    values[:16] = 1
    found = overlay(pixels, values)
    assert (found[18:] == pixels[18:, :, None]).all()
    expected = pixels[:14, :, None] * 0.4 + colour_table()[255] * 0.6
    assert found[:14] == pytest.approx(expected, abs=1)


def test_the_colour_bar_shows_the_colours_of_an_overlay() -> None:
    bar = np.asarray(colour_bar(101, 4))
    flat = np.full((4, 101), 96, np.uint8)
    for column, value in ((0, 0.0), (50, 0.5), (100, 1.0)):
        there = overlay(flat, np.full((4, 101), value, np.float32))
        assert bar[0, column] == pytest.approx(there[0, column], abs=2)


def test_thumbnails_are_reduced_and_never_enlarged() -> None:
    assert resized(np.zeros((300, 200), np.uint8), 100).size == (67, 100)
    assert resized(np.zeros((30, 20), np.uint8), 100).size == (20, 30)


@pytest.mark.parametrize(
    ("text", "expected"), [("short", "short"), ("a_very_long_file_name (12).jpg", "a_ve…2).jpg")]
)
def test_long_names_keep_their_end(text: str, expected: str) -> None:
    found = shortened(text, 11)
    assert found == expected
    assert len(found) <= 11
