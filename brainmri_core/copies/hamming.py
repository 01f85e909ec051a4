"""All pairs of 64-bit hashes within a Hamming radius, by multi-index hashing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np

from brainmri_core.arrays import I64, U32, U64

Pairs = Literal["unordered", "ordered", "all"]

_BITS = 64
# With three parts a part has at most 22 bits, and its index four million places.
_PARTS = range(3, 9)
_PROBES = 1 << 18
_PAIRS = 1 << 16


def candidate_pairs(
    query: U64, table: U64, radius: int, pairs: Pairs = "unordered", *, offset: int = 0
) -> Iterator[tuple[I64, I64]]:
    """Yield each pair ``(i, j)`` whose ``query[i]`` and ``table[j]`` differ in at most `radius` bits, once, in blocks.

    Multi-index hashing (Norouzi, Punjani and Fleet, Fast search in Hamming space with multi-index hashing, 2012): the
    bits are divided into m parts, and each part is looked up in an index with a few bits of tolerance. The tolerances sum
    to ``radius - (m - 1)``, and no pair is missed: a pair that exceeded the tolerance of every part would differ in more
    than `radius` bits. With more hashes there are fewer and longer parts, so that a place in the index holds few hashes.

    Parameters
    ----------
    query, table : numpy.ndarray
        uint64, ``(N,)`` and ``(M,)``. A hash of 0 (an image without structure) is in no pair.
    radius : int
        Hamming distance, 0 to 16.
    pairs : str
        Within one set of images, ``unordered`` yields pairs with ``i < j`` only. ``ordered`` yields those with ``i > j``,
        too: the hash of a turned image has another median, so that comparing i turned with j differs from j turned with i.
        ``all`` is for two different sets.

    offset : int
        Position of ``query[0]`` minus that of ``table[0]``, where both are parts of one set of images.

    Yields
    ------
    first, second : numpy.ndarray
        int64. A block comes from at most 65,536 compared pairs, or from all pairs of one hash if they are more.
    """
    parts = _deal(table, _best_parts(len(table), radius))
    searched: list[tuple[np.uint64, int]] = []
    for part, bits in enumerate(parts):
        share = (radius - part) // len(parts)
        if share < 0:
            return
        for i, j in _within(query, table, bits, share, radius):
            difference = query[i] ^ table[j]
            place = i + offset
            new = (
                place < j
                if pairs == "unordered"
                else place != j
                if pairs == "ordered"
                else np.ones(len(i), np.bool_)
            )
            for mask, errors in searched:  # leave out pairs that an earlier part has found
                new &= np.bitwise_count(difference & mask) > errors
            if new.any():
                yield i[new], j[new]
        searched.append((np.bitwise_or.reduce(np.uint64(1) << bits), share))


def _best_parts(n: int, radius: int) -> int:
    """Return the number of parts with the least work: index look-ups, and comparisons, which take twice as long."""

    def work(parts: int) -> float:
        total = 0.0
        for part in range(parts):
            bits, share = len(range(part, _BITS, parts)), (radius - part) // parts
            places = sum(math.comb(bits, errors) for errors in range(share + 1))
            total += places * (1 + 2 * n / (1 << bits))
        return total

    return min(_PARTS, key=work)


def _deal(hashes: U64, parts: int) -> list[U64]:
    """Divide the 64 bits into parts, in turn from the most balanced on, so that no part holds only uninformative bits."""
    ones = np.array([np.count_nonzero(hashes >> np.uint64(bit) & np.uint64(1)) for bit in range(_BITS)])
    dealt = np.argsort(np.abs(2 * ones - len(hashes)), kind="stable").astype(np.uint64)
    return [dealt[part::parts] for part in range(parts)]


def _keys(hashes: U64, bits: U64) -> U32:
    keys = np.zeros(len(hashes), np.uint32)
    for place, bit in enumerate(bits):
        keys |= (hashes >> bit & np.uint64(1)).astype(np.uint32) << np.uint32(place)
    return keys


def _within(query: U64, table: U64, bits: U64, share: int, radius: int) -> Iterator[tuple[I64, I64]]:
    """Yield the pairs within the radius that differ in at most `share` of the bits of one part."""
    columns, rows = np.flatnonzero(table), np.flatnonzero(query)
    keys, wanted = _keys(table[columns], bits), _keys(query[rows], bits)
    begin = np.zeros((1 << len(bits)) + 1, np.int64)
    np.cumsum(np.bincount(keys, minlength=1 << len(bits)), out=begin[1:])
    present = begin[1:] > begin[:-1]
    columns = columns[np.argsort(keys, kind="stable")]
    hashes = table[columns]
    order = np.argsort(wanted, kind="stable")  # so that consecutive look-ups are close in memory
    wanted, rows = wanted[order], rows[order]
    patterns = np.arange(1 << len(bits), dtype=np.uint32)
    for pattern in patterns[np.bitwise_count(patterns) <= share]:
        for start in range(0, len(rows), _PROBES):
            probes = wanted[start : start + _PROBES] ^ pattern
            hit = np.flatnonzero(present[probes])
            first, probes = rows[start + hit], probes[hit]
            for which, at in _near(query[first], hashes, begin[probes], begin[probes + 1], radius):
                yield first[which], columns[at]


def _near(query: U64, hashes: U64, low: I64, high: I64, radius: int) -> Iterator[tuple[I64, I64]]:
    """Compare the i-th hash with ``hashes[low[i]:high[i]]``, which is not empty, for every i, in bounded blocks."""
    count = high - low
    total = np.concatenate([[0], np.cumsum(count)])
    start = 0
    while start < len(low):
        stop = max(start + 1, int(np.searchsorted(total, total[start] + _PAIRS, side="right")) - 1)
        begins, repeats = total[start : stop + 1] - total[start], count[start:stop]
        at = np.arange(begins[-1]) + np.repeat(low[start:stop] - begins[:-1], repeats)
        distance = np.bitwise_count(np.repeat(query[start:stop], repeats) ^ hashes[at])
        near = np.flatnonzero(distance <= radius)
        if len(near):
            yield start + np.searchsorted(begins, near, side="right") - 1, at[near]
        start = stop
