from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import StandardScaler

from brainmri_core.arrays import F32
from brainmri_core.evaluation.feature_checks import FeaturedImages
from brainmri_core.evaluation.nearest import FeatureSpace

CLASSES, TRAIN, IMAGES = 3, 200, 240


def featured(change: F32 | float = 0.0, *, patients: bool = False) -> FeaturedImages:
    """Three classes of features, two images a group; the last 40 images are the test side."""
    rng, labels = np.random.default_rng(3), np.arange(IMAGES) // 2 % CLASSES
    features = rng.normal(size=(IMAGES, 12)) + 8 * np.eye(CLASSES, 12)[labels] + change
    table = pd.DataFrame(
        {
            "row": np.arange(IMAGES),
            "path": [f"{row:03}.png" for row in range(IMAGES)],
            "label": [f"c{label}" for label in labels],
            "class_index": labels,
            "group": [f"g{row // 2}" for row in range(IMAGES)],
            "split": ["train" if row < TRAIN else "test" for row in range(IMAGES)],
            "width": 20,
            "height": 20,
            **({"patient": [f"p{row // 8}" for row in range(IMAGES)]} if patients else {}),
        }
    )
    pixels = rng.integers(0, 256, (IMAGES, 20, 20)).astype(np.uint8)
    return FeaturedImages.of(features.astype(np.float32), table, pixels)


def at(rows: list[int], change: float) -> F32:
    """Return what is added to some images."""
    added = np.zeros((IMAGES, 12), np.float32)
    added[rows, 5] = change
    return added


def test_images_unlike_every_class_come_first_whichever_side_they_are_on() -> None:
    found = featured(at([7, 230], 25)).outliers(seed=1)
    assert found is not None
    table, threshold = found
    assert set(table["path"][:2]) == {"007.png", "230.png"} and table["flagged"][:2].all()
    assert (table["flagged"] == (table["score"] > threshold)).all()
    assert table["flagged"].sum() < 12, "few of the others"
    assert table["rank"].tolist() == [*range(1, IMAGES + 1)]
    assert table["nearest"][0].count(", ") == 3 and table["nearest"].iloc[-1] == ""


def test_labels_of_test_images_are_not_looked_at() -> None:
    images = featured()
    other = images.table["class_index"].where(images.table["split"] == "train", 0)
    changed = FeaturedImages.of(images.features, images.table.assign(class_index=other), images.pixels)
    (first, _), (second, _) = images.outliers(seed=1) or (None, 0), changed.outliers(seed=1) or (None, 1)
    pd.testing.assert_frame_equal(first, second)
    assert images.drift(0.01, 1) == changed.drift(0.01, 1)


@pytest.mark.parametrize("patients", [False, True])
def test_the_nearest_images_are_of_others_and_by_the_cosine(patients: bool) -> None:
    images = featured(patients=patients)
    values = StandardScaler().fit(images.features[:TRAIN]).transform(images.features)
    wanted = cosine_similarity(values, values[:TRAIN])
    size = 8 if patients else 2
    for position in (10, 235):
        wanted[position, position // size * size : (position // size + 1) * size] = -2
        best = np.argsort(-wanted[position])[:4]
        near = images.nearest(position)
        assert [other for other, _ in near] == best.tolist()
        assert [cosine for _, cosine in near] == pytest.approx(wanted[position, best], abs=1e-4)


def test_a_network_that_makes_the_same_of_all_images_tells_nothing() -> None:
    rounding = np.float32(1) + np.random.default_rng(1).normal(0, 1e-6, (50, 8)).astype(np.float32)
    assert not FeatureSpace.of(rounding).tells and FeatureSpace.of(rounding * [1, *range(7)]).tells is False
    assert not FeatureSpace.of(rounding).likeness(rounding).any()
    assert FeatureSpace.of(rounding + np.eye(50, 8, dtype=np.float32)).tells


def test_a_test_side_from_elsewhere_is_told_by_what_differs() -> None:
    assert [item.kind for item in featured().drift(0.01, seed=1) if item.exceeded] == []
    moved = featured(at([*range(TRAIN, IMAGES)], 8)).drift(0.01, seed=1)
    assert [item.kind for item in moved if item.exceeded] == ["embedding"]
    few = featured()
    alone = FeaturedImages.of(few.features, few.table[few.table["split"] == "train"], few.pixels)
    assert {item.reason for item in alone.drift(0.01, 1)} == {"there are fewer than two images"}
