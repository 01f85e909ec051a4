"""A proxy for unknown patients: runs of images with consecutive file numbers that look alike.

Slices of one patient mostly have consecutive numbers, and look alike within a plane. This is only a guess. So it never joins
images of two known patients, and it is measured against the known patients wherever there are some.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from brainmri_core.arrays import F64, I64, U8, Mask, Objects
from brainmri_core.copies.components import connected
from brainmri_core.copies.likeness import correlation

LEAST_CORRELATION = 0.8
_NUMBER = re.compile(r"(\d+)(?!.*\d)")


@dataclass(frozen=True)
class Neighbours:
    """Pairs of images with consecutive file numbers that look alike.

    Attributes
    ----------
    first, second : numpy.ndarray
        int64 ``(P,)``: rows.
    ncc : numpy.ndarray
        float64 ``(P,)``: correlation of their thumbnails.
    """

    first: I64
    second: I64
    ncc: F64

    def among(self, rows: Mask) -> Neighbours:
        """Return the pairs whose images are both in the mask `rows`, bool ``(N,)``."""
        kept = rows[self.first] & rows[self.second]
        return Neighbours(self.first[kept], self.second[kept], self.ncc[kept])


def neighbour_pairs(table: pd.DataFrame, thumbs: U8) -> Neighbours:
    """Return the pairs of rows with consecutive numbers in their file names and a correlation above .8.

    A lower limit, or a larger distance of the numbers, finds few more pairs of the same patient and many of two patients.

    Parameters
    ----------
    table : pandas.DataFrame
        N rows with ``path``, in the order of `thumbs`.
    thumbs : numpy.ndarray
        uint8, ``(N, 64, 64)``.
    """
    place: dict[tuple[str, str, int], int] = {}
    for row, path in enumerate(table["path"]):
        file = PurePosixPath(path)
        if found := _NUMBER.search(file.stem):
            place[(file.parent.as_posix(), file.stem[: found.start()], int(found.group(1)))] = row
    pairs = [
        (row, place[(folder, prefix, number + 1)])
        for (folder, prefix, number), row in place.items()
        if (folder, prefix, number + 1) in place
    ]
    first, second = np.array(pairs, np.int64).reshape(-1, 2).T
    ncc = np.concatenate(
        [
            np.zeros(0),
            *(
                correlation(thumbs[first[start : start + 2048]], thumbs[second[start : start + 2048]])
                for start in range(0, len(first), 2048)
            ),
        ]
    )
    alike = ncc > LEAST_CORRELATION
    return Neighbours(first[alike], second[alike], ncc[alike])


def proxy_quality(
    patients: Objects, neighbours: Neighbours, copies: tuple[I64, I64]
) -> dict[str, float] | None:
    """Measure the proxy on the images whose patient is known.

    Parameters
    ----------
    patients : numpy.ndarray
        object ``(N,)`` of str, ``""`` where unknown.
    neighbours : Neighbours
        The proxy's pairs.
    copies : tuple of numpy.ndarray
        int64 rows of the confirmed copies, which are joined, too.

    Returns
    -------
    dict or None
        ``precision``: share of the proxy's pairs that show the same patient; ``recall``: share of all pairs of images of
        the same patient that proxy and copies put into one group; ``purity``: share of images that show the most frequent
        patient of their group. None where the proxy has no pair of known patients.
    """
    known = patients != ""
    both = known[neighbours.first] & known[neighbours.second]
    if not both.any():
        return None
    right = patients[neighbours.first[both]] == patients[neighbours.second[both]]
    group = connected(len(patients), copies, (neighbours.first, neighbours.second))
    frame = pd.DataFrame({"group": group[known], "patient": patients[known]})
    shared = frame.groupby(["group", "patient"]).size()
    sizes = frame["patient"].value_counts()
    pairs = (sizes * (sizes - 1)).sum()
    return {
        "precision": round(float(right.mean()), 4),
        "recall": round(float((shared * (shared - 1)).sum() / pairs), 4) if pairs else 0.0,
        "purity": round(float(shared.groupby("group").max().sum() / len(frame)), 4),
    }
