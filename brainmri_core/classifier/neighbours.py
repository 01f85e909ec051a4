"""The training images that are most similar to an image, if the classifier's own pack is available."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from brainmri_core.arrays import F32, I64, U8
from brainmri_core.classifier.inference import Inference
from brainmri_core.classifier.reference import encoder_of
from brainmri_core.config.data import CopySearchConfig
from brainmri_core.copies.likeness import difference
from brainmri_core.copies.lookup import unit_vectors
from brainmri_core.errors import ConfigError, IntegrityError, StorageError
from brainmri_core.evaluation.nearest import FeatureSpace
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.encoder import Encoder, encode, features_of, kept_features
from brainmri_core.project.layout import Layout, projects_above
from brainmri_core.project.logs import StageLog
from brainmri_core.project.pointer_store import follow
from brainmri_core.project.pointers import PackPointer
from brainmri_core.project.sample_table import read_samples

_SIDE = 64
_SOON = 5000
"""Up to this many training images, their features are computed when the app starts: about a minute on a CPU."""
_COPIES = CopySearchConfig()


@dataclass(frozen=True)
class Neighbour:
    """A training image that is similar to the queried image.

    Attributes
    ----------
    similarity : float
        Normalised cross-correlation of the pixels; with the mirror image if `mirrored`.
    likeness : float or None
        Cosine similarity of the features; None if the search used pixels.
    """

    path: str
    label: str
    similarity: float
    mirrored: bool
    is_copy: bool
    pixels: U8
    likeness: float | None = None


@dataclass(frozen=True)
class Neighbours:
    """The training images of a pack, prepared for searching.

    Attributes
    ----------
    pixels : numpy.ndarray
        The pack, memory-mapped.
    rows : numpy.ndarray
        int64 ``(N,)``: rows of the training images.
    vectors : numpy.ndarray
        float32 ``(N, 4096)``: their 64 x 64 versions, mean-removed and scaled to length one.
    encoder, features : Encoder and FeatureSpace, or None
        For comparing features; without them, pixels are compared.
    """

    pixels: U8
    rows: I64
    paths: list[str]
    labels: list[str]
    vectors: F32
    encoder: Encoder | None = None
    features: FeatureSpace | None = None

    def nearest(self, pixels: U8, count: int) -> list[Neighbour]:
        """Return the training images most similar to a fitted image: copies by pixels first, then others by features.

        Parameters
        ----------
        pixels : numpy.ndarray
            uint8 ``(P, P)`` or ``(P, P, 3)``, fitted like the pack.
        count : int
            Number of images.
        """
        turns = np.stack([_thumb(pixels), _thumb(pixels)[:, ::-1]])
        scores = self.vectors @ unit_vectors(turns).T
        by_pixels = np.argsort(-scores.max(axis=1), kind="stable")[:count].tolist()
        if self.encoder is None or self.features is None:
            return [self._neighbour(position, turns, scores) for position in by_pixels]
        seen = encode(self.encoder, pixels[None], np.arange(1), 1, progress=False)
        likeness = self.features.likeness(seen)[0]
        by_features = np.argsort(-likeness, kind="stable")[:count].tolist()
        positions = dict.fromkeys([*by_pixels, *by_features])
        found = {position: self._neighbour(position, turns, scores, likeness) for position in positions}
        copies = [position for position in by_pixels if found[position].is_copy]
        return [found[position] for position in dict.fromkeys([*copies, *by_features])][:count]

    def _neighbour(self, position: int, turns: U8, scores: F32, likeness: F32 | None = None) -> Neighbour:
        turn = int(scores[position].argmax())
        similarity = float(scores[position, turn])
        image = np.asarray(self.pixels[self.rows[position]])
        unlike = float(difference(turns[turn : turn + 1], _thumb(image)[None])[0])
        return Neighbour(
            self.paths[position],
            self.labels[position],
            similarity,
            turn == 1,
            similarity >= _COPIES.ncc_threshold and unlike <= _COPIES.max_difference,
            image,
            None if likeness is None else float(likeness[position]),
        )


def find_neighbours(weights: Path, inference: Inference) -> Neighbours | None:
    """Open the training images of a checkpoint, with their features if these are stored or quickly computed.

    Parameters
    ----------
    weights : pathlib.Path
        The checkpoint's file; its project is searched in the folders above.
    inference : Inference
        The model.

    Returns
    -------
    Neighbours or None
        None if the project, or the pack that the checkpoint was trained on, is not found.
    """
    layout, meta = next(projects_above(weights.resolve()), None), inference.meta
    if layout is None or meta.pack_pointer is None:
        return None
    try:
        pack = follow(layout, PackPointer, meta.pack_pointer)
        pixels = open_pack(layout, pack)
        table = read_samples(layout.absolute(pack.samples), {"split": "str", "label": "str", "row": "int64"})
    except (ConfigError, IntegrityError):
        return None  # a model can be used without its data
    if pack.content_hash != meta.data_hash:
        return None
    trained = table[(table["split"] == "train") & (table["row"] >= 0)]
    rows = trained["row"].to_numpy(np.int64)
    if not len(rows):
        return None
    vectors = unit_vectors(np.stack([_thumb(np.asarray(pixels[row])) for row in rows.tolist()]))
    encoder, features = _features(inference, pack, layout)
    space = None if features is None else FeatureSpace.of(features[rows])
    names = trained["path"].tolist(), trained["label"].tolist()
    return Neighbours(pixels, rows, *names, vectors, encoder, space if space and space.tells else None)


def _features(inference: Inference, pack: PackPointer, layout: Layout) -> tuple[Encoder, F32 | None]:
    """Return the encoder and the features of a whole pack; None if they would take long or cannot be stored."""
    encoder, silent = encoder_of(inference), StageLog("app", "app", pack.dataset, [])
    if pack.n_images > _SOON:
        return encoder, kept_features(encoder, pack, layout)
    try:
        return encoder, features_of(encoder, pack, layout, silent, inference.batch_size)[0]
    except StorageError:  # a read-only project
        return encoder, kept_features(encoder, pack, layout)


def _thumb(pixels: U8) -> U8:
    image = Image.fromarray(pixels).convert("L")
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
