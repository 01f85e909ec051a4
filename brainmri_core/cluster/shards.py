"""Divide images into pieces of work."""

from __future__ import annotations


def evenly(n: int, threads: int, most: int) -> list[slice]:
    """Divide n rows into slices whose lengths differ by at most one row.

    The number of slices is a multiple of `threads` where there are enough rows, so that no thread idles in the last round.

    Parameters
    ----------
    n : int
        Number of rows; 0 gives no slice.
    threads : int
        Number of slices that are worked on at the same time.
    most : int
        Maximum number of rows of a slice.

    Returns
    -------
    list of slice
        In order, without gaps.
    """
    rounds = -(-n // (threads * most))
    count = min(n, rounds * threads)
    return [slice(n * piece // count, n * (piece + 1) // count) for piece in range(count)]
