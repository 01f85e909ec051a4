"""Checks of images by their features: outliers, nearest training images, and drift of the test images.

Labels of test images are not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from brainmri_core.arrays import F32, F64, I64, U8
from brainmri_core.evaluation.drift import DriftMeasure, measure_drift
from brainmri_core.evaluation.nearest import FeatureSpace
from brainmri_core.evaluation.outliers import fit_with_scores
from brainmri_core.evaluation.shift import ImageSet, image_features
from brainmri_core.pictures.thumbnails import Sheet, to_rgb
from brainmri_core.splitting.assignment import independent_units

OUTLIER_COLUMNS = ("rank", "path", "split", "score", "flagged", "nearest")
_NEAREST, _ROWS = 4, 10


@dataclass(frozen=True)
class FeaturedImages:
    """The training and test images of a pack with their features.

    Attributes
    ----------
    table : pandas.DataFrame
        N rows of the sample table.
    features : numpy.ndarray
        float32 ``(N, D)``, in the order of the table.
    pixels : numpy.ndarray
        The pack, to whose rows the table's ``row`` refers.
    units : tuple of str
        Independent unit of each image.
    space : FeatureSpace
        The features of the training images, in the order of the table.
    """

    table: pd.DataFrame
    features: F32
    pixels: U8
    units: tuple[str, ...]
    space: FeatureSpace

    @classmethod
    def of(cls, features: F32, samples: pd.DataFrame, pixels: U8) -> FeaturedImages:
        """Take the packed training and test images of a sample table; `features` are by row of the pack."""
        used = samples[(samples["row"] >= 0) & samples["split"].isin(["train", "test"])]
        table = used.sort_values("row", ignore_index=True)
        own = features[table["row"].to_numpy(np.int64)]
        space = FeatureSpace.of(own[(table["split"] == "train").to_numpy()])
        return cls(table, own, pixels, tuple(independent_units(table)), space)

    def positions(self, split: str) -> I64:
        """Return the positions in the table of the images of a side."""
        return np.flatnonzero((self.table["split"] == split).to_numpy())

    def nearest(self, position: int) -> list[tuple[int, float]]:
        """Return positions and cosines of the training images nearest to an image, without its own patient and group."""
        training = self.positions("train")
        likeness = self.space.likeness(self.features[position : position + 1])[0]
        order = [
            at for at in np.argsort(-likeness, kind="stable") if not self._together(training[at], position)
        ]
        return [(int(training[at]), float(likeness[at])) for at in order[:_NEAREST]]

    def _together(self, first: int, second: int) -> bool:
        return self.units[first] == self.units[second]

    def outliers(self, seed: int) -> tuple[pd.DataFrame, float] | None:
        """Rank the images by their distance to the nearest class of training images.

        Returns
        -------
        tuple of pandas.DataFrame and float, or None
            A table with `OUTLIER_COLUMNS`, where ``nearest`` are the labels of the nearest training images, and the score
            above which an image is flagged. Training images are scored by a fit without their group. None if there are too
            few training images.
        """
        training, test = self.positions("train"), self.positions("test")
        labels = self.table["class_index"].to_numpy(np.int64)[training]
        units = [self.units[position] for position in training]
        fitted = fit_with_scores(self.features[training], labels, units, seed)
        if fitted is None:
            return None
        scores: F64 = np.zeros(len(self.table))
        scores[training] = fitted[1]
        scores[test] = fitted[0].score(self.features[test])
        found = self.table[["path", "split"]].assign(score=scores, flagged=scores > fitted[0].threshold)
        found = found.sort_values(["score", "path"], ascending=[False, True])
        labels_near = [
            ", ".join(self.table["label"].iloc[near] for near, _ in self.nearest(position)) if flagged else ""
            for position, flagged in zip(found.index, found["flagged"], strict=True)
        ]
        found = found.assign(rank=np.arange(1, len(found) + 1), nearest=labels_near)
        return found[list(OUTLIER_COLUMNS)].reset_index(drop=True), fitted[0].threshold

    def drift(self, false_alarms: float, seed: int) -> tuple[DriftMeasure, ...]:
        """Compare the test images with the training images."""
        sizes = (self.table[name].to_numpy(np.int64) for name in ("width", "height"))
        described = image_features(self.pixels[self.table["row"].to_numpy(np.int64)], *sizes)
        sides = [
            ImageSet(described[at], tuple(self.units[position] for position in at), self.features[at])
            for at in (self.positions("train"), self.positions("test"))
        ]
        return measure_drift(*sides, false_alarms=false_alarms, seed=seed, named="the training images")

    def sheet(self, title: str, paths: list[str]) -> Image.Image:
        """Draw images, each beside its nearest training images; labels of test images are not shown."""
        places = pd.Series(self.table.index, self.table["path"])[paths[:_ROWS]].tolist()
        sheet = Sheet(title, 1 + _NEAREST, len(places))
        for line, position in enumerate(places):
            item = self.table.iloc[position]
            sheet.heading(line, str(line + 1))
            label = f"is {item['label']}" if item["split"] == "train" else "of the test split"
            sheet.place(line, 0, self._pixels(position), [Path(item["path"]).name, label])
            for column, (near, likeness) in enumerate(self.nearest(position), 1):
                other = self.table.iloc[near]
                lines = [Path(other["path"]).name, f"is {other['label']}", f"cosine {likeness:.2f}"]
                sheet.place(line, column, self._pixels(near), lines)
        return sheet.image

    def _pixels(self, position: int) -> U8:
        return to_rgb(self.pixels[self.table["row"].iloc[position]])
