"""Recall and precision of the search for copies on the copies planted in the synthetic data set, by kind of copy."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from brainmri_core.copies.search import CopyPairs
from brainmri_core.sources.phantom import KINDS, PhantomTruth

ROWS = (*KINDS, "label conflict", "all")


def score_copies(truth: PhantomTruth, paths: Sequence[str], pairs: CopyPairs) -> pd.DataFrame:
    """Compare confirmed pairs with the planted copies.

    Parameters
    ----------
    truth : PhantomTruth
        The ground truth.
    paths : sequence of str
        Paths of the fingerprinted images, row by row.
    pairs : CopyPairs
        The pairs found.

    Returns
    -------
    pandas.DataFrame
        Index: each kind of copy, ``label conflict`` (a re-encoded copy filed under another class) and ``all``. Columns:
        ``planted``: number of copies; ``found``: those whose pair with the original was confirmed; ``pairs``: confirmed
        pairs with a copy of this kind (``all``: any pair); ``right``: those of a copy and its original; ``recall`` and
        ``precision``: NaN where the denominator is 0.
    """
    images = {image.path: image for image in truth.images}
    kind = {
        image.path: "label conflict" if image.conflict else str(image.copy_kind)
        for image in truth.images
        if image.copy_of is not None
    }
    table = pd.DataFrame(0, index=list(ROWS), columns=["planted", "found", "pairs", "right"])
    for name in kind.values():
        table.loc[[name, "all"], "planted"] += 1
    for a, b in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        one, other = images[paths[a]], images[paths[b]]
        right = one.copy_of == other.path or other.copy_of == one.path
        kinds = {kind[path] for path in (one.path, other.path) if path in kind}
        table.loc[[*kinds, "all"], "pairs"] += 1
        if right:
            table.loc[[*kinds, "all"], ["right", "found"]] += 1
    table["recall"] = table["found"] / table["planted"].where(table["planted"] > 0)
    table["precision"] = table["right"] / table["pairs"].where(table["pairs"] > 0)
    return table
