"""Overlap: which images of one data set have copies in another, in which split, and whether their classes agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from brainmri_core.arrays import U8
from brainmri_core.config import PipelineConfig
from brainmri_core.copies.across import KINDS, find_copies_across
from brainmri_core.copies.thumbs import read_thumbs, read_trimmed_thumbs
from brainmri_core.errors import ConfigError, MissingUpstreamError
from brainmri_core.project.catalogue import DatasetEntry
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import follow, latest_pointer
from brainmri_core.project.pointers import FetchPointer, MappingPointer
from brainmri_core.project.sample_table import FETCH_COLUMNS, SPLIT_COLUMNS, known_patients, read_samples
from brainmri_core.splitting.assignment import validation_mask
from brainmri_core.splitting.shared_patients import shared_patients

SIDES = ("training", "validation", "test", "left out")
COUNTS = ("images", *KINDS, *SIDES, "other class", "patient in A")


@dataclass(frozen=True)
class Overlap:
    """What two data sets have in common.

    Attributes
    ----------
    a, b : str
        Keys of the data sets.
    images_a, images_b : int
        Images that could be read, including those that the split leaves out.
    counts : pandas.DataFrame
        A row per class and side of B (columns ``class``, ``side``) with numbers of images of B. ``images`` counts all. The
        columns of `KINDS` count each image once, by its closest copy in A. The columns of `SIDES` count an image on every
        side of A that holds a copy of it. ``other class`` counts images with a copy of another class in A, ``patient in A``
        images whose known patient also has an image in A.
    pairs : pandas.DataFrame
        A row per pair of copies: path, class and side of either image, ``kind``, ``orientation``, ``correlation``,
        ``same_class``.
    patients : int
        Number of known patients who have images in both.
    one_archive : bool
        Whether both were fetched from the same files.
    notes : list of str
        Limits of this result, one sentence each.
    """

    a: str
    b: str
    images_a: int
    images_b: int
    counts: pd.DataFrame
    pairs: pd.DataFrame
    patients: int
    one_archive: bool
    notes: list[str]

    @property
    def in_a(self) -> int:
        """Number of images of B that have a copy in A."""
        return int(self.pairs["path_b"].nunique())

    @property
    def of_b(self) -> int:
        """Number of images of A that have a copy in B."""
        return int(self.pairs["path_a"].nunique())


@dataclass(frozen=True)
class _Set:
    """The newest split of a data set without its unreadable images; the column ``side`` is one of `SIDES`."""

    mapping: MappingPointer
    fetched: FetchPointer | None
    table: pd.DataFrame
    thumbs: U8
    trimmed: U8 | None


def find_overlap(layout: Layout, a: DatasetEntry, b: DatasetEntry, settings: PipelineConfig) -> Overlap:
    """Find the copies and patients that the newest splits of two data sets have in common.

    Parameters
    ----------
    layout : Layout
        The project.
    a, b : DatasetEntry
        The data sets.
    settings : PipelineConfig
        ``split.copies`` says what is a copy, ``train.data`` which training images are for validation.

    Returns
    -------
    Overlap
        The pairs of copies, and their counts.

    Raises
    ------
    ConfigError
        If both are the same data set.
    MissingUpstreamError
        If one has no split.
    IntegrityError
        If a split is damaged.
    """
    if a.key == b.key:
        raise ConfigError(
            f"Both data sets are {a.key}; name two, the copies within one are in its validation report."
        )
    one, other = (_read(layout, entry, settings) for entry in (a, b))
    inner = None if one.trimmed is None or other.trimmed is None else (one.trimmed, other.trimmed)
    found = find_copies_across(
        one.table, one.thumbs, other.table, other.thumbs, settings.split.copies, trimmed=inner
    )
    # the classes of B under the names that A's catalogue entry has for them
    called = other.table["label"].map(lambda name: a.canonical(name) or name)
    pairs = _pairs(found, one.table, other.table, called)
    shared = shared_patients(one.mapping, one.table, other.mapping, other.table, layout)
    again = [item.mapping.dataset for item in (one, other) if item.trimmed is None]
    missed = (
        "copies with other margins may be missed: its split is of a version that did not keep what finds them"
    )
    return Overlap(
        a=a.key,
        b=b.key,
        images_a=len(one.table),
        images_b=len(other.table),
        counts=_counts(found, pairs, one.table, other.table, shared),
        pairs=pairs,
        patients=len(shared),
        one_archive=bool(one.fetched and other.fetched and one.fetched.same_files(other.fetched)),
        notes=[f"{name}: {missed}; run `brainmri split --dataset {name}` again." for name in again],
    )


def _read(layout: Layout, entry: DatasetEntry, settings: PipelineConfig) -> _Set:
    mapping = latest_pointer(layout, MappingPointer, entry.key)
    if mapping is None:
        raise MissingUpstreamError(
            f"The data set {entry.key} has no split in {layout.root}; make one with `brainmri fetch --dataset "
            f"{entry.key}` and `brainmri split --dataset {entry.key}`."
        )
    path = layout.absolute(mapping.samples)
    table = read_samples(path, {**FETCH_COLUMNS, **SPLIT_COLUMNS})
    thumbs, trimmed = read_thumbs(path.parent, table, None), read_trimmed_thumbs(path.parent, table)
    train = settings.with_seeds().train
    held_out = validation_mask(table, train.data.val_frac, train.data.validation_seed)
    names = table["split"].map({"train": SIDES[0], "test": SIDES[2], "excluded": SIDES[3]})
    readable = np.flatnonzero(table["pixel_sha256"] != "")
    return _Set(
        mapping,
        None if mapping.fetch_pointer is None else follow(layout, FetchPointer, mapping.fetch_pointer),
        table.assign(side=names.mask(held_out, SIDES[1])).iloc[readable].reset_index(drop=True),
        thumbs[readable],
        None if trimmed is None else trimmed[readable],
    )


def _pairs(
    found: pd.DataFrame, one: pd.DataFrame, other: pd.DataFrame, called: pd.Series[str]
) -> pd.DataFrame:
    sides = {}
    for name, table, rows in (("a", one, found["a"]), ("b", other, found["b"])):
        part = table.iloc[rows]
        for column, of in (("path", "path"), ("class", "label"), ("side", "side")):
            sides[f"{column}_{name}"] = part[of].to_numpy(object)
    pairs = pd.DataFrame(sides).join(found[["kind", "orientation", "correlation"]])
    return pairs.assign(same_class=pairs["class_a"].to_numpy() == called.to_numpy(object)[found["b"]])


def _counts(
    found: pd.DataFrame, pairs: pd.DataFrame, one: pd.DataFrame, other: pd.DataFrame, shared: set[str]
) -> pd.DataFrame:
    marks = pd.DataFrame(False, index=range(len(other)), columns=list(COUNTS))
    marks["images"] = True
    marks["patient in A"] = np.isin(known_patients(other).astype(str), list(shared))
    closest = pairs.assign(b=found["b"], rank=pairs["kind"].map(KINDS.index)).sort_values(
        "rank", kind="stable"
    )
    for kind, part in closest.drop_duplicates("b").groupby("kind"):
        marks.loc[part["b"], kind] = True
    for side, part in closest.groupby("side_a"):
        marks.loc[part["b"], side] = True
    marks.loc[closest.loc[~closest["same_class"], "b"], "other class"] = True
    rows = marks.groupby([other["label"].rename("class"), other["side"]]).sum().reset_index()
    order = rows["side"].map(SIDES.index)
    return rows.assign(order=order).sort_values(["class", "order"], ignore_index=True).drop(columns="order")
