"""Finished predictions, stored while the rest is computed, so that a killed run or one on a grown folder continues."""

from __future__ import annotations

import io
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainmri_core.arrays import F32, F64
from brainmri_core.classifier.prediction import Prediction
from brainmri_core.evaluation.shift import FEATURE_NAMES, image_features
from brainmri_core.project.layout import Layout
from brainmri_core.project.run_sharing import remote_store
from brainmri_core.system.clock import utc_now
from brainmri_core.system.storage import remove_folder, storage_error, write_bytes

KEY = ["path", "file_sha256"]
FIRST = "first_predicted_utc"
_TEXT = [*KEY, FIRST, "predicted", "error"]
_WHOLE = "part-whole.parquet"
_FEATURES = [f"feature_{name}" for name in FEATURE_NAMES]


@dataclass(frozen=True)
class FinishedWork:
    """A folder of Parquet files with a row per image: the prediction, and the features that drift is measured by.

    Attributes
    ----------
    folder : pathlib.Path
        Named after the classifier, so that predictions of different classifiers are never mixed.
    classes : tuple of str
        Class names of the classifier.
    """

    folder: Path
    classes: tuple[str, ...]

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in order."""
        scores = [f"{kind}_{name}" for kind in ("prob", "logit") for name in self.classes]
        return [*_TEXT, "outlier_score", "outlier", *scores, *_FEATURES, "embedding"]

    def rows(
        self, keys: Sequence[tuple[str, str]], found: Sequence[Prediction], first_predicted: str
    ) -> pd.DataFrame:
        """Return the rows of some images.

        Parameters
        ----------
        keys : sequence of tuple
            Path and file hash of N images.
        found : sequence of Prediction
            N predictions with traces; one with an error has empty values.
        first_predicted : str
            Start of the run that predicts them.
        """
        usable = [index for index, item in enumerate(found) if item.error is None]
        features = np.full((len(found), len(_FEATURES)), np.nan)
        if usable:
            pixels = np.stack([np.asarray(found[index].pixels) for index in usable])
            sizes = np.array([[found[index].width, found[index].height] for index in usable], np.int64)
            features[usable] = image_features(pixels, sizes[:, 0], sizes[:, 1])
        rows = []
        for (path, digest), item, values in zip(keys, found, features, strict=True):
            row: dict[str, Any] = dict(zip(KEY, (path, digest), strict=True)) | {FIRST: first_predicted}
            row |= {"predicted": item.predicted, "error": item.error or ""}
            row |= {"outlier_score": item.outlier_score, "outlier": item.outlier}
            logits = [np.nan] * len(self.classes) if item.logits is None else item.logits.tolist()
            row |= {f"prob_{name}": item.probabilities.get(name, np.nan) for name in self.classes}
            row |= {f"logit_{name}": value for name, value in zip(self.classes, logits, strict=True)}
            row |= dict(zip(_FEATURES, values.tolist(), strict=True))
            row["embedding"] = b"" if item.embedding is None else item.embedding.tobytes()
            rows.append(row)
        return self._typed(pd.DataFrame(rows, columns=self.columns))

    def _typed(self, table: pd.DataFrame) -> pd.DataFrame:
        kinds = dict.fromkeys(self.columns[len(_TEXT) + 2 : -1], "float64")
        kinds |= dict.fromkeys(_TEXT, "str") | {"outlier_score": "float64", "outlier": "boolean"}
        kinds |= {f"logit_{name}": "float32" for name in self.classes}
        return table.astype(kinds)

    @staticmethod
    def packed(rows: pd.DataFrame) -> bytes:
        """Return rows as the bytes of a Parquet file."""
        data: bytes = rows.to_parquet(index=False, compression="zstd")
        return data

    def unpacked(self, data: bytes) -> pd.DataFrame:
        """Return the rows of a Parquet file's bytes."""
        return self._typed(pd.read_parquet(io.BytesIO(data)))

    def add(self, rows: pd.DataFrame) -> None:
        """Store rows in a new file, atomically."""
        write_bytes(self.folder / f"part-{uuid.uuid4().hex}.parquet", self.packed(rows))

    def read(self) -> tuple[pd.DataFrame, list[Path]]:
        """Return all stored rows, the newest of each image, and the damaged files, which are removed."""
        parts, damaged = [self._typed(pd.DataFrame(columns=self.columns))], []
        for path in sorted(self.folder.glob("part-*.parquet")):
            try:
                part = pd.read_parquet(path)
                if part.columns.tolist() != self.columns:
                    raise ValueError("it has other columns")
                parts.append(self._typed(part))
            except (OSError, ValueError, TypeError) as error:
                # pyarrow raises OSError without errno for a damaged file
                if isinstance(error, OSError) and error.errno:
                    raise storage_error(error, path, "read") from error
                path.unlink(missing_ok=True)
                damaged.append(path)
        filled = [part for part in parts if len(part)] or parts
        return pd.concat(filled, ignore_index=True).drop_duplicates(KEY, keep="last"), damaged

    def complete(self, rows: pd.DataFrame) -> None:
        """Store only these rows, in one file, and remove the folders of other classifiers."""
        write_bytes(self.folder / _WHOLE, self.packed(rows))
        for path in self.folder.glob("part-*.parquet"):
            if path.name != _WHOLE:
                path.unlink(missing_ok=True)
        for other in self.folder.parent.iterdir():
            if other.is_dir() and other != self.folder:
                remove_folder(other)


def take_in(work: FinishedWork, layout: Layout) -> None:
    """Download what the last complete run of any machine has left. A project in a folder needs none of this."""
    store = remote_store(layout)
    if store is not None:
        store.shared_file(layout.relative(work.folder / _WHOLE)).take(None)


def pass_on(work: FinishedWork, layout: Layout) -> None:
    """Upload complete work, for the runs on other machines, and remove that of other classifiers."""
    store = remote_store(layout)
    if store is None:
        return
    own = store.shared_file(layout.relative(work.folder / _WHOLE))
    own.replace((int(utc_now().timestamp()),))
    for other in store.shared_files():
        if other.path.parent.parent == work.folder.parent and other.path != own.path:
            other.remove()


def features_of(rows: pd.DataFrame) -> F64:
    """Return the features of rows, float64 ``(N, F)``, columns as in `shift.FEATURE_NAMES`."""
    return np.asarray(rows[_FEATURES].to_numpy(np.float64))


def embeddings_of(rows: pd.DataFrame) -> F32:
    """Return the embeddings of rows, float32 ``(N, D)``."""
    return np.stack([np.frombuffer(value, np.float32) for value in rows["embedding"]])


def public(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the columns for users, without features and embeddings."""
    return rows.drop(columns=[*_FEATURES, "embedding"])
