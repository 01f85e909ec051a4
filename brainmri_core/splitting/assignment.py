"""Groups onto sides: whole groups, class proportions as close as groups allow, and few moves when images are added.

Every group is placed by a keyed hash of its name, so the result depends on neither file order nor machine, and a group
that is there before and after images are added has the same place in the order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from brainmri_core.arrays import I64, U64, Indices, Mask, Objects
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
    """Choose whole groups for one side, per class.

    Within each class the groups stand in the order of their keyed hash and are taken while that brings the class closer
    to its share. So adding images moves only groups near the cut: for a share f, about f of the images added.

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
        What the choice is for, so that two choices with one seed are independent.

    Returns
    -------
    numpy.ndarray
        bool, one value per image. A class with two groups or more has at least one on each side.
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
    """Spread whole groups over k folds, class proportions balanced.

    Within each class the groups of several images that fill a tenth of a fold come first, the largest first, each to the
    fold with the fewest images of the class. The others stand in the order of their keyed hash and fill what room is
    left, fold after fold. So adding images moves only groups near the k - 1 cuts: at most about (k - 1) / 2 images for
    each image added, as long as no large group is among them.

    Returns
    -------
    numpy.ndarray
        int64 fold of each image, 0 to k - 1. A class with k groups or more has at least one in every fold; one with fewer
        has each in a fold of its own, and none in the others.
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
    """Move the smallest groups of one class out of folds that hold several into those that hold none."""
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
    """Number the images so that those which share a name in any of several namings, or are paired, share their number.

    Parameters
    ----------
    *namings : sequence of str
        A name for each of N images; ``""`` joins nothing. At least one naming.
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
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), (count, count))
    return np.asarray(connected_components(graph, directed=False)[1][:n], np.int64)


def group_names(
    samples: pd.DataFrame,
    component: I64,
    patients: Objects | None = None,
) -> Objects:
    """Name each image's group after its patient or its smallest member's pixels, so that the name survives added images.

    Parameters
    ----------
    samples : pandas.DataFrame
        N rows with path and pixel_sha256 (empty where an image could not be decoded).
    component : numpy.ndarray
        int64 ``(N,)``: number of each image's group.
    patients : numpy.ndarray or None
        object ``(N,)`` of str, ``""`` where unknown, if groups are to be named after patients. A keyed hash names none: it
        is another one in each project.

    Returns
    -------
    numpy.ndarray
        object ``(N,)`` of 16 hexadecimal digits.
    """
    digests, paths = samples["pixel_sha256"].to_numpy(object), samples["path"].to_numpy(object)
    own = np.where(digests == "", "unreadable:" + paths, digests)
    if patients is not None:
        running = [bool(name) and not name.startswith("hashed:") for name in patients]
        own = np.where(running, " patient " + patients, own)  # the blank sorts before all digits
    smallest = pd.Series(own).groupby(component).transform("min")
    return np.array([sha256_json(name)[:16] for name in smallest], object)


def independent_units(table: pd.DataFrame) -> list[str]:
    """Name the part of the data that each image belongs to and that is independent of all others.

    That is its patient where known, joined with its group: images of one patient share anatomy and scanner, those of one
    group more than that. What is resampled for an interval, held out for validation or put into a fold are such units.

    Parameters
    ----------
    table : pandas.DataFrame
        N rows with ``group`` and, where patients are known, ``patient``.

    Returns
    -------
    list of str
        The name of the unit's least group, so that a unit of a single group is called as the group is.
    """
    groups = table["group"].astype(str)
    patients = known_patients(table)
    if not (patients != "").any():
        return list(groups)
    units = joined(groups.to_numpy(object), patients)
    return list(groups.groupby(units).transform("min"))


def validation_mask(samples: pd.DataFrame, val_frac: float, seed: int) -> Mask:
    """Choose the validation images among a sample table's training rows, in whole units (`independent_units`).

    Where the split kept an official validation folder (its training rows have no fold), those are its images.

    Parameters
    ----------
    samples : pandas.DataFrame
        With columns ``split``, ``group``, ``class_index``, where patients are known ``patient``, and where official folders
        are, ``origin`` and ``fold``.

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
