"""How many images are cut into pieces of work."""

from __future__ import annotations


def evenly(n: int, threads: int, most: int) -> list[slice]:
    """Cut n rows into slices of equal length, one off at most: of no more than `most`, and a multiple of `threads` where that matters.

    Parameters
    ----------
    n : int
        Rows; 0 gives no slice.
    threads : int
        How many slices are done at a time.
    most : int
        Rows of a slice at most.
    """
    rounds = -(-n // (threads * most))
    count = min(n, rounds * threads)
    return [slice(n * piece // count, n * (piece + 1) // count) for piece in range(count)]
