"""The search for copies: perceptual hashes find candidates, a comparison of the pixels confirms them.

On brain MRI, where neighbouring slices and similar skulls look alike, hashes alone have a precision of .34 to .84. So the
64 x 64 versions decide (`brainmri_core.copies.likeness`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from brainmri_core.arrays import F32, F64, I64, U8, U64, Mask
from brainmri_core.config.data import CopySearchConfig
from brainmri_core.copies.components import connected
from brainmri_core.copies.fingerprint import FingerprintTable
from brainmri_core.copies.hamming import Pairs, candidate_pairs
from brainmri_core.copies.likeness import (
    PIXELS,
    SEARCHED,
    correlation_of,
    difference,
    moments,
    turned,
    turned_back,
)
from brainmri_core.system.threads import cores, outcome, threads

_CONFIRM = 512
Found = tuple[int, int, list[tuple[int, int, float]]]
"""Version (0 for whole images, 1 for those without margins), orientation of the first row, and pairs of rows with their
correlation."""
Search = Callable[[FingerprintTable, I64, CopySearchConfig], Iterable[Found]]
_ALL_PAIRS = 64


@dataclass(frozen=True)
class CopyPairs:
    """Confirmed copies.

    Attributes
    ----------
    first, second : numpy.ndarray
        int64, ``(P,)``: rows of the fingerprint table, ``first < second``.
    ncc : numpy.ndarray
        float64, ``(P,)``: correlation in the best orientation; 1 for exact copies.
    orientation : numpy.ndarray
        int64, ``(P,)``: index into `likeness.ORIENTATIONS` of the orientation in which `first` looks like `second`.
    exact : numpy.ndarray
        bool, ``(P,)``: identical decoded pixels.
    """

    first: I64
    second: I64
    ncc: F64
    orientation: I64
    exact: Mask


@dataclass(frozen=True)
class Version:
    """One version of the images of a set (whole, or without margins), with values computed once for all comparisons.

    Attributes
    ----------
    rows : numpy.ndarray
        int64 ``(R,)``: rows of the other arrays to search.
    thumbs : numpy.ndarray
        uint8 ``(N, 64, 64)``.
    hashes : numpy.ndarray
        uint64 ``(N, 8)``.
    sums : numpy.ndarray
        int64 ``(2, N)``: `likeness.moments`.
    coarse : numpy.ndarray
        float32 ``(N, 8, 8)``: block sums of the normalised thumbnails.
    """

    rows: I64
    thumbs: U8
    hashes: U64
    sums: I64
    coarse: F32


def prepare(thumbs: U8, hashes: U64, rows: I64) -> Version:
    """Compute each image's moments and the 8 x 8 block sums of its mean-removed unit-norm thumbnail, divided by 8.

    The block sums are an orthonormal projection, so their distance is never larger than that of the thumbnails.
    """
    blocks = np.kron(np.eye(8, dtype=np.float32), np.ones((8, 1), np.float32))
    sums, coarse = np.zeros((2, len(thumbs)), np.int64), np.zeros((len(thumbs), 8, 8), np.float32)
    for start in range(0, len(rows), _CONFIRM):
        part = rows[start : start + _CONFIRM]
        images = thumbs[part]
        sums[:, part] = moments(images)
        squares = (images.reshape(-1, 64).astype(np.float32) @ blocks).reshape(-1, 8, 8, 8).sum(axis=2)
        mean, norm = sums[0, part] / PIXELS, np.sqrt(sums[1, part] / PIXELS)
        coarse[part] = (squares / 8 - 8 * mean[:, None, None]) / np.maximum(norm, 1e-3)[:, None, None]
    return Version(rows, thumbs, hashes, sums, coarse)


def confirmed(
    one: Version,
    other: Version,
    turn: int,
    config: CopySearchConfig,
    stopped: threading.Event,
    *,
    offset: int | None = None,
) -> list[tuple[int, int, float]]:
    """Return the confirmed pairs of a row of `one`, in the orientation `turn`, and a row of `other`.

    Parameters
    ----------
    one, other : Version
        The two sides.
    turn : int
        Index into `likeness.ORIENTATIONS`.
    config : CopySearchConfig
        What counts as a copy.
    stopped : threading.Event
        When it is set, the search ends early with the pairs found so far.
    offset : int or None
        Of two parts of one set, how many rows the first of `one` comes after the first of `other`; 0 for a set with itself.
        Each pair is then returned once, or in both orders where `turn` is not 0. None for two sets.

    Returns
    -------
    list of (int, int, float)
        Row of `one`, row of `other`, and their correlation.
    """
    pairs: Pairs = "all" if offset is None else "ordered" if turn else "unordered"
    coarse = turned(one.coarse, turn)
    # Unit vectors with correlation c have the distance sqrt(2 - 2c).
    furthest = 2 - 2 * config.ncc_threshold + 1e-4
    found: list[tuple[int, int, float]] = []
    query, table = (
        np.ascontiguousarray(version.hashes[version.rows, column])
        for version, column in ((one, turn), (other, 0))
    )
    for first, second in candidate_pairs(query, table, config.hash_radius, pairs, offset=offset or 0):
        if stopped.is_set():
            break
        for start in range(0, len(first), _CONFIRM):
            a, b = one.rows[first[start : start + _CONFIRM]], other.rows[second[start : start + _CONFIRM]]
            gap = coarse[a] - other.coarse[b]
            close = np.einsum("ijk,ijk->i", gap, gap) <= furthest
            a, b = a[close], b[close]
            images, others = np.ascontiguousarray(turned(one.thumbs[a], turn)), other.thumbs[b]
            ncc = correlation_of(images, others, one.sums[:, a], other.sums[:, b])
            right = ncc >= config.ncc_threshold
            right[right] = difference(images[right], others[right]) <= config.max_difference
            found += zip(a[right].tolist(), b[right].tolist(), ncc[right].tolist(), strict=True)
    return found


def find_copies(table: FingerprintTable, config: CopySearchConfig, search: Search | None = None) -> CopyPairs:
    """Find all confirmed copies among fingerprinted images.

    Exact copies are merged before the search, so that a thousand copies of one image cost nothing; afterwards pairs of near
    copies are listed for every member again. The result does not depend on the machine, and the order of the images
    changes only the row numbers.

    Parameters
    ----------
    table : FingerprintTable
        The images.
    config : CopySearchConfig
        What counts as a copy.
    search : callable or None
        Finds the pairs among the given rows of the table; where None, threads of this process do it.
    """
    members = list(exact_groups(table.pixel_sha256).values())
    of = {group[0]: group for group in members}
    best: dict[tuple[int, int], tuple[float, int, int, bool]] = {}
    for version, turn, pairs in (search or _search_here)(table, np.array(sorted(of), np.int64), config):
        for one, other, score in pairs:
            pair = (min(one, other), max(one, other))
            # the order decides between equal scores, so that it does not matter which search ends first
            rank = (-score, version, turn, one > other)
            best[pair] = min(rank, best.get(pair, rank))
    found = [(one, other, 1.0, 0, True) for group in members for one, other in _within(group)]
    for (one, other), (score, _, turn, swapped) in best.items():
        way = turned_back(turn) if swapped else turn
        found += [
            (a, b, -score, way, False) if a < b else (b, a, -score, turned_back(way), False)
            for a, b in _between(of[one], of[other])
        ]
    found.sort()
    columns = list(zip(*found, strict=True)) if found else [(), (), (), (), ()]
    return CopyPairs(
        np.array(columns[0], np.int64),
        np.array(columns[1], np.int64),
        np.array(columns[2], np.float64),
        np.array(columns[3], np.int64),
        np.array(columns[4], np.bool_),
    )


def _search_here(table: FingerprintTable, rows: I64, config: CopySearchConfig) -> Iterator[Found]:
    turns = tried(config)
    versions = ((table.thumbs, table.hashes), (table.trimmed_thumbs, table.trimmed_hashes))
    stopped = threading.Event()
    with threads(min(cores(), len(versions) * len(turns))) as pool:
        try:
            prepared = list(pool.map(lambda version: prepare(version[0], version[1], rows), versions))
            searches = [
                (number, turn, pool.submit(confirmed, version, version, turn, config, stopped, offset=0))
                for number, version in enumerate(prepared)
                for turn in turns
            ]
            for number, turn, search in searches:
                yield number, turn, outcome(search)
        finally:
            stopped.set()


def tried(config: CopySearchConfig) -> list[int]:
    """Return the orientations to try; a left turn of one image is left out, as it is a right turn of the other."""
    return [turn for turn in SEARCHED[config.orientations] if turned_back(turn) >= turn]


def exact_groups(pixel_sha256: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of each hash of decoded pixels, leaving out images that could not be read."""
    groups: dict[str, list[int]] = {}
    for row, digest in enumerate(pixel_sha256):
        if digest:
            groups.setdefault(digest, []).append(row)
    return groups


def _within(group: list[int]) -> list[tuple[int, int]]:
    if len(group) <= _ALL_PAIRS:
        return [(a, b) for n, a in enumerate(group) for b in group[n + 1 :]]
    return [(group[0], b) for b in group[1:]]


def _between(first: list[int], second: list[int]) -> list[tuple[int, int]]:
    if len(first) * len(second) <= _ALL_PAIRS:
        return [(a, b) for a in first for b in second]
    return [(first[0], second[0])]


def group_copies(n: int, pairs: CopyPairs) -> I64:
    """Return the connected component of each of n images under the pairs: int64, ``(n,)``."""
    return connected(n, (pairs.first, pairs.second))
