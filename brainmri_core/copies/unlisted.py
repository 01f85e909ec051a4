"""Exhaustive search for copies of a few images among others, independent of perceptual hashes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brainmri_core.arrays import F32, I64, U8
from brainmri_core.config.data import CopySearchConfig
from brainmri_core.copies.fingerprint import half_size
from brainmri_core.copies.likeness import ORIENTATIONS, correlation, difference, turned, turned_back
from brainmri_core.copies.lookup import unit_vectors

_BLOCK = 1024
_CONFIRM = 512
_SIDE = 16


@dataclass(frozen=True)
class Copy:
    """A copy: two rows, their correlation, and the index of the orientation in which `row` looks like `other`."""

    row: int
    other: int
    ncc: float
    orientation: int


def best_copies(thumbs: U8, rows: I64, others: I64, config: CopySearchConfig) -> list[Copy]:
    """Return the copy of highest correlation of each of `rows` among `others`, in all eight orientations.

    A pair counts as a copy if the pixels confirm it; hashes, and the orientations that `config` names, are not used, so
    nothing is missed. Versions of 16 x 16 pixels rule out most pairs at a sixteenth of the cost. They are projections of
    the 64 x 64 versions, so their distance is never larger.

    Parameters
    ----------
    thumbs : numpy.ndarray
        uint8, ``(N, 64, 64)``; may be a memory map.
    rows, others : numpy.ndarray
        int64: rows of `thumbs`.
    config : CopySearchConfig
        Correlation and difference that confirm a copy.

    Returns
    -------
    list of Copy
        In the order of `rows`; those without a copy are left out.
    """
    best: dict[int, Copy] = {}
    coarse = _projections(thumbs, rows)
    for start in range(0, len(others), _BLOCK):
        among = others[start : start + _BLOCK]
        small = _projections(thumbs, among)
        for orientation in range(len(ORIENTATIONS)):
            back = turned(small, turned_back(orientation))
            for low in range(0, len(rows), _BLOCK):
                part = rows[low : low + _BLOCK]
                close = _close(coarse[low : low + _BLOCK], back, config.ncc_threshold)
                _keep_best(best, thumbs, part[close[0]], among[close[1]], orientation, config)
    return [best[row] for row in rows.tolist() if row in best]


def _close(rows: F32, others: F32, threshold: float) -> tuple[I64, I64]:
    """Return the pairs that may reach correlation c: the distance of their unit vectors is at most sqrt(2 - 2c)."""
    one, other = (vectors.reshape(len(vectors), -1) for vectors in (rows, others))
    squares = np.einsum("ij,ij->i", one, one)[:, None] + np.einsum("ij,ij->i", other, other)
    first, second = np.nonzero(squares - 2 * (one @ other.T) <= 2 - 2 * threshold + 1e-4)
    return first, second


def _keep_best(
    best: dict[int, Copy], thumbs: U8, rows: I64, others: I64, orientation: int, config: CopySearchConfig
) -> None:
    for start in range(0, len(rows), _CONFIRM):
        a, b = rows[start : start + _CONFIRM], others[start : start + _CONFIRM]
        images, like = np.ascontiguousarray(turned(thumbs[a], orientation)), thumbs[b]
        ncc = correlation(images, like)
        right = ncc >= config.ncc_threshold
        right[right] = difference(images[right], like[right]) <= config.max_difference
        for row, other, score in zip(a[right].tolist(), b[right].tolist(), ncc[right].tolist(), strict=True):
            if row not in best or score > best[row].ncc:
                best[row] = Copy(row, other, score, orientation)


def _projections(thumbs: U8, rows: I64) -> F32:
    """Return the unit vectors of some images as 16 x 16 block sums, divided by 4: float32 ``(N, 16, 16)``."""
    parts = [np.zeros((0, _SIDE, _SIDE), np.float32)]
    for start in range(0, len(rows), _BLOCK):
        vectors = unit_vectors(thumbs[rows[start : start + _BLOCK]]).reshape(-1, 64, 64)
        parts.append(half_size(half_size(vectors)) * np.float32(4))
    return np.concatenate(parts)
