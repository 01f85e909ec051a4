"""The 64x64 thumbnails that a split stores for its images: of the whole image, and of the image without margins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from brainmri_core.arrays import U8
from brainmri_core.copies.likeness import THUMB_SIDE
from brainmri_core.errors import IntegrityError
from brainmri_core.images.statistics import to_gray


def read_thumbs(folder: Path, samples: pd.DataFrame, pixels: U8 | None) -> U8:
    """Open the thumbnails in a split's folder; where there are none, make them from the pack.

    Parameters
    ----------
    folder : pathlib.Path
        The split's folder.
    samples : pandas.DataFrame
        The sample table; ``row`` is used for the pack only.
    pixels : numpy.ndarray or None
        The pack, uint8 ``(N, S, S)`` or ``(N, S, S, 3)``.

    Returns
    -------
    numpy.ndarray
        uint8 ``(len(samples), 64, 64)``.

    Raises
    ------
    IntegrityError
        If the thumbnails are damaged, or missing without a pack to make them from.
    """
    kept = _kept(folder / "thumbs.npy", len(samples))
    if kept is not None:
        return kept
    if pixels is None:
        raise IntegrityError(f"The thumbnails {folder / 'thumbs.npy'} are missing; run split again.")
    made = np.zeros((len(samples), THUMB_SIDE, THUMB_SIDE), np.uint8)
    for position, row in enumerate(samples["row"].to_numpy()):
        if row >= 0:
            image = Image.fromarray(to_gray(pixels[row : row + 1])[0])
            made[position] = np.asarray(image.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BILINEAR))
    return made


def read_trimmed_thumbs(folder: Path, samples: pd.DataFrame) -> U8 | None:
    """Open the thumbnails without margins; None for a split of an older version, which did not store them."""
    return _kept(folder / "trimmed_thumbs.npy", len(samples))


def _kept(path: Path, n: int) -> U8 | None:
    if not path.is_file():
        return None
    try:
        thumbs = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise IntegrityError(f"The thumbnails {path} cannot be opened ({error}); run split again.") from None
    if thumbs.dtype != np.uint8 or thumbs.shape != (n, THUMB_SIDE, THUMB_SIDE):
        raise IntegrityError(
            f"The thumbnails {path} hold {thumbs.dtype} {thumbs.shape} for {n} images; run split again."
        )
    return np.asarray(thumbs)
