"""The sample table: a Parquet file with one row per image, to which each stage adds columns."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from brainmri_core.arrays import Objects
from brainmri_core.errors import IntegrityError
from brainmri_core.system.checksums import sha256_json
from brainmri_core.system.storage import atomic_file, storage_error

FETCH_COLUMNS = {"path": "str", "label": "str", "origin": "str", "bytes": "int64", "file_sha256": "str"}
SPLIT_COLUMNS = {
    "found_label": "str",
    "class_index": "int64",
    "pixel_sha256": "str",
    "colourfulness": "float64",
    "phash": "uint64",
    "phash_mirrored": "uint64",
    "group": "str",
    "split": "str",
    "fold": "int64",
    "reason": "str",
}
OPTIONAL_COLUMNS = {"patient": "str"}
"""Columns that a table may lack, because an older version wrote it or nothing is known for them."""
RESIZE_COLUMNS = {
    "row": "int64",
    "width": "int64",
    "height": "int64",
    "mode": "str",
    "mean": "float64",
    "std": "float64",
}
COLUMN_MEANING = {
    "path": "file relative to the data set's root, POSIX",
    "label": "class: as found after fetch, canonical after split",
    "origin": "official folder: training, testing, validation or none",
    "bytes": "file size",
    "file_sha256": "SHA-256 of the file",
    "found_label": "class folder as found",
    "class_index": "index of the class; -1 if excluded for an unknown class",
    "pixel_sha256": "SHA-256 of the decoded gray pixels and their shape; of JPEG, at a reduced scale; of deeper files, of their values",
    "depth": "depth of the file's samples: 8-bit, 12-bit, 16-bit, 32-bit or float",
    "colourfulness": "mean difference between the colour channels, in gray levels; 0 for gray",
    "phash": "64-bit perceptual hash",
    "phash_mirrored": "perceptual hash of the left-right mirror image",
    "patient": "whose image it is, as a running number or a keyed hash; empty where unknown",
    "scan": "the same for the slices of one file or study, the latter as a keyed hash; empty for other images",
    "group": "images that must stay on one side share it",
    "split": "train, test or excluded",
    "fold": "cross-validation fold of a training image; -1 elsewhere, and where official folders give the validation side",
    "reason": "why an image is excluded or marked; empty otherwise",
    "row": "row in the pack; -1 if not packed",
    "width": "original width in pixels",
    "height": "original height in pixels",
    "mode": "original pixel mode",
    "mean": "mean gray level after resizing, 0 to 255",
    "std": "standard deviation of the gray level after resizing",
    "scaled_by": "what turned values of more than 8 bits into gray levels",
}
FOLD_REASON = "test side, kept for the ensemble of folds"
"""Why the sample table of a fold excludes the images of the whole split's test side."""

_OUTSIDE = re.compile(r"^/|(?:^|/)\.\.(?:/|$)|\0")


def write_samples(path: Path, table: pd.DataFrame) -> None:
    """Write a sample table atomically as Parquet (zstd)."""
    with atomic_file(path) as handle:
        table.to_parquet(handle, index=False, compression="zstd")


def read_samples(path: Path, columns: dict[str, str] | None = None) -> pd.DataFrame:
    """Read a sample table.

    Parameters
    ----------
    path : pathlib.Path
        Parquet file.
    columns : dict or None
        Required columns (name to dtype).

    Raises
    ------
    IntegrityError
        If the file is missing, is not Parquet, lacks a column or names a file outside the data set.
    StorageError
        If the operating system refuses to read it.
    """
    if not path.is_file():
        raise IntegrityError(f"The sample table {path} is missing; run its stage again.")
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        if (
            isinstance(error, OSError) and error.errno
        ):  # pyarrow raises OSError without errno for a damaged file
            raise storage_error(error, path, "read") from error
        raise IntegrityError(
            f"The sample table {path} cannot be read ({error}); run its stage again."
        ) from None
    missing = [name for name in columns or {} if name not in table.columns]
    if missing:
        raise IntegrityError(
            f"The sample table {path} lacks the column(s) {', '.join(missing)}; run its stage again."
        )
    if "path" in table.columns and table["path"].astype(str).str.contains(_OUTSIDE).any():
        raise IntegrityError(
            f"The sample table {path} names files outside its data set; it was edited or comes from elsewhere: "
            "run its stage again."
        )
    return table


def known_scans(table: pd.DataFrame) -> Objects:
    """Return the file or study that each image is a slice of, object ``(N,)`` of str; ``""`` for ordinary images."""
    if "scan" not in table.columns:
        return np.full(len(table), "", object)
    scans: Objects = table["scan"].astype(object).fillna("").astype(str).to_numpy(object)
    return scans


def known_patients(table: pd.DataFrame) -> Objects:
    """Return each image's patient, object ``(N,)`` of str: ``""`` where unknown, as in a table without the column."""
    if "patient" not in table.columns:
        return np.full(len(table), "", object)
    known: Objects = table["patient"].astype(object).fillna("").astype(str).to_numpy(object)
    return known


def content_hash(table: pd.DataFrame, columns: list[str]) -> str:
    """Return the SHA-256 of some columns, independent of row order."""
    rows = table[columns].astype(str).to_numpy()
    order = np.lexsort(rows.T[::-1])
    return sha256_json(rows[order].tolist())
