"""Probes on frozen features over the folds, and on the training images, without another forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import softmax

from brainmri_core.arrays import F32, F64, I64, Mask
from brainmri_core.errors import DataError
from brainmri_core.learning.probe import Probe, fit_probe
from brainmri_core.project.sample_table import known_patients
from brainmri_core.splitting.assignment import validation_mask


def fold_predictions(
    features: F32,
    samples: pd.DataFrame,
    classes: Sequence[str],
    *,
    val_frac: float,
    seed: int,
    balanced: bool,
) -> pd.DataFrame:
    """Predict every training image by a probe that was not fitted on its fold; the test split is not used.

    Parameters
    ----------
    features : numpy.ndarray
        float32 ``(N, D)``, by row of the pack.
    samples : pandas.DataFrame
        The pack's sample table.
    classes : sequence of str
        K class names.
    val_frac, seed : float, int
        Share and seed of the validation groups that choose the penalty, the same as in a training without the fold.
    balanced : bool
        Weigh images by inverse class frequency.

    Returns
    -------
    pandas.DataFrame
        ``row``, ``path``, ``group``, ``patient``, ``label``, ``class_index``, ``split``, ``fold`` and ``prob_<class>``, in the
        order of the pack.

    Raises
    ------
    DataError
        If there are no folds, or a fold leaves a class without an image to fit or to score.
    """
    packed = samples[(samples["row"] >= 0) & (samples["split"] == "train")]
    packed = packed.sort_values("row", ignore_index=True)
    fold = packed["fold"].to_numpy(np.int64)
    number = int(fold.max(initial=-1)) + 1
    if number < 2:
        raise DataError("The split has no folds; set split.folds to 2 or more and split again.")
    shares = np.full((len(packed), len(classes)), np.nan)
    for held in range(number):
        part = packed.assign(split=np.where(fold == held, "test", "train"))
        _check(part, classes, held, number)
        found = fit_on_training(features, part, classes, val_frac=val_frac, seed=seed, balanced=balanced)
        rows = packed["row"].to_numpy(np.int64)[fold == held]
        shares[fold == held] = probe_shares(found, features[rows])
    columns = {f"prob_{name}": shares[:, index] for index, name in enumerate(classes)}
    known = packed[["row", "path", "group", "label", "class_index", "split", "fold"]]
    result = known.assign(patient=known_patients(packed), **columns)
    return result[fold >= 0].reset_index(drop=True)


def _check(part: pd.DataFrame, classes: Sequence[str], held: int, folds: int) -> None:
    of_class = part["class_index"].to_numpy(np.int64)
    held_out = np.bincount(of_class[(part["split"] == "test").to_numpy()], minlength=len(classes))
    for index, name in enumerate(classes):
        images = int((of_class == index).sum())
        if not 0 < held_out[index] < images:
            raise DataError(
                f"The class {name!r} has {held_out[index]} of its {images} training images in fold {held} of {folds}, so that "
                "a probe cannot be scored on it; lower split.folds or add images, and split again."
            )


def fit_on_training(
    features: F32,
    samples: pd.DataFrame,
    classes: Sequence[str],
    *,
    val_frac: float,
    seed: int,
    balanced: bool,
) -> Probe:
    """Fit a probe on the training images of a table; the validation groups among them choose its penalty.

    Parameters
    ----------
    features, samples, classes, val_frac, seed, balanced
        As in `fold_predictions`.

    Raises
    ------
    DataError
        If a class has no image outside the validation groups, or there is no validation group.
    """
    validation: Mask = validation_mask(samples, val_frac, seed)
    training: Mask = (samples["split"] == "train").to_numpy() & ~validation
    rows, labels = samples["row"].to_numpy(np.int64), _labels(samples, len(features))
    missing = set(range(len(classes))) - set(labels[rows[training]].tolist())
    if missing:
        raise DataError(
            f"The class {classes[min(missing)]!r} has no image outside the validation groups to fit a probe on; add images of it."
        )
    if not validation.any():
        raise DataError(
            "The training images are of too few patients or groups to keep some for validation, by which a probe's penalty is "
            "chosen; add images of others."
        )
    return fit_probe(
        features, labels, rows[training], rows[validation], classes=len(classes), balanced=balanced
    )


def _labels(samples: pd.DataFrame, rows: int) -> I64:
    labels = np.full(rows, -1, np.int64)
    labels[samples["row"].to_numpy(np.int64)] = samples["class_index"].to_numpy(np.int64)
    return labels


def probe_shares(probe: Probe, features: F32) -> F64:
    """Return a probe's probabilities ``(N, K)``."""
    return np.asarray(softmax(probe.logits(features), axis=1), np.float64)
