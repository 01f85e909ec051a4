"""The search for copies between two data sets, from the tables and thumbnails of their splits."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pandas as pd

from brainmri_core.arrays import I64, U8
from brainmri_core.config.data import CopySearchConfig
from brainmri_core.copies.fingerprint import perceptual_hashes
from brainmri_core.copies.likeness import ORIENTATIONS, turned_back
from brainmri_core.copies.search import Version, confirmed, exact_groups, prepare, tried
from brainmri_core.system.threads import cores, outcome, threads

KINDS = ("exact", "pixels", "re-encoded", "turned")
"""Kinds of copies: the same file; another file with the same decoded pixels; another copy in the same orientation; a copy in
another orientation."""
ACROSS_COLUMNS = {"a": "int64", "b": "int64", "kind": "str", "orientation": "str", "correlation": "float64"}

_CHUNK = 256
_ALL_PAIRS = 65_536

Found = dict[tuple[int, int], tuple[float, int]]
Rows = tuple[int, int, str, str, float]


def find_copies_across(
    table_a: pd.DataFrame,
    thumbs_a: U8,
    table_b: pd.DataFrame,
    thumbs_b: U8,
    config: CopySearchConfig,
    *,
    trimmed: tuple[U8, U8] | None = None,
) -> pd.DataFrame:
    """Find the copies that two data sets share, by the same rule as within one data set (`search`).

    The time is nearly linear in the size of the larger set: the hashes of one set are looked up in an index of the other.

    Parameters
    ----------
    table_a, table_b : pandas.DataFrame
        N and M rows with file_sha256 and pixel_sha256. Images with an empty pixel_sha256 could not be read and are in no
        pair.
    thumbs_a, thumbs_b : numpy.ndarray
        uint8, ``(N, 64, 64)`` and ``(M, 64, 64)``; may be memory maps.
    config : CopySearchConfig
        What counts as a copy.
    trimmed : tuple of numpy.ndarray or None
        Thumbnails of both sets without margins; without them padded copies are missed.

    Returns
    -------
    pandas.DataFrame
        A row per pair, sorted by ``a`` and ``b`` (positions in the tables). ``kind`` is one of `KINDS`; ``orientation`` is
        the one in which image a looks like image b; ``correlation`` is that of the 64 x 64 versions in this orientation, 1
        for equal pixels. Where more than 65,536 pairs show the same picture, each image is paired only with the first
        image of the other set.
    """
    groups_a, groups_b = (exact_groups(table["pixel_sha256"].tolist()) for table in (table_a, table_b))
    of_a, of_b = ({group[0]: group for group in groups.values()} for groups in (groups_a, groups_b))
    rows_a, rows_b = (np.array(list(of), np.int64) for of in (of_a, of_b))
    versions = [(thumbs_a, thumbs_b), *([trimmed] if trimmed is not None else [])]
    near = _near_copies(versions, rows_a, rows_b, config)
    files_a, files_b = (table["file_sha256"].tolist() for table in (table_a, table_b))
    found: list[Rows] = []
    for digest in groups_a.keys() & groups_b.keys():
        near.pop((groups_a[digest][0], groups_b[digest][0]), None)
        found += [
            (a, b, "exact" if files_a[a] == files_b[b] else "pixels", ORIENTATIONS[0], 1.0)
            for a, b in _between(groups_a[digest], groups_b[digest])
        ]
    for (one, other), (score, turn) in near.items():
        kind = "turned" if turn else "re-encoded"
        found += [(a, b, kind, ORIENTATIONS[turn], score) for a, b in _between(of_a[one], of_b[other])]
    return pd.DataFrame(sorted(found), columns=list(ACROSS_COLUMNS)).astype(ACROSS_COLUMNS)


def _near_copies(versions: list[tuple[U8, U8]], rows_a: I64, rows_b: I64, config: CopySearchConfig) -> Found:
    """Return the confirmed pairs of a row of each side, with their highest correlation and its orientation."""
    best: Found = {}
    turns = tried(config)
    stopped = threading.Event()
    with threads(min(cores(), len(versions) * len(turns))) as pool:
        try:
            sides = [
                (one, rows)
                for version in versions
                for one, rows in zip(version, (rows_a, rows_b), strict=True)
            ]
            prepared = list(pool.map(lambda side: _version(*side), sides))
            searches = [
                (turn, swapped, pool.submit(confirmed, one, other, turn, config, stopped))
                for a, b in zip(prepared[::2], prepared[1::2], strict=True)
                for turn in turns
                # Hashes of turned images are not symmetric (see `candidate_pairs`): search in both directions.
                for swapped, one, other in ((False, a, b), (True, b, a))[: 1 + (turn > 0)]
            ]
            for turn, swapped, search in searches:
                for one, other, score in outcome(search):
                    pair, way = ((other, one), turned_back(turn)) if swapped else ((one, other), turn)
                    if score > best.get(pair, (0.0, 0))[0]:
                        best[pair] = (score, way)
        finally:
            stopped.set()
    return best


def _version(thumbs: U8, rows: I64) -> Version:
    hashes = np.zeros((len(thumbs), len(ORIENTATIONS)), np.uint64)
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        hashes[part] = perceptual_hashes(thumbs[part])
    return prepare(thumbs, hashes, rows)


def _between(first: list[int], second: list[int]) -> Iterator[tuple[int, int]]:
    """Yield all pairs of two groups; of large groups, only each member with the first of the other group."""
    if len(first) * len(second) <= _ALL_PAIRS:
        yield from ((a, b) for a in first for b in second)
    else:
        yield from ((a, second[0]) for a in first)
        yield from ((first[0], b) for b in second[1:])
