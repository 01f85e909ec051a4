"""Test images that a checkpoint of another data set or split has seen, or whose patient it has seen."""

from __future__ import annotations

import numpy as np
import pandas as pd

from brainmri_core.errors import ConfigError, IntegrityError
from brainmri_core.learning.checkpoint import CheckpointMeta
from brainmri_core.project.job import Job
from brainmri_core.project.pointer_store import follow
from brainmri_core.project.pointers import MappingPointer, PackPointer
from brainmri_core.project.sample_table import known_patients, read_samples
from brainmri_core.splitting.shared_patients import shared_patients


def seen_in_training(test: pd.DataFrame, pack: PackPointer, meta: CheckpointMeta, job: Job) -> int:
    """Count the test images whose pixels, or whose known patient, are in the checkpoint's own training split.

    Parameters
    ----------
    test : pandas.DataFrame
        Test images of `pack`: pixel_sha256 and, where known, patient.
    pack : PackPointer
        The pack to evaluate on, not the one that the model was trained on.
    meta : CheckpointMeta
        The checkpoint's metadata.
    job : Job
        The run.

    Returns
    -------
    int
        The number; 0, with a warning in the log, if the checkpoint's training data is not in the project.
    """
    if meta.pack_pointer is None:
        return 0
    try:
        own = follow(job.layout, PackPointer, meta.pack_pointer)
        table = read_samples(job.layout.absolute(own.samples), {"split": "str", "pixel_sha256": "str"})
        splits = [follow(job.layout, MappingPointer, item.mapping_pointer) for item in (own, pack)]
    except (IntegrityError, ConfigError):
        job.log.warning(
            "the checkpoint's training data is not in this project, so it is unknown whether it has seen these images"
        )
        return 0
    trained = table[table["split"] == "train"]
    seen = np.isin(test["pixel_sha256"].to_numpy(object), list(set(trained["pixel_sha256"]) - {""}))
    patients = shared_patients(splits[0], trained, splits[1], test, job.layout)
    return int((seen | np.isin(known_patients(test), list(patients))).sum())
