"""A proxy for patients where a data set names none: runs of neighbouring file numbers whose images look alike.

In the original Kaggle set 73, 68 and 56% of the images (pituitary, glioma, meningioma) correlate above .8 at 64 x 64
with the one of the next number, against 1-2% of random pairs: neighbours are largely slices of one patient. It stays a
guess, so it is off by default (`split.group_by: subject`).
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
import pandas as pd

from brainmri_core.images.copies import correlation

LEAST_CORRELATION = 0.8
_NUMBER = re.compile(r"(\d+)(?!.*\d)")


def neighbour_pairs(
    table: pd.DataFrame, thumbs: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return pairs of rows whose file names differ by one in their last number and whose images correlate above .8.

    Parameters
    ----------
    table : pandas.DataFrame
        With column ``path``; row-aligned with `thumbs`.
    thumbs : numpy.ndarray
        uint8, ``(N, 64, 64)``.

    Returns
    -------
    first, second : numpy.ndarray
        int64 rows.
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
    if not pairs:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    first, second = np.array(pairs, np.int64).T
    alike = np.concatenate(
        [
            correlation(thumbs[first[start : start + 2048]], thumbs[second[start : start + 2048]])
            > LEAST_CORRELATION
            for start in range(0, len(first), 2048)
        ]
    )
    return first[alike], second[alike]
