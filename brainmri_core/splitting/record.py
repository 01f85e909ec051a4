"""The files of a split besides the sample table: its summary, the copies found, and a CSV to replay it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from brainmri_core.arrays import I64
from brainmri_core.config.data import CopySearchConfig, SplitConfig
from brainmri_core.copies.fingerprint import FingerprintTable
from brainmri_core.copies.likeness import ORIENTATIONS
from brainmri_core.copies.search import CopyPairs
from brainmri_core.errors import IntegrityError
from brainmri_core.project.job import Job
from brainmri_core.project.pointer_store import latest_pointer
from brainmri_core.project.pointers import MappingPointer
from brainmri_core.project.sample_table import read_samples
from brainmri_core.splitting.neighbour_runs import Neighbours, proxy_quality
from brainmri_core.splitting.patients import KnownPatients
from brainmri_core.system.json_files import read_json
from brainmri_core.system.storage import atomic_file


@dataclass(frozen=True)
class Found:
    """What was found about the images, by row of the sample table.

    Attributes
    ----------
    prints : FingerprintTable
        Fingerprints.
    pairs : CopyPairs
        Confirmed copies.
    components : numpy.ndarray
        int64 ``(N,)``: the connected component of each image under the copies.
    neighbours : Neighbours
        Pairs of neighbours that look alike.
    patients : KnownPatients
        Known patients.
    corrections : dict
        Images whose label is known to be wrong, from `correct_labels`.
    """

    prints: FingerprintTable
    pairs: CopyPairs
    components: I64
    neighbours: Neighbours
    patients: KnownPatients
    corrections: dict[str, dict[str, str]]


def previous_split(job: Job) -> pd.DataFrame | None:
    """Return path, hash, side and fold of the images in the data set's newest split; None without a split."""
    pointer = latest_pointer(job.layout, MappingPointer, job.dataset)
    if pointer is None or not job.layout.absolute(pointer.samples).is_file():
        return None
    return read_samples(
        job.layout.absolute(pointer.samples),
        {"path": "str", "file_sha256": "str", "split": "str", "fold": "int64"},
    )


def moved_images(table: pd.DataFrame, before: pd.DataFrame) -> dict[str, str]:
    """Name the unchanged images that are on another side or in another fold than before.

    Returns
    -------
    dict
        Path to ``train to test`` or, within training, ``fold 0 to fold 3``.
    """
    here, there = (
        frame["split"].where(frame["fold"] < 0, "fold " + frame["fold"].astype(str))
        for frame in (table, before)
    )
    known = dict(
        zip(before["file_sha256"] + before["path"], zip(before["split"], there, strict=True), strict=True)
    )
    moved = {}
    for key, path, side, place in zip(
        table["file_sha256"] + table["path"], table["path"], table["split"], here, strict=True
    ):
        old_side, old_place = known.get(key, (side, place))
        if old_side != side:
            moved[path] = f"{old_side} to {side}"
        elif old_place != place:
            moved[path] = f"{old_place} to {place}"
    return moved


def side_counts(table: pd.DataFrame, classes: list[str]) -> dict[str, dict[str, int]]:
    """Count the images of each side by class."""
    sides = {}
    for side in ("train", "test", "excluded"):
        found = table.loc[table["split"] == side, "label"].value_counts()
        sides[side] = {name: int(found.get(name, 0)) for name in classes}
    return sides


def split_record(
    config: SplitConfig, table: pd.DataFrame, found: Found, conflicts: list[str], before: pd.DataFrame | None
) -> dict[str, Any]:
    """Summarise a split for ``split.json``: settings, shares reached, copies, patients, exclusions and moved images."""
    included = table[table["split"] != "excluded"]
    sizes = included["group"].value_counts()
    share = (included["split"] == "test").groupby(included["label"]).mean()
    pairs = found.pairs
    return {
        "config": config.model_dump(mode="json"),
        "images": len(table),
        "test_share": {str(name): round(float(value), 4) for name, value in share.items()},
        "test_share_deviation": {
            str(name): round(float(value) - config.test_frac, 4) for name, value in share.items()
        }
        if config.strategy == "pooled"
        else None,
        "folds": {
            str(fold): {str(k): int(v) for k, v in part["label"].value_counts().items()}
            for fold, part in included[included["fold"] >= 0].groupby("fold")
        },
        "groups": len(sizes),
        "largest_group": int(sizes.iloc[0]) if len(sizes) else 0,
        "largest_group_share": round(float(sizes.iloc[0]) / len(included), 5) if len(sizes) else 0.0,
        "copies": {
            "confirmed_pairs": len(pairs.first),
            "exact_pairs": int(pairs.exact.sum()),
            "redundant_exact": int(
                len(table) - len(found.prints.failures) - len(set(found.prints.pixel_sha256) - {""})
            ),
            "groups_of_copies": int(found.components.max(initial=-1)) + 1,
            "orientations": {
                name: int((pairs.orientation == n).sum()) for n, name in enumerate(ORIENTATIONS)
            },
        },
        "label_conflicts": conflicts,
        "label_corrections": found.corrections,
        "patients": _patients(table, found),
        "excluded": {
            path: reason
            for path, reason, side in zip(table["path"], table["reason"], table["split"], strict=True)
            if side == "excluded"
        },
        "moved_since_previous_split": None if before is None else moved_images(table, before),
    }


def _patients(table: pd.DataFrame, found: Found) -> dict[str, Any]:
    """Summarise the known patients: number, sources, notes, and the quality of the proxy for unknown patients."""
    used = (table["split"] != "excluded").to_numpy()
    names = found.patients.names
    known = used & (names != "")
    copies = (found.pairs.first, found.pairs.second)
    return {
        "patients": len(set(names[known])),
        "images": int(known.sum()),
        "images_unknown": int((used & ~known).sum()),
        "sources": found.patients.sources,
        "notes": found.patients.notes,
        "proxy": proxy_quality(names, found.neighbours, copies),
    }


def read_split_record(path: Path) -> dict[str, Any]:
    """Read ``split.json``; return an empty record for a class-folder tree, which has none.

    Raises
    ------
    IntegrityError
        If it is damaged.
    """
    recorded = read_json(path) if path.is_file() else {}
    if not isinstance(recorded, dict):
        raise IntegrityError(f"The record of the split {path} is not a mapping; run split again.")
    return recorded


def copy_limits(record: dict[str, Any]) -> CopySearchConfig:
    """Return the settings of a split's search for copies from its record; the defaults where it has none.

    Raises
    ------
    IntegrityError
        If the settings are not valid.
    """
    try:
        return CopySearchConfig.model_validate(record.get("config", {}).get("copies", {}))
    except (AttributeError, ValidationError):
        raise IntegrityError(
            "The record of the split names no valid limits for copies; run split again."
        ) from None


def copies_table(table: pd.DataFrame, pairs: CopyPairs) -> pd.DataFrame:
    """Return the confirmed pairs by path, with their correlation and whether their labels agree."""
    paths, label = table["path"].to_numpy(object), table["class_index"].to_numpy()
    return pd.DataFrame(
        {
            "path_a": paths[pairs.first],
            "path_b": paths[pairs.second],
            "ncc": pairs.ncc,
            "orientation": [ORIENTATIONS[turn] for turn in pairs.orientation],
            "exact": pairs.exact,
            "same_label": label[pairs.first] == label[pairs.second],
        }
    )


def export_csv(samples: pd.DataFrame, path: Path) -> None:
    """Write a split as the CSV that ``split.strategy: predefined`` reads, so that it can be replayed anywhere."""
    with atomic_file(path) as handle:
        samples[["path", "split", "group"]].to_csv(handle, index=False)
