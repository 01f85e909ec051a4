"""Assign whole groups to training, test, validation and folds, with class proportions as close as groups allow.

A keyed hash of its name decides the order of each group. So the result depends neither on the order of files nor on the
machine, and when images are added the old groups keep their order, and few of them move to another side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from brainmri_core.arrays import I64, U64, Indices, Mask, Objects
from brainmri_core.copies.components import connected
from brainmri_core.project.sample_table import known_patients
from brainmri_core.system.checksums import sha256_json

Labels = Sequence[int] | I64


def keyed_hash(group: str, seed: int, salt: str) -> int:
    """Return a 64-bit hash of a group's name, keyed by seed and purpose."""
    key = hashlib.blake2b(f"{seed}:{salt}".encode(), digest_size=32).digest()
    return int.from_bytes(hashlib.blake2b(group.encode(), key=key, digest_size=8).digest(), "big")


def _counts(groups: Sequence[str], labels: Labels) -> tuple[list[str], Indices, I64]:
    """Return the group names, each image's group number, and images per group and class ``(G, K)``."""
    names, number = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    values = np.asarray(labels, np.int64)
    table = np.zeros((len(names), int(values.max(initial=0)) + 1), np.int64)
    np.add.at(table, (number, values), 1)
    return names.tolist(), number, table


def _strata(table: I64) -> Indices:
    """Return each group's majority class."""
    strata: Indices = table.argmax(axis=1)
    return strata


def assign_side(groups: Sequence[str], labels: Labels, frac: float, seed: int, salt: str) -> Mask:
    """Choose whole groups for one side, class by class.

    Within each class, groups are taken in the order of their keyed hash as long as that brings the class closer to its
    share. So when images are added, only groups near the cut move: for a share f, about f times the number of new images.

    Parameters
    ----------
    groups : sequence of str
        Group of each image.
    labels : sequence of int
        Class index of each image.
    frac : float
        Share of each class to choose, in (0, 1).
    seed : int
        Seed of the hash.
    salt : str
        Purpose of the choice, so that two choices with the same seed are independent.

    Returns
    -------
    numpy.ndarray
        bool ``(N,)``. A class with two groups or more has at least one on each side.
    """
    names, number, table = _counts(groups, labels)
    order = np.argsort([keyed_hash(name, seed, salt) for name in names], kind="stable")
    chosen = np.zeros(len(names), np.bool_)
    strata = _strata(table)
    for stratum in np.unique(strata):
        members = order[strata[order] == stratum]
        sizes = table[members].sum(axis=1)
        target = frac * sizes.sum()
        taken = 0
        for position, (member, size) in enumerate(zip(members, sizes, strict=True)):
            last = position == len(members) - 1
            if not taken and last and len(members) > 1:
                chosen[member] = True
            elif taken + size / 2 <= target and not (last and taken + size >= sizes.sum()):
                chosen[member] = True
                taken += size
            elif taken >= target:
                break
    return chosen[number]


def assign_folds(groups: Sequence[str], labels: Labels, k: int, seed: int) -> I64:
    """Distribute whole groups over k folds with balanced class proportions.

    Within each class, large groups (of several images, and a tenth of a fold or more) come first, the largest first, each
    into the fold with the fewest images of the class. The other groups fill the remaining space in the order of their keyed
    hash, fold after fold. So when images are added, only groups near the k - 1 cuts move: at most about (k - 1) / 2 images
    for each new image, unless a large group is among them.

    Parameters
    ----------
    groups : sequence of str
        Group of each image.
    labels : sequence of int
        Class index of each image.
    k : int
        Number of folds.
    seed : int
        Seed of the hash.

    Returns
    -------
    numpy.ndarray
        int64 ``(N,)``: fold of each image, 0 to k - 1. A class with k groups or more is in every fold; a class with fewer
        groups has each of them in a fold of its own.
    """
    names, number, table = _counts(groups, labels)
    hashes = np.array([keyed_hash(name, seed, "fold") for name in names], np.uint64)
    sizes, strata = table.sum(axis=1), _strata(table)
    large = (sizes > 1) & (sizes * 10 * k >= np.bincount(strata, sizes, table.shape[1])[strata])
    load = np.zeros((k, table.shape[1]), np.int64)
    fold = np.zeros(len(names), np.int64)
    for member in np.lexsort((hashes, -sizes)):
        if large[member]:
            stratum, spread = strata[member], int(hashes[member] % np.uint64(k))
            rank = [(load[f, stratum], load[f].sum(), (f - spread) % k) for f in range(k)]
            fold[member] = min(range(k), key=rank.__getitem__)
            load[fold[member]] += table[member]
    for stratum in np.unique(strata):
        rest = np.flatnonzero((strata == stratum) & ~large)
        rest = rest[np.argsort(hashes[rest], kind="stable")]
        middle = np.cumsum(sizes[rest]) - sizes[rest] / 2
        held = load[:, stratum]
        room = np.clip((sizes[rest].sum() + held.sum()) / k - held, 0, None)
        cuts = np.cumsum(room) * (sizes[rest].sum() / max(room.sum(), 1))
        fold[rest] = np.searchsorted(cuts[:-1], middle, side="right")
        _fill_empty(fold, np.flatnonzero(strata == stratum), sizes, hashes, k)
    return fold[number]


def _fill_empty(
    fold: I64,
    members: Indices,
    sizes: I64,
    hashes: U64,
    k: int,
) -> None:
    """Move the smallest groups of one class from folds with several of its groups to folds without any."""
    smallest = members[np.lexsort((hashes[members], sizes[members]))]
    for empty in sorted(set(range(k)) - set(fold[members].tolist())):
        held = np.bincount(fold[members], minlength=k)
        movable = smallest[held[fold[smallest]] > 1]
        if len(movable):
            fold[movable[0]] = empty


def joined(
    *namings: Sequence[str] | Objects,
    pairs: Sequence[tuple[I64, I64]] = (),
) -> I64:
    """Number the images so that images have the same number if they share a name in any naming, or are paired.

    Parameters
    ----------
    *namings : sequence of str
        A name for each of N images; an empty name joins nothing. There must be at least one naming.
    pairs : sequence of tuple
        int64 arrays of first and of second images.

    Returns
    -------
    numpy.ndarray
        int64 ``(N,)``: the connected component of each image.
    """
    n = count = len(namings[0])
    images, names = [first for first, _ in pairs], [second for _, second in pairs]
    for naming in namings:
        values = np.asarray(naming, dtype=object).astype(str)
        named = np.flatnonzero(values != "")
        found, number = np.unique(values[named], return_inverse=True)
        images.append(named)
        names.append(count + number)
        count += len(found)
    rows, columns = np.concatenate(images), np.concatenate(names)
    return connected(count, (rows, columns))[:n]


def group_names(
    samples: pd.DataFrame,
    component: I64,
    patients: Objects | None = None,
) -> Objects:
    """Name each image's group by its patient or its least pixel hash, so that added images rarely change the name.

    Parameters
    ----------
    samples : pandas.DataFrame
        N rows with path and pixel_sha256 (empty where an image could not be decoded).
    component : numpy.ndarray
        int64 ``(N,)``: number of each image's group.
    patients : numpy.ndarray or None
        object ``(N,)`` of str, ``""`` where unknown, to name groups by patients. Keyed hashes of patients are not used, as
        they differ between projects.

    Returns
    -------
    numpy.ndarray
        object ``(N,)`` of 16 hexadecimal digits.
    """
    digests, paths = samples["pixel_sha256"].to_numpy(object), samples["path"].to_numpy(object)
    own = np.where(digests == "", "unreadable:" + paths, digests)
    if patients is not None:
        running = [bool(name) and not name.startswith("hashed:") for name in patients]
        own = np.where(running, " patient " + patients, own)  # the blank sorts before all hexadecimal digits
    smallest = pd.Series(own).groupby(component).transform("min")
    return np.array([sha256_json(name)[:16] for name in smallest], object)


def independent_units(table: pd.DataFrame) -> list[str]:
    """Name the independent unit of each image: its patient where known, joined with its group.

    Images of one patient share anatomy and scanner, and images of one group share even more, so they are not independent.
    Confidence intervals resample such units; validation and folds hold out whole units.

    Parameters
    ----------
    table : pandas.DataFrame
        N rows with ``group`` and, where patients are known, ``patient``.

    Returns
    -------
    list of str
        The name of the unit's first group in alphabetical order; for a unit of a single group, that group's name.
    """
    groups = table["group"].astype(str)
    patients = known_patients(table)
    if not (patients != "").any():
        return list(groups)
    units = joined(groups.to_numpy(object), patients)
    return list(groups.groupby(units).transform("min"))


def validation_mask(samples: pd.DataFrame, val_frac: float, seed: int) -> Mask:
    """Choose the validation images among the training rows of a sample table, in whole `independent_units`.

    Where the split kept an official validation folder, whose rows have no fold, its images are the validation images.

    Parameters
    ----------
    samples : pandas.DataFrame
        N rows with ``split``, ``group`` and ``class_index``; optional: ``patient``, ``origin`` and ``fold``.
    val_frac : float
        Share of each class to choose, in (0, 1).
    seed : int
        Seed of the choice.

    Returns
    -------
    numpy.ndarray
        bool, one value per row of the table; False outside the training split.
    """
    mask = np.zeros(len(samples), np.bool_)
    if {"origin", "fold"} <= set(samples.columns):
        given = (samples["split"] == "train") & (samples["origin"] == "validation") & (samples["fold"] < 0)
        if given.any():
            return np.asarray(given, np.bool_)
    train = np.flatnonzero((samples["split"] == "train").to_numpy())
    if len(train):
        part = samples.iloc[train]
        mask[train] = assign_side(
            independent_units(part), part["class_index"].to_numpy(np.int64), val_frac, seed, "validation"
        )
    return mask
