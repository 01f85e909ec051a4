"""Ways to divide the images of a data set: this split, official folders, at random, by copies, and by patients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd

from brainmri_core.arrays import I64, U8, Mask, Objects
from brainmri_core.project.sample_table import known_patients
from brainmri_core.splitting.assignment import assign_side, group_names, joined
from brainmri_core.splitting.groups import patient_components
from brainmri_core.splitting.neighbour_runs import neighbour_pairs

SplitName = Literal["this split", "official folders", "random split", "by copies alone", "by patients"]
SPLIT_NAMES: tuple[SplitName, ...] = get_args(SplitName)
_ONE_SIDE = "there are no training or no test images"
_NO_FOLDERS = "the data set comes without a training and a testing folder"
_NO_PATIENTS = "no image's patient is known"


@dataclass(frozen=True)
class Division:
    """One way to divide the images.

    Attributes
    ----------
    train, test : numpy.ndarray
        bool ``(N,)``, disjoint.
    reason : str or None
        Why this division is not possible; None if it is.
    """

    name: SplitName
    train: Mask
    test: Mask
    reason: str | None = None


def divisions(samples: pd.DataFrame, thumbs: U8, copies: pd.DataFrame, *, seed: int) -> list[Division]:
    """Divide the images in every way that their table allows.

    Parameters
    ----------
    samples : pandas.DataFrame
        N rows: path, class_index, origin, pixel_sha256, split and, where known, patient.
    thumbs : numpy.ndarray
        uint8 ``(N, 64, 64)``, in the order of `samples`.
    copies : pandas.DataFrame
        Confirmed pairs: path_a, path_b.
    seed : int
        Seed of the last three divisions.

    Returns
    -------
    list of Division
        In the order of `SPLIT_NAMES`. All but the first contain every readable image with a known class; the last three
        have as many test images as the first.
    """
    side, origin = samples["split"].to_numpy(object), samples["origin"].to_numpy(object)
    classes = samples["class_index"].to_numpy(np.int64)
    usable = np.asarray((samples["pixel_sha256"] != "") & (samples["class_index"] >= 0), np.bool_)
    train, test = usable & (side == "train"), usable & (side == "test")
    frac = int(test.sum()) / max(int(usable.sum()), 1)

    def whole(groups: Callable[[], Objects]) -> tuple[Mask, Mask]:
        chosen = np.zeros(len(samples), np.bool_)
        if 0 < frac < 1:
            names = groups()[usable].tolist()
            chosen[usable] = assign_side(names, classes[usable], frac, seed, "test")
        return usable & ~chosen, chosen

    def made(name: SplitName, sides: tuple[Mask, Mask], lack: str = _ONE_SIDE) -> Division:
        return Division(name, *sides, None if all(part.any() for part in sides) else lack)

    none = np.zeros(len(samples), np.bool_)
    known = bool((known_patients(samples)[usable] != "").any())
    by_patients = whole(lambda: groups_by("auto", samples, copies, thumbs, frac)) if known else (none, none)
    return [
        made("this split", (train, test)),
        made(
            "official folders", (usable & (origin == "training"), usable & (origin == "testing")), _NO_FOLDERS
        ),
        made("random split", random_split(classes, usable, int(test.sum()), seed)),
        made("by copies alone", whole(lambda: groups_by("near_duplicate", samples, copies, thumbs))),
        made("by patients", by_patients, _ONE_SIDE if known else _NO_PATIENTS),
    ]


def random_split(class_index: I64, usable: Mask, n_test: int, seed: int) -> tuple[Mask, Mask]:
    """Divide images at random, stratified by class and without groups, as most published pipelines do.

    Parameters
    ----------
    class_index : numpy.ndarray
        int64 ``(N,)``.
    usable : numpy.ndarray
        bool ``(N,)``: images to divide.
    n_test : int
        Number of test images.
    seed : int
        Seed of the draw.

    Returns
    -------
    train, test : numpy.ndarray
        bool ``(N,)``; together they are `usable`.
    """
    rng = np.random.default_rng([seed, 0x1EAF])
    frac = n_test / max(int(usable.sum()), 1)
    test = np.zeros(len(usable), np.bool_)
    for label in np.unique(class_index[usable]):
        members = np.flatnonzero(usable & (class_index == label))
        test[rng.permutation(members)[: round(frac * len(members))]] = True
    return usable & ~test, test


def groups_by(
    kind: Literal["near_duplicate", "subject", "auto"],
    samples: pd.DataFrame,
    copies: pd.DataFrame,
    thumbs: U8,
    test_frac: float = 0.25,
) -> Objects:
    """Return the group of each image under a value of ``split.group_by``.

    Parameters
    ----------
    kind : str
        The value.
    samples : pandas.DataFrame
        The sample table of a split, one row per image.
    copies : pandas.DataFrame
        The confirmed copies of the split (``copies.parquet``).
    thumbs : numpy.ndarray
        Thumbnails by row of the table, uint8 ``(N, 64, 64)``.
    test_frac : float
        Share of the test split; neighbours are not joined where a class would then not fit into it.

    Returns
    -------
    numpy.ndarray
        Names of the groups, object ``(N,)`` of str.
    """
    patients, pixels = known_patients(samples), samples["pixel_sha256"].to_numpy(object)
    if kind == "near_duplicate":
        return group_names(samples, joined(pixels, pairs=[_listed(samples, copies)]))
    neighbours, listed = neighbour_pairs(samples, thumbs), _listed(samples, copies)
    if kind == "subject":
        alike = (neighbours.first, neighbours.second)
        return group_names(samples, joined(pixels, pairs=[listed, alike]))
    component, _ = patient_components(samples, patients, listed, neighbours, test_frac)
    return group_names(samples, component, patients)


def _listed(samples: pd.DataFrame, copies: pd.DataFrame) -> tuple[I64, I64]:
    """Return the rows of the table that confirmed copies pair: two int64 arrays."""
    index = pd.Index(samples["path"].to_numpy(object))
    first, second = (index.get_indexer(copies[name].to_numpy(object)) for name in ("path_a", "path_b"))
    known = (first >= 0) & (second >= 0)
    return first[known].astype(np.int64), second[known].astype(np.int64)
