"""The leak report: test images with a copy in training, and the score of merely memorising the training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from brainmri_core.arrays import I64, U8, Indices, Mask
from brainmri_core.config.data import CopySearchConfig
from brainmri_core.copies.leaks import find_leaks, find_twins, patient_twins
from brainmri_core.copies.likeness import ORIENTATIONS
from brainmri_core.copies.lookup import nearest_neighbours
from brainmri_core.copies.unlisted import best_copies
from brainmri_core.pictures.thumbnails import data_uri, resized
from brainmri_core.project.sample_table import known_patients
from brainmri_core.splitting.divisions import Division, SplitName, divisions

MAX_LOOKUPS = 4_000
SEARCH = CopySearchConfig()


class SplitLeak(BaseModel):
    """Leaks across one division of the images, and the score of a 1-nearest-neighbour look-up on it.

    Attributes
    ----------
    exact_copies, copies : int or None
        Number of test images with a pixel-identical copy, and with any confirmed copy, in training.
    patients, known_patients : int or None
        Number of test images whose patient is in training, and of those whose patient is known; None where no patient is
        known.
    accuracy, macro_f1 : float or None
        Scores of the look-up: each test image gets the class of the most similar training image.
    accuracy_with_copy, accuracy_without_copy : float or None
        Its accuracy on the test images with and without a copy in training; None where there are none.
    accuracy_tied, accuracy_untied : float or None
        Its accuracy on the test images with a copy or their patient in training, and on all others.
    n_looked_up : int
        Number of test images looked up: all, or a random sample of 4,000.
    reason : str or None
        Why there are no figures; None if there are.
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


class UnlistedCopy(BaseModel):
    """A test image and a training image that show the same picture but were not paired by the search for copies.

    Attributes
    ----------
    orientation : str
        One of `likeness.ORIENTATIONS`, in which the test image looks like the training image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    test_path: str
    train_path: str
    ncc: float
    orientation: str


class LeakReport(BaseModel):
    """Leaks of this split beside those of other divisions of the same images.

    Attributes
    ----------
    rows : list of SplitLeak
        One for each of `divisions.SPLIT_NAMES`; fewer in a report of an older version.
    unlisted : list of str
        Test images of this split with a copy among the training images that the search by fingerprint did not list. An
        exhaustive comparison with all training images, in all orientations, found them.
    unlisted_pairs : list of UnlistedCopy
        The same with the training image of highest correlation; empty in a report of an older version.
    gallery : list of LeakPair
        Some pairs of each division.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: list[SplitLeak]
    unlisted: list[str] = []
    unlisted_pairs: list[UnlistedCopy] = []
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
    search: CopySearchConfig = SEARCH,
    pairs_per_split: int = 6,
) -> LeakReport:
    """Compare this split with other divisions of the images.

    Parameters
    ----------
    samples : pandas.DataFrame
        N rows: path, label, class_index, origin, group, pixel_sha256, split, row and, where known, patient.
    thumbs : numpy.ndarray
        uint8 ``(N, 64, 64)``, in the order of `samples`; may be a memory map.
    copies : pandas.DataFrame
        Confirmed pairs: path_a, path_b, ncc.
    seed : int
        Seed of the divisions, and of the sample of test images in large data sets.
    pack : numpy.ndarray or None
        Pixels for the gallery; images that are not in the pack are shown as thumbnails.
    search : CopySearchConfig
        What confirms a copy. Unlisted copies are searched in all eight orientations, whichever it names.
    pairs_per_split : int
        Number of pairs of each division in the gallery.

    Returns
    -------
    LeakReport
        All divisions except this split contain all readable images with a known class, so that their figures are those
        that anyone would get who divides the data set in that way.
    """
    rows: list[SplitLeak] = []
    gallery: list[LeakPair] = []
    unlisted: list[UnlistedCopy] = []
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
            others = np.setdiff1d(found.rows, twins["test"].to_numpy(np.int64))
            unlisted = _unlisted(samples, thumbs, others, np.flatnonzero(train), search)
    paths = [copy.test_path for copy in unlisted]
    return LeakReport(rows=rows, unlisted=paths, unlisted_pairs=unlisted, gallery=gallery)


@dataclass(frozen=True)
class _Lookup:
    """The test rows that were looked up, their class, and the class of the most similar training image."""

    rows: Indices
    truth: I64
    predicted: I64


def _look_up(samples: pd.DataFrame, thumbs: U8, train: Mask, test: Mask, seed: int) -> _Lookup:
    train_rows, rows = np.flatnonzero(train), np.flatnonzero(test)
    if len(rows) > MAX_LOOKUPS:
        rows = np.sort(np.random.default_rng([seed, 0x100C]).choice(rows, MAX_LOOKUPS, replace=False))
    nearest, _ = nearest_neighbours(thumbs, thumbs, train_rows=train_rows, test_rows=rows)
    labels = samples["class_index"].to_numpy(np.int64)
    return _Lookup(rows, labels[rows], labels[train_rows[nearest]])


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
    thumbs: U8,
    rows: I64,
    others: I64,
    search: CopySearchConfig,
) -> list[UnlistedCopy]:
    paths = samples["path"].to_numpy(object)
    found = [
        UnlistedCopy(
            test_path=paths[copy.row],
            train_path=paths[copy.other],
            ncc=round(copy.ncc, 4),
            orientation=ORIENTATIONS[copy.orientation],
        )
        for copy in best_copies(thumbs, rows, others, search)
    ]
    return sorted(found, key=lambda copy: copy.test_path)


def _gallery(
    name: SplitName,
    samples: pd.DataFrame,
    thumbs: U8,
    pack: U8 | None,
    twins: pd.DataFrame,
    limit: int,
) -> list[LeakPair]:
    paths, labels = samples["path"].to_numpy(object), samples["label"].to_numpy(object)
    # Near copies are more informative than exact ones, so they come first, with the classes in turn.
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
    """Return a small picture of an image as a JPEG data URI, from the pack or else from its 64x64 thumbnail."""
    row = int(samples["row"].to_numpy()[position])
    pixels = pack[row] if pack is not None and row >= 0 else thumbs[position]
    return data_uri(resized(np.asarray(pixels), side), quality=80)
