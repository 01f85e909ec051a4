"""The leak report: which test images have a copy in training, and what merely remembering the training set scores."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from brainmri_core.config.data import CopySearchConfig
from brainmri_core.images.fingerprint import half_size
from brainmri_core.reporting.divisions import Division, SplitName, divisions
from brainmri_core.reporting.lookup import nearest_neighbours, unit_vectors
from brainmri_core.samples import known_patients
from brainmri_core.twins import find_leaks, find_twins, patient_twins

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

MAX_LOOKUPS = 4_000
NCC_THRESHOLD = float(CopySearchConfig().ncc_threshold)


class SplitLeak(BaseModel):
    """Copies and patients across one way to divide the images, and the score of a 1-nearest-neighbour look-up on it.

    Attributes
    ----------
    exact_copies, copies : int or None
        Test images with a pixel-identical, and with any confirmed, copy in training (the second includes the first).
    patients, known_patients : int or None
        Test images whose patient is known to be in training, and those whose patient is known; None where no image's is.
    accuracy, macro_f1 : float or None
        Of giving each test image the class of the most similar training image.
    accuracy_with_copy, accuracy_without_copy : float or None
        The same on the test images with and without a copy in training; None where there are none.
    accuracy_tied, accuracy_untied : float or None
        The same on the test images with a copy or their known patient in training, and on all others.
    n_looked_up : int
        Test images looked up: all of them, or a random 4,000.
    reason : str or None
        Why there are no figures, where there are none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: SplitName
    n_train: int = 0
    n_test: int = 0
    exact_copies: int | None = None
    copies: int | None = None
    patients: int | None = None
    known_patients: int | None = None
    n_looked_up: int = 0
    accuracy: float | None = None
    macro_f1: float | None = None
    accuracy_with_copy: float | None = None
    accuracy_without_copy: float | None = None
    accuracy_tied: float | None = None
    accuracy_untied: float | None = None
    reason: str | None = None


class LeakPair(BaseModel):
    """A test image and its copy in training, with both pictures as JPEG data URIs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: SplitName
    kind: Literal["exact", "near copy", "same group", "same patient"]
    ncc: float | None
    orientation: str
    test_path: str
    train_path: str
    test_label: str
    train_label: str
    test_image: str = Field(repr=False)
    train_image: str = Field(repr=False)


class LeakReport(BaseModel):
    """Leaks of this split beside those of other ways to divide the same images.

    Attributes
    ----------
    rows : list of SplitLeak
        One for each of `divisions.SPLIT_NAMES`; a report of an earlier version has fewer.
    unlisted : list of str
        Test images of this split that correlate with a training image, direct or mirrored, at the threshold that
        confirms copies, though the search by fingerprint listed no pair: found by the look-up among all training images.
    gallery : list of LeakPair
        Some pairs of each split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: list[SplitLeak]
    unlisted: list[str] = []
    gallery: list[LeakPair] = []

    def row(self, split: SplitName) -> SplitLeak:
        """Return one split's figures."""
        return next(row for row in self.rows if row.split == split)


def leak_report(
    samples: pd.DataFrame,
    thumbs: U8,
    copies: pd.DataFrame,
    *,
    seed: int,
    pack: U8 | None = None,
    ncc_threshold: float = NCC_THRESHOLD,
    mirrored: bool = True,
    pairs_per_split: int = 6,
) -> LeakReport:
    """Compare this split with other ways to divide the images.

    Parameters
    ----------
    samples : pandas.DataFrame
        N rows: path, label, class_index, origin, group, pixel_sha256, split, row and, where known, patient.
    thumbs : numpy.ndarray
        uint8 ``(N, 64, 64)``, row-aligned with `samples`; may be a memory map.
    copies : pandas.DataFrame
        Confirmed pairs: path_a, path_b, ncc.
    seed : int
        Seed of the divisions made here and of the sample of look-ups in large sets.
    pack : numpy.ndarray or None
        Pixels for the gallery; thumbnails are shown where an image is not packed.
    ncc_threshold : float
        Correlation that confirms a copy.
    mirrored : bool
        Whether a left-right mirrored image counts as a copy.
    pairs_per_split : int
        Pairs shown of each split.

    Returns
    -------
    LeakReport
        All divisions but this split are over all readable images with a known class, so that their figures are those
        anyone would get who divides the data set in that way.
    """
    rows: list[SplitLeak] = []
    gallery: list[LeakPair] = []
    unlisted: list[str] = []
    for division in divisions(samples, thumbs, copies, seed=seed):
        name, train, test = division.name, division.train, division.test
        if division.reason is not None:
            sizes = {"n_train": int(train.sum()), "n_test": int(test.sum())}
            rows.append(SplitLeak(split=name, reason=division.reason, **sizes))
            continue
        find = find_leaks if name == "this split" else find_twins
        twins = find(samples, copies, train, test)
        found = _look_up(samples, thumbs, train, test, seed)
        rows.append(_measure(samples, division, found, twins))
        gallery += _gallery(name, samples, thumbs, pack, twins, pairs_per_split)
        if name == "this split":
            similarity = found.similarity
            if mirrored:
                similarity = np.maximum(similarity, _mirrored(thumbs, np.flatnonzero(train), found.rows))
            unlisted = _unlisted(samples, found.rows, similarity, twins, ncc_threshold)
    return LeakReport(rows=rows, unlisted=unlisted, gallery=gallery)


@dataclass(frozen=True)
class _Lookup:
    """Test rows looked up, their class, the class and the correlation of their most similar training image."""

    rows: npt.NDArray[np.intp]
    truth: I64
    predicted: I64
    similarity: npt.NDArray[np.float32]


def _look_up(samples: pd.DataFrame, thumbs: U8, train: Mask, test: Mask, seed: int) -> _Lookup:
    train_rows, rows = np.flatnonzero(train), np.flatnonzero(test)
    if len(rows) > MAX_LOOKUPS:
        rows = np.sort(np.random.default_rng([seed, 0x100C]).choice(rows, MAX_LOOKUPS, replace=False))
    nearest, similarity = nearest_neighbours(thumbs, thumbs, train_rows=train_rows, test_rows=rows)
    labels = samples["class_index"].to_numpy(np.int64)
    return _Lookup(rows, labels[rows], labels[train_rows[nearest]], similarity)


def _measure(samples: pd.DataFrame, division: Division, found: _Lookup, twins: pd.DataFrame) -> SplitLeak:
    from sklearn.metrics import f1_score

    copied = twins[~twins["kind"].isin(["same group", "same patient"])]
    right = found.truth == found.predicted
    has_copy = np.isin(found.rows, copied["test"].to_numpy(np.int64))
    known = known_patients(samples) != ""
    shared = patient_twins(samples, division.train, division.test)["test"].to_numpy(np.int64)
    tied = has_copy | np.isin(found.rows, shared)

    def share(among: Mask) -> float | None:
        return float(right[among].mean()) if among.any() else None

    return SplitLeak(
        split=division.name,
        n_train=int(division.train.sum()),
        n_test=int(division.test.sum()),
        exact_copies=int((copied["kind"] == "exact").sum()),
        copies=len(copied),
        patients=len(shared) if known.any() else None,
        known_patients=int((known & division.test).sum()) if known.any() else None,
        n_looked_up=len(found.rows),
        accuracy=float(right.mean()),
        macro_f1=float(
            f1_score(
                found.truth, found.predicted, labels=np.unique(found.truth), average="macro", zero_division=0
            )
        ),
        accuracy_with_copy=share(has_copy),
        accuracy_without_copy=share(~has_copy),
        accuracy_tied=share(tied),
        accuracy_untied=share(~tied),
    )


def _unlisted(
    samples: pd.DataFrame,
    rows: npt.NDArray[np.intp],
    similarity: npt.NDArray[np.float32],
    twins: pd.DataFrame,
    threshold: float,
) -> list[str]:
    # 1e-4: two routes to one correlation differ in the last float32 digits
    missed = rows[(similarity >= threshold + 1e-4) & ~np.isin(rows, twins["test"].to_numpy(np.int64))]
    return sorted(samples["path"].to_numpy(object)[missed].tolist())


def _mirrored(
    thumbs: U8, train_rows: npt.NDArray[np.intp], rows: npt.NDArray[np.intp]
) -> npt.NDArray[np.float32]:
    """Correlate each image's mirror image with the training image that resembles it most at a quarter of the scale.

    A copy stays a copy when four by four pixels become one, and the search among them costs a sixteenth.
    """
    small = np.concatenate([_quarter(thumbs[start : start + 1024]) for start in range(0, len(thumbs), 1024)])
    nearest, _ = nearest_neighbours(small, small, train_rows=train_rows, test_rows=rows, mirror=True)
    return np.concatenate(
        [
            np.einsum(
                "ij,ij->i",
                unit_vectors(thumbs[rows[start : start + 1024], :, ::-1]),
                unit_vectors(thumbs[train_rows[nearest[start : start + 1024]]]),
            )
            for start in range(0, len(rows), 1024)
        ]
    )


def _quarter(images: U8) -> U8:
    return half_size(half_size(images)).astype(np.uint8)


def _gallery(
    name: SplitName,
    samples: pd.DataFrame,
    thumbs: U8,
    pack: U8 | None,
    twins: pd.DataFrame,
    limit: int,
) -> list[LeakPair]:
    paths, labels = samples["path"].to_numpy(object), samples["label"].to_numpy(object)
    # near copies say more than exact ones, so they come first; every class has its turn
    ranked = twins.assign(label=labels[twins["test"]], near=twins["kind"].ne("near copy")).sort_values(
        ["near", "test"], kind="stable"
    )
    ranked["turn"] = ranked.groupby(["near", "label"]).cumcount()
    half = [part.sort_values("turn", kind="stable") for _, part in ranked.groupby("near")]
    chosen = (
        pd.concat([part.head(limit if len(half) == 1 else limit // 2) for part in half]) if half else ranked
    )
    pairs = []
    columns = ["test", "train", "kind", "ncc", "orientation"]
    for test, train, kind, ncc, orientation in chosen[columns].itertuples(index=False):
        pairs.append(
            LeakPair(
                split=name,
                kind=kind,
                ncc=None if np.isnan(ncc) else float(ncc),
                orientation=orientation,
                test_path=paths[test],
                train_path=paths[train],
                test_label=labels[test],
                train_label=labels[train],
                test_image=thumbnail(samples, thumbs, pack, test),
                train_image=thumbnail(samples, thumbs, pack, train),
            )
        )
    return pairs


def thumbnail(samples: pd.DataFrame, thumbs: U8, pack: U8 | None, position: int, *, side: int = 112) -> str:
    """Return a small picture of an image, from the pack or else from its 64x64 thumbnail, as a JPEG data URI."""
    row = int(samples["row"].to_numpy()[position])
    pixels = pack[row] if pack is not None and row >= 0 else thumbs[position]
    return jpeg_uri(np.asarray(pixels), side)


def jpeg_uri(pixels: U8, side: int) -> str:
    """Encode uint8 ``(H, W)`` or ``(H, W, 3)`` pixels as a JPEG of at most `side` pixels, as a data URI."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
