"""Maximum mean discrepancy (MMD) between two sets of points, and between random parts of one set.

Gretton et al., A kernel two-sample test, JMLR 2012, with an RBF kernel. Points of one group are not independent, so pairs
within a group are left out, and whole groups are drawn or permuted. Then the sums of the kernel between each two groups are
all that is needed of the points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brainmri_core.arrays import F64, I64, Mask

_MEDIAN_OF = 1000  # points whose distances the width of the kernel is taken from
_CHUNK_VALUES = 8_000_000


@dataclass(frozen=True)
class Kernel:
    """An RBF kernel on points divided by a scale.

    Attributes
    ----------
    scale : numpy.ndarray
        float64 ``(D,)``.
    width : float
        Standard deviation of the RBF kernel, in scaled units.
    """

    scale: F64
    width: float

    @classmethod
    def fit(cls, points: F64, *, standardise: bool) -> Kernel:
        """Take the median distance of points ``(N, D)`` as the width (the median heuristic).

        Parameters
        ----------
        points : numpy.ndarray
            float64 ``(N, D)``.
        standardise : bool
            Divide each column by its standard deviation first, for columns with different units. A column that is constant
            here keeps its own unit, so that points of the other set that differ in it are far away.
        """
        deviation = points.std(axis=0) if standardise else np.ones(points.shape[1])
        # Rounding gives a constant column a standard deviation of about 1e-16 of its values.
        constant = deviation <= 1e-9 * np.maximum(np.abs(points).max(axis=0, initial=0.0), 1e-300)
        scale = np.where(constant, 1.0, deviation)
        step = -(-len(points) // _MEDIAN_OF)
        few = points[:: max(step, 1)] / scale
        distance = np.sqrt(_squared(few, few))[np.triu_indices(len(few), 1)]
        middle = float(np.median(distance)) if len(distance) else 0.0
        if middle == 0 and (distance > 0).any():  # most points are identical
            middle = float(distance[distance > 0].mean())
        return cls(scale, middle or 1.0)


def _squared(first: F64, second: F64) -> F64:
    squares = (first**2).sum(axis=1)[:, None] - 2 * first @ second.T + (second**2).sum(axis=1)
    return np.asarray(np.maximum(squares, 0.0))


@dataclass(frozen=True)
class GroupSums:
    """The kernel summed over the pairs of points of each two groups.

    Attributes
    ----------
    sums : numpy.ndarray
        float64 ``(G, G)``, zero on the diagonal, since pairs within a group are left out.
    sizes : numpy.ndarray
        float64 ``(G,)``: number of points of each group.
    own : numpy.ndarray
        float64 ``(G,)``: the kernel summed over the pairs of different points within each group.
    """

    sums: F64
    sizes: F64
    own: F64

    @classmethod
    def of(cls, points: F64, number: I64, kernel: Kernel) -> GroupSums:
        """Sum the kernel of points ``(N, D)`` over groups, numbered from 0 without gaps in `number`."""
        order = np.argsort(number, kind="stable")
        numbers, scaled = number[order], points[order] / kernel.scale
        scaled = scaled - scaled.mean(
            axis=0
        )  # smaller numbers lose less precision in the difference of squares
        sizes = np.bincount(numbers).astype(np.float64)
        starts = np.r_[0, np.cumsum(sizes[:-1])].astype(np.int64)
        sums = np.zeros((len(sizes), len(sizes)))
        rows = max(1, _CHUNK_VALUES // max(len(points), 1))
        for start in range(0, len(points), rows):
            alike = np.exp(_squared(scaled[start : start + rows], scaled) / (-2 * kernel.width**2))
            np.add.at(sums, numbers[start : start + rows], np.add.reduceat(alike, starts, axis=1))
        own = sums.diagonal() - sizes  # without the pairs of a point with itself, whose kernel is 1
        np.fill_diagonal(sums, 0.0)
        return cls(sums, sizes, own)

    def discrepancy(self, sides: Mask, *, ungrouped: bool = False) -> F64:
        """Return the unbiased squared MMD of each division of the groups: about 0 if the two sides do not differ.

        Parameters
        ----------
        sides : numpy.ndarray
            bool ``(R, G)``, with two groups or more on each side.
        ungrouped : bool
            Also count the pairs within a group on the chosen side, as for a set with unknown groups. Then that side may be
            a single group of two points or more. The result is larger, since points of a group are alike.

        Returns
        -------
        numpy.ndarray
            float64 ``(R,)``, at most 2; it can be slightly negative by chance.
        """
        chosen = sides.astype(np.float64)
        towards = chosen @ self.sums
        within = (towards * chosen).sum(axis=1)
        between = towards.sum(axis=1) - within
        rest = self.sums.sum() - within - 2 * between
        here, squares = chosen @ self.sizes, chosen @ self.sizes**2
        there, others = self.sizes.sum() - here, (self.sizes**2).sum() - squares
        pairs = here**2 - squares
        if ungrouped:
            within, pairs = within + chosen @ self.own, here**2 - here
        found: F64 = within / pairs + rest / (there**2 - others) - 2 * between / (here * there)
        return found


def permutation_test(sums: GroupSums, first: Mask, permutations: int, seed: int) -> tuple[float, float]:
    """Test whether two sets of groups come from the same distribution, by permuting the groups between the sets.

    Parameters
    ----------
    sums : GroupSums
        Of the groups of both sets.
    first : numpy.ndarray
        bool ``(G,)``: the groups of the first set.
    permutations : int
        Number of permutations n.
    seed : int
        Seed of the permutations.

    Returns
    -------
    discrepancy : float
        Unbiased squared MMD.
    p_value : float
        (1 + k) / (1 + n), where k permutations have at least this discrepancy.
    """
    rng = np.random.default_rng([seed, 0x5417])
    observed = float(sums.discrepancy(first[None])[0])
    drawn = sums.discrepancy(_drawn(len(first), int(first.sum()), permutations, rng))
    # The tolerance covers rounding where a permutation gives the same division again.
    return observed, float((1 + (drawn >= observed - 1e-12).sum()) / (1 + permutations))


def chance_discrepancies(sums: GroupSums, part: int, draws: int, seed: int) -> F64:
    """Return the squared MMDs between random groups of one set, taken as ungrouped points, and the rest of it.

    Parameters
    ----------
    sums : GroupSums
        Kernel sums of the groups of the set.
    part : int
        Number of random groups; they and the rest must each hold two points or more.
    draws : int
        Number of random divisions.
    seed : int
        Seed of the divisions.

    Returns
    -------
    numpy.ndarray
        float64 ``(draws,)``.
    """
    rng = np.random.default_rng([seed, 0x5418])
    return sums.discrepancy(_drawn(len(sums.sizes), part, draws, rng), ungrouped=True)


def _drawn(groups: int, part: int, draws: int, rng: np.random.Generator) -> Mask:
    sides = np.zeros((draws, groups), np.bool_)
    sides[:, :part] = True
    return rng.permuted(sides, axis=1)


def number_groups(groups: Sequence[str]) -> I64:
    """Number groups from 0 in the order of their names, int64 ``(N,)``."""
    return np.asarray(np.unique(np.asarray(groups, object).astype(str), return_inverse=True)[1], np.int64)
