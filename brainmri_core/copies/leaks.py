"""Leaks between training and test: test images with a copy, a group member or their patient among the training images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from brainmri_core.arrays import F64, I64, Mask, Objects
from brainmri_core.copies.likeness import ORIENTATIONS, turned_back
from brainmri_core.project.sample_table import known_patients, read_samples

COPY_COLUMNS = {
    "path_a": "str",
    "path_b": "str",
    "ncc": "float64",
    "orientation": "str",
    "exact": "bool",
    "same_label": "bool",
}

_BACK = {name: ORIENTATIONS[turned_back(number)] for number, name in enumerate(ORIENTATIONS)}


def read_copies(folder: Path) -> pd.DataFrame:
    """Read the confirmed copies in a split's folder.

    There are none for a class-folder tree, which was not searched; its exact copies are still found by their hashes.

    Raises
    ------
    IntegrityError
        If the split was searched for copies, but their table is missing or damaged.
    """
    path = folder / "copies.parquet"
    if path.is_file() or (folder / "split.json").is_file():
        return read_samples(path, COPY_COLUMNS)
    return pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in COPY_COLUMNS.items()})


def find_twins(samples: pd.DataFrame, copies: pd.DataFrame, train: Mask, test: Mask) -> pd.DataFrame:
    """Find the test images that have a copy ("twin") in training.

    Exact copies are interchangeable: a near copy of one is a near copy of all.

    Parameters
    ----------
    samples : pandas.DataFrame
        N rows with path and pixel_sha256 (empty where an image could not be decoded).
    copies : pandas.DataFrame
        Confirmed pairs: path_a, path_b, ncc, orientation. Pairs with a path that is not in `samples` are ignored.
    train, test : numpy.ndarray
        bool ``(N,)``, disjoint.

    Returns
    -------
    pandas.DataFrame
        One row per such test image, in the order of `samples`: ``test`` and ``train`` (positions in `samples`), ``kind``
        (``exact`` or ``near copy``), ``ncc``, and ``orientation`` (in which the test image looks like the training image).
        The twin is an exact copy if there is one, else the near copy of highest correlation.
    """
    pixels = _pixel_ids(samples)
    listed = _pairs(samples, copies, pixels)
    in_training = _first_of(pixels, train)
    partner = np.full(len(in_training), -1)
    ncc = np.full(len(in_training), np.nan)
    orientation = np.full(len(in_training), "identity", object)
    # The pairs are sorted by correlation: of several assignments to one position the last, best one stays.
    back = np.array([_BACK.get(name, name) for name in listed.orientation], object)
    for one, other, names in (
        (listed.first, listed.second, listed.orientation),
        (listed.second, listed.first, back),
    ):
        usable = (in_training[other] >= 0) & ~(listed.ncc < ncc[one])
        partner[one[usable]] = in_training[other[usable]]
        ncc[one[usable]] = listed.ncc[usable]
        orientation[one[usable]] = names[usable]
    tested = np.flatnonzero(test)
    exact = in_training[pixels[tested]]
    identical = exact >= 0
    table = pd.DataFrame(
        {
            "test": tested,
            "train": np.where(identical, exact, partner[pixels[tested]]),
            "kind": np.where(identical, "exact", "near copy"),
            "ncc": np.where(identical, 1.0, ncc[pixels[tested]]),
            "orientation": np.where(identical, "identity", orientation[pixels[tested]]),
        }
    )
    return table[table["train"] >= 0].reset_index(drop=True)


def find_leaks(samples: pd.DataFrame, copies: pd.DataFrame, train: Mask, test: Mask) -> pd.DataFrame:
    """Find all test images that leak: by a copy in training, a group member in training, or their patient in training.

    A leak blocks training. Training repeats this check on its own rows, with the validation rows in the place of `test`.

    Parameters
    ----------
    samples, copies, train, test
        As in `find_twins`; `samples` also needs ``group``, and ``patient`` where patients are known.

    Returns
    -------
    pandas.DataFrame
        The rows of `find_twins`; then ``same group`` rows for other test images whose group has a training image; then
        ``same patient`` rows for the remaining test images whose patient has one. Empty where nothing leaks.
    """
    found = find_twins(samples, copies, train, test)
    groups = samples["group"].to_numpy(object)
    for kind, tied in (
        ("same group", _sharing(groups, train, test)),
        ("same patient", patient_twins(samples, train, test)),
    ):
        further = tied[~tied["test"].isin(found["test"])].assign(kind=kind)
        found = pd.concat([part for part in (found, further) if len(part)] or [found])
    return found.sort_values("test", ignore_index=True)


def patient_twins(samples: pd.DataFrame, train: Mask, test: Mask) -> pd.DataFrame:
    """Find the test images whose known patient has an image in training.

    Parameters
    ----------
    samples : pandas.DataFrame
        N rows, with ``patient`` where patients are known.
    train, test : numpy.ndarray
        bool ``(N,)``, disjoint.

    Returns
    -------
    pandas.DataFrame
        As in `find_twins`, with the kind ``same patient``; ``train`` is the patient's first training image. Whether the two
        images are copies of each other is not checked.
    """
    patients = known_patients(samples)
    known = patients != ""
    return _sharing(patients, train & known, test & known).assign(kind="same patient")


def _sharing(names: Objects, train: Mask, test: Mask) -> pd.DataFrame:
    """Pair the test images with the first training image that has the same name (of a group or patient)."""
    ids = np.asarray(pd.factorize(names)[0], np.int64)
    tested = np.flatnonzero(test)
    partner = _first_of(ids, train)[ids[tested]]
    table = pd.DataFrame(
        {"test": tested, "train": partner, "kind": "", "ncc": np.nan, "orientation": "identity"}
    )
    return table[partner >= 0].reset_index(drop=True)


def label_conflicts(samples: pd.DataFrame, copies: pd.DataFrame, among: Mask) -> Mask:
    """Say which images have a copy with another label.

    Parameters
    ----------
    samples : pandas.DataFrame
        N rows with path, pixel_sha256 and class_index.
    copies : pandas.DataFrame
        As in `find_twins`.
    among : numpy.ndarray
        bool ``(N,)``: the images to check; the others neither have nor cause a conflict.

    Returns
    -------
    numpy.ndarray
        bool ``(N,)``.
    """
    pixels = _pixel_ids(samples)
    listed = _pairs(samples, copies, pixels)
    label = samples["class_index"].to_numpy(np.int64)
    # Least and greatest label of each distinct image. Without a label they are the extremes, which conflict with nothing.
    least = np.full(int(pixels.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    greatest = np.full(len(least), np.iinfo(np.int64).min)
    np.minimum.at(least, pixels[among], label[among])
    np.maximum.at(greatest, pixels[among], label[among])
    first, second = listed.first, listed.second
    unlike = np.minimum(least[first], least[second]) < np.maximum(greatest[first], greatest[second])
    conflict = least < greatest
    conflict[first[unlike]] = conflict[second[unlike]] = True
    found: Mask = conflict[pixels] & among
    return found


def _pixel_ids(samples: pd.DataFrame) -> I64:
    """Number the distinct pixel hashes; an image without a hash gets a number of its own."""
    hashes, paths = samples["pixel_sha256"].to_numpy(object), samples["path"].to_numpy(object)
    return np.asarray(pd.factorize(np.where(hashes == "", paths, hashes))[0], np.int64)


@dataclass(frozen=True)
class _Pairs:
    """Pairs of different pixel ids, by increasing correlation."""

    first: I64
    second: I64
    ncc: F64
    orientation: Objects


def _pairs(samples: pd.DataFrame, copies: pd.DataFrame, pixels: I64) -> _Pairs:
    index = pd.Index(samples["path"].to_numpy(object))
    first, second = (index.get_indexer(copies[name].to_numpy(object)) for name in ("path_a", "path_b"))
    ncc = copies["ncc"].to_numpy(np.float64)
    known = (first >= 0) & (second >= 0) & (pixels[first] != pixels[second])
    order = np.flatnonzero(known)[np.argsort(ncc[known], kind="stable")]
    orientation = copies["orientation"].to_numpy(object)[order]
    return _Pairs(pixels[first[order]], pixels[second[order]], ncc[order], orientation)


def _first_of(ids: I64, among: Mask) -> I64:
    """Return, for each id, the first position in `among` that has it, or -1."""
    result = np.full(int(ids.max(initial=-1)) + 1, -1)
    positions = np.flatnonzero(among)[::-1]
    result[ids[positions]] = positions
    return result
