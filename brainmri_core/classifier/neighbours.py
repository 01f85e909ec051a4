"""The training images most like an image, where a classifier's own pack is at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from brainmri_core.arrays import F32, I64, U8
from brainmri_core.config.data import CopySearchConfig
from brainmri_core.copies.likeness import difference
from brainmri_core.copies.lookup import unit_vectors
from brainmri_core.errors import ConfigError, IntegrityError
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.checkpoint import CheckpointMeta
from brainmri_core.project.layout import projects_above
from brainmri_core.project.pointer_store import follow
from brainmri_core.project.pointers import PackPointer
from brainmri_core.project.sample_table import read_samples

_SIDE = 64
_COPIES = CopySearchConfig()


@dataclass(frozen=True)
class Neighbour:
    """A training image, its normalised cross-correlation with the image asked about, and whether it is a copy of it."""

    path: str
    label: str
    similarity: float
    mirrored: bool
    is_copy: bool
    pixels: U8


@dataclass(frozen=True)
class Neighbours:
    """The training side of a pack, ready to be searched.

    Attributes
    ----------
    pixels : numpy.ndarray
        The pack, memory-mapped.
    rows : numpy.ndarray
        int64 ``(N,)``: rows of the training images.
    vectors : numpy.ndarray
        float32 ``(N, 4096)``: their 64 x 64 versions, mean removed, of length one.
    """

    pixels: U8
    rows: I64
    paths: list[str]
    labels: list[str]
    vectors: F32

    def nearest(self, pixels: U8, count: int) -> list[Neighbour]:
        """Return the training images most like a fitted image, as it is or mirrored left to right.

        Parameters
        ----------
        pixels : numpy.ndarray
            uint8, fitted as those of the pack are.
        count : int
            How many.
        """
        thumb = _thumb(pixels)
        turns = np.stack([thumb, thumb[:, ::-1]])
        scores = self.vectors @ unit_vectors(turns).T
        best = scores.max(axis=1)
        found = []
        for position in np.argsort(-best, kind="stable")[:count].tolist():
            turn, similarity = int(scores[position].argmax()), float(best[position])
            image = np.asarray(self.pixels[self.rows[position]])
            unlike = float(difference(turns[turn : turn + 1], _thumb(image)[None])[0])
            is_copy = similarity >= _COPIES.ncc_threshold and unlike <= _COPIES.max_difference
            found.append(
                Neighbour(self.paths[position], self.labels[position], similarity, turn == 1, is_copy, image)
            )
        return found


def find_neighbours(weights: Path, meta: CheckpointMeta) -> Neighbours | None:
    """Open the training images of a checkpoint.

    Parameters
    ----------
    weights : pathlib.Path
        The checkpoint's file; its project is looked for in the folders above.
    meta : CheckpointMeta
        Its record.

    Returns
    -------
    Neighbours or None
        None where the project, or the pack the checkpoint was trained on, is not here.
    """
    layout = next(projects_above(weights.resolve()), None)
    if layout is None or meta.pack_pointer is None:
        return None
    try:
        pack = follow(layout, PackPointer, meta.pack_pointer)
        pixels = open_pack(layout, pack)
        table = read_samples(layout.absolute(pack.samples), {"split": "str", "label": "str", "row": "int64"})
    except (ConfigError, IntegrityError):
        return None  # a model is used without its data, too
    if pack.content_hash != meta.data_hash:
        return None
    trained = table[(table["split"] == "train") & (table["row"] >= 0)]
    rows = trained["row"].to_numpy(np.int64)
    if not len(rows):
        return None
    vectors = unit_vectors(np.stack([_thumb(np.asarray(pixels[row])) for row in rows.tolist()]))
    return Neighbours(pixels, rows, trained["path"].tolist(), trained["label"].tolist(), vectors)


def _thumb(pixels: U8) -> U8:
    image = Image.fromarray(pixels).convert("L")
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
