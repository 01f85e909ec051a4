"""Connected components: images that hang together through pairs."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from brainmri_core.arrays import I64


def connected(n: int, *pairs: tuple[I64, I64]) -> I64:
    """Return the connected component of each of n nodes under pairs of nodes.

    Parameters
    ----------
    n : int
        Number of nodes.
    *pairs : tuple of numpy.ndarray
        int64 arrays of first and of second nodes, at least one tuple.

    Returns
    -------
    numpy.ndarray
        int64 ``(n,)``: number of each node's component.
    """
    first, second = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    graph = coo_matrix((np.ones(len(first), np.int8), (first, second)), (n, n))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)
