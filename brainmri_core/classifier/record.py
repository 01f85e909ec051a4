"""``classifier.json`` and ``outliers.npz`` of an evaluation: what prediction needs besides the checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from brainmri_core.config.base import Precision
from brainmri_core.errors import IntegrityError
from brainmri_core.evaluation.outliers import OutlierModel
from brainmri_core.evaluation.tested_model import TestedModel
from brainmri_core.system.checksums import sha256_file
from brainmri_core.system.json_files import write_json
from brainmri_core.system.json_models import read_model
from brainmri_core.system.storage import atomic_file

SCHEMA_VERSION = 1
CLASSIFIER_NAME = "classifier.json"
OUTLIERS_NAME = "outliers.npz"


class ClassifierFile(BaseModel):
    """How to use an evaluated checkpoint for prediction.

    Attributes
    ----------
    checkpoint : str
        Path relative to this file's folder, so that a project can be moved.
    temperature : float or None
        Divides the logits; None if there were too few validation images to fit it.
    outlier_threshold : float or None
        Outlier score above which an image is flagged.
    batch_size, precision, mirror
        Those of the evaluation: the same shapes and arithmetic give the same bits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    checkpoint: str
    checkpoint_sha256: str
    classes: list[str]
    temperature: float | None
    outlier_threshold: float | None
    batch_size: int
    precision: Precision
    mirror: bool = False

    @classmethod
    def of(
        cls, tested_model: TestedModel, temperature: float | None, outliers: OutlierModel | None, folder: Path
    ) -> ClassifierFile:
        """Describe the evaluated model whose results go to `folder`."""
        return cls(
            checkpoint=Path(os.path.relpath(tested_model.weights, folder)).as_posix(),
            checkpoint_sha256=sha256_file(tested_model.weights),
            classes=tested_model.classes,
            temperature=temperature,
            outlier_threshold=None if outliers is None else outliers.threshold,
            batch_size=tested_model.batch_size,
            precision=tested_model.precision,
            mirror=tested_model.mirror,
        )


def write_classifier(folder: Path, described: ClassifierFile, outliers: OutlierModel | None) -> None:
    """Write both files into an evaluation's folder."""
    write_json(folder / CLASSIFIER_NAME, described.model_dump(mode="json"))
    if outliers is not None:
        with atomic_file(folder / OUTLIERS_NAME) as handle:
            np.savez(handle, means=outliers.means, whitening=outliers.whitening)


def read_classifier(folder: Path) -> tuple[ClassifierFile, OutlierModel | None]:
    """Read both files of an evaluation's folder.

    Raises
    ------
    IntegrityError
        If one is missing or damaged.
    """
    path = folder / CLASSIFIER_NAME
    try:
        described = read_model(path, ClassifierFile, "does not describe a classifier", "run evaluate again")
        if described.outlier_threshold is None:
            return described, None
        with np.load(folder / OUTLIERS_NAME, allow_pickle=False) as arrays:
            return described, OutlierModel(arrays["means"], arrays["whitening"], described.outlier_threshold)
    except (OSError, ValueError, KeyError) as error:
        raise IntegrityError(
            f"The outlier model beside {path} cannot be read ({type(error).__name__}); run evaluate again."
        ) from None
