"""Test images that a checkpoint of other data has seen: themselves, or another image of their patient."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from brainmri_core.errors import ConfigError, IntegrityError
from brainmri_core.learning.checkpoint import CheckpointMeta
from brainmri_core.project.catalogue import DatasetEntry, load_catalogue
from brainmri_core.project.image_tables import is_file
from brainmri_core.project.job import Job
from brainmri_core.project.pointers import MappingPointer, PackPointer, follow
from brainmri_core.project.sample_table import known_patients, read_samples
from brainmri_core.system.storage import read_json


def seen_in_training(test: pd.DataFrame, pack: PackPointer, meta: CheckpointMeta, job: Job) -> int:
    """Count the test images whose pixels, or whose known patient, are in the checkpoint's own training split.

    Parameters
    ----------
    test : pandas.DataFrame
        Test images of `pack`: pixel_sha256 and, where known, patient.
    pack : PackPointer
        What the model is evaluated on, which is not what it was trained on.
    meta : CheckpointMeta
        The checkpoint's record; where its training data is not here, 0 is returned and a warning logged.
    """
    if meta.pack_pointer is None:
        return 0
    try:
        own = follow(job.layout, PackPointer, meta.pack_pointer)
        table = read_samples(job.layout.absolute(own.samples), {"split": "str", "pixel_sha256": "str"})
    except (IntegrityError, ConfigError):
        job.log.warning(
            "the checkpoint's own training data is not here; whether it has seen these images is unknown"
        )
        return 0
    trained = table[table["split"] == "train"]
    seen = np.isin(test["pixel_sha256"].to_numpy(object), list(set(trained["pixel_sha256"]) - {""}))
    return int((seen | _patient_trained(test, trained, pack, own, job)).sum())


def _patient_trained(
    test: pd.DataFrame, trained: pd.DataFrame, pack: PackPointer, own: PackPointer, job: Job
) -> npt.NDArray[np.bool_]:
    """Mark the test images whose patient was trained on.

    A keyed hash means one person in the whole project. A running number does so in one data set, and across those whose
    numbers all come from the package's tables, which share them; elsewhere patient 1 of two sets are two people.
    """
    names = set(known_patients(trained)) - {""}
    if pack.dataset != own.dataset and not all(_shipped_numbers(item, job) for item in (pack, own)):
        names = {name for name in names if name.startswith("hashed:")}
    return np.isin(known_patients(test), list(names))


def _shipped_numbers(pack: PackPointer, job: Job) -> bool:
    """Say whether all patients of a pack come from a table of the package."""
    try:
        mapping = follow(job.layout, MappingPointer, pack.mapping_pointer)
        record = read_json(job.layout.absolute(mapping.split_json))
    except (IntegrityError, ConfigError):
        return False
    patients = record.get("patients") if isinstance(record, dict) else None
    sources = patients.get("sources") if isinstance(patients, dict) else None
    entry: DatasetEntry | None = job.entry
    if pack.dataset != job.dataset:
        entry = load_catalogue().get(pack.dataset)
    shipped = entry is not None and entry.patients is not None and not is_file(entry.patients)
    return shipped and isinstance(sources, dict) and set(sources) == {"catalogue"}
