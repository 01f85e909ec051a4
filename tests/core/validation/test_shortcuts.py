from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageFont

from brainmri_core.images.statistics import (
    INTENSITY_STATISTICS,
    framed,
    intensity_statistics,
    scan_pack,
    text_like,
)
from brainmri_core.validation import shortcuts
from brainmri_core.validation.shortcuts import metadata_features, shortcut_baseline, shortcut_scores

CLASSES = ["glioma", "notumor"]


def samples_of(n: int, *, telling: bool, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 2
    width = np.where(label == 1, 236, 512) if telling else np.full(n, 512)
    return pd.DataFrame(
        {
            "group": [str(i // 4) for i in range(n)],
            "class_index": label,
            "width": width,
            "height": width,
            "bytes": rng.integers(20_000, 40_000, n),
            "mode": "RGB",
        }
    )


def test_statistics_are_those_of_the_pixels() -> None:
    flat = np.full((1, 32, 32), 100, np.uint8)
    half = np.zeros((1, 32, 32), np.uint8)
    half[:, 16:] = 200
    values = intensity_statistics(np.concatenate([flat, half]))
    first, second = (dict(zip(INTENSITY_STATISTICS, row, strict=True)) for row in values)
    assert first["mean"] == 100
    assert first["std"] == pytest.approx(0, abs=1e-6)
    assert first["median"] == 100
    assert first["entropy"] == 0
    assert (second["mean"], second["std"], second["percentile_75"]) == (100, 100, 200)
    assert second["entropy"] == pytest.approx(1)
    assert second["fraction_black"] == 0.5


def test_scan_reads_colour_and_more_than_one_slice() -> None:
    gray = np.random.default_rng(0).integers(0, 256, (300, 16, 16), dtype=np.uint8)
    scan = scan_pack(gray)
    assert np.array_equal(scan.statistics, intensity_statistics(gray))
    assert scan.text.shape == scan.framed.shape == (300,)
    assert np.array_equal(scan_pack(np.repeat(gray[..., None], 3, axis=3)).statistics, scan.statistics)


@pytest.mark.parametrize("bars", [0, 30])
@pytest.mark.parametrize("side", ["frame", "left", "top", "right", "bottom", "none"])
def test_lines_along_an_edge_are_seen_behind_black_bars_too(side: str, bars: int) -> None:
    image = np.zeros((224, 224), np.uint8)
    content = image[bars : 224 - bars]
    yy, xx = np.mgrid[-1 : 1 : content.shape[0] * 1j, -1:1:224j]
    content[yy**2 + xx**2 < 0.6] = 150
    for name, line in {
        "left": np.s_[:, :2],
        "right": np.s_[:, -2:],
        "top": np.s_[:2],
        "bottom": np.s_[-2:],
    }.items():
        if side in (name, "frame"):
            content[line] = 230
    assert framed(image[None]).tolist() == [side != "none"]


def test_a_lifted_background_is_no_frame() -> None:
    image = np.full((1, 224, 224), 90, np.uint8)
    image[0, 60:160, 60:160] = 200
    assert not framed(image)[0]


@pytest.mark.parametrize("place", [(6, 4), (150, 4), (6, 190), (150, 190)])
def test_writing_in_a_dark_corner_is_seen(place: tuple[int, int]) -> None:
    image = Image.new("L", (224, 224))
    draw = ImageDraw.Draw(image)
    draw.ellipse((52, 42, 172, 182), fill=120)
    clean = np.asarray(image).copy()
    draw.text(place, "DOE^JANE 61\nSE 3 IM 12", fill=220, font=ImageFont.load_default(11))
    found = text_like(np.stack([clean, np.asarray(image)]))
    assert found.tolist() == [False, True]


def test_metadata_features_are_what_the_file_says() -> None:
    row = samples_of(2, telling=True).iloc[1:].assign(height=118, bytes=236 * 59)
    assert metadata_features(row).tolist() == [[236, 118, 236 * 59, 2.0, 0.5, 6.0]]


def test_a_class_that_its_size_gives_away_is_found() -> None:
    frame = samples_of(80, telling=True)
    statistics = np.random.default_rng(1).normal(size=(80, 10))
    metadata, intensity = shortcut_scores(frame, statistics, CLASSES, seed=0)
    assert metadata.auroc["notumor"] == 1.0
    assert metadata.balanced_accuracy == 1.0
    assert intensity.auroc["notumor"] is not None
    assert 0.2 < intensity.auroc["notumor"] < 0.8
    assert (metadata.chance, metadata.folds) == (0.5, 5)


def test_groups_do_not_straddle_folds() -> None:
    """Features that identify the group, whose class is random, must not help."""
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(60), 4)
    frame = samples_of(240, telling=False).assign(group=group.astype(str))
    frame["class_index"] = rng.integers(0, 2, 60)[group]
    identity = rng.normal(size=(60, 10))[group]
    _, grouped = shortcut_scores(frame, identity, CLASSES, seed=0)
    _, leaky = shortcut_scores(frame.assign(group=np.arange(240).astype(str)), identity, CLASSES, seed=0)
    assert leaky.balanced_accuracy is not None
    assert grouped.balanced_accuracy is not None
    assert leaky.balanced_accuracy > 0.95
    assert grouped.balanced_accuracy < 0.7


def test_scores_are_the_same_twice() -> None:
    frame = samples_of(60, telling=False)
    statistics = np.random.default_rng(1).normal(size=(60, 10))
    assert shortcut_scores(frame, statistics, CLASSES, seed=5) == shortcut_scores(
        frame, statistics, CLASSES, seed=5
    )


@pytest.mark.parametrize(
    ("labels", "groups", "reason"),
    [
        ([0, 0, 0, 0], "1234", "fewer than two classes are present"),
        ([0, 0, 0, 1], "1233", "the class notumor has a single group"),
        ([], "", "fewer than two classes are present"),
    ],
)
def test_too_little_data_gives_a_reason_and_no_score(labels: list[int], groups: str, reason: str) -> None:
    frame = samples_of(len(labels), telling=False).assign(class_index=labels, group=list(groups))
    for score in shortcut_scores(frame, np.zeros((len(labels), 10)), CLASSES, seed=0):
        assert (score.balanced_accuracy, score.reason) == (None, reason)


def test_large_sets_are_cut_to_whole_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcuts, "MAX_IMAGES", 40)
    frame = samples_of(80, telling=True)
    metadata, _ = shortcut_scores(frame, np.zeros((80, 10)), CLASSES, seed=0)
    assert metadata.n_images == 40
    assert metadata.auroc["glioma"] == 1.0


def test_baseline_gives_probabilities_over_all_classes() -> None:
    features = np.arange(20, dtype=float)[:, None]
    labels = np.repeat([0, 2], 10)
    found = shortcut_baseline(features, labels, features, num_classes=4)
    assert found.shape == (20, 4)
    assert np.allclose(found.sum(axis=1), 1)
    assert (found[:, [1, 3]] == 0).all()
    assert found[0].argmax() == 0
    assert found[-1].argmax() == 2
