"""Shortcuts: how well the class can be predicted without looking at the brain.

If the classes of a data set differ in file size or overall brightness, a model can score well without having learned
anything about tumours (Geirhos et al., Shortcut learning in deep neural networks, Nature Machine Intelligence 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from brainmri_core.arrays import F64, I64, Indices
from brainmri_core.images.statistics import INTENSITY_STATISTICS
from brainmri_core.splitting.assignment import assign_folds, independent_units

METADATA_FEATURES = ("width", "height", "bytes", "aspect", "bytes_per_pixel", "mode")
MAX_IMAGES = 20_000
_TREES = 20


class ShortcutScore(BaseModel):
    """How well a tiny model predicts the class from one kind of features, on groups that it was not trained on.

    Attributes
    ----------
    features : str
        ``file metadata`` or ``intensity statistics``.
    balanced_accuracy : float or None
        Mean recall of the classes; `chance` is that of guessing.
    auroc : dict
        Class to the area under its one-vs-rest ROC curve; None where it is undefined.
    reason : str or None
        Why there is no score; None if there is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: str
    names: tuple[str, ...]
    folds: int
    n_images: int
    balanced_accuracy: float | None
    chance: float
    auroc: dict[str, float | None]
    reason: str | None = None


def metadata_features(samples: pd.DataFrame) -> F64:
    """Return features of the image file without its pixels.

    Parameters
    ----------
    samples : pandas.DataFrame
        N rows with width, height, bytes and mode.

    Returns
    -------
    numpy.ndarray
        float64 ``(N, 6)``, columns as in `METADATA_FEATURES`; the mode is coded as a number.
    """
    width, height, size = (samples[name].to_numpy(np.float64) for name in ("width", "height", "bytes"))
    pixels = np.maximum(width * height, 1.0)
    known = {
        name: code for code, name in enumerate(("1", "L", "LA", "I;16", "I", "P", "RGB", "RGBA", "CMYK"))
    }
    mode = samples["mode"].map(lambda name: known.get(name, len(known))).to_numpy(np.float64)
    return np.stack([width, height, size, width / np.maximum(height, 1.0), size / pixels, mode], axis=1)


def shortcut_baseline(train_features: F64, train_labels: I64, test_features: F64, *, num_classes: int) -> F64:
    """Train the tiny model (20 extremely randomised trees; Geurts et al., Machine Learning 2006) and apply it.

    Parameters
    ----------
    train_features, test_features : numpy.ndarray
        float64 ``(N, F)`` and ``(M, F)``, from `metadata_features` or
        `brainmri_core.images.statistics.intensity_statistics`.
    train_labels : numpy.ndarray
        int64 ``(N,)`` class indices.
    num_classes : int
        Number of columns of the result.

    Returns
    -------
    numpy.ndarray
        float64 ``(M, num_classes)`` class probabilities; a class without a training image has zeros.
    """
    from sklearn import config_context
    from sklearn.ensemble import ExtraTreesClassifier

    model = ExtraTreesClassifier(_TREES, min_samples_leaf=3, random_state=0)
    probabilities = np.zeros((len(test_features), num_classes))
    # Validating the settings of every tree would take longer than growing it.
    with config_context(skip_parameter_validation=True, assume_finite=True):
        model.fit(train_features, train_labels)
        probabilities[:, model.classes_] = model.predict_proba(test_features)
    return probabilities


def shortcut_scores(
    samples: pd.DataFrame, statistics: F64, classes: Sequence[str], *, seed: int, folds: int = 5
) -> list[ShortcutScore]:
    """Score file metadata and intensity statistics as predictors of the class, by group k-fold cross-validation.

    Parameters
    ----------
    samples : pandas.DataFrame
        Packed images: group, patient where known, class_index, width, height, bytes, mode.
    statistics : numpy.ndarray
        float64 ``(N, 10)``: `intensity_statistics` of the same images in the same order.
    classes : sequence of str
        Class names by index.
    seed : int
        Seed of the folds, and of the sample of groups where there are more than 20,000 images.
    folds : int
        Number of folds; it is lowered where a class has fewer groups.

    Returns
    -------
    list of ShortcutScore
        For file metadata, then for intensity statistics. Every probability comes from a model that was not trained on the
        image's group.
    """
    numbers, group_names = pd.factorize(np.asarray(independent_units(samples), object))
    chosen = _limit(numbers, seed)
    labels = samples["class_index"].to_numpy(np.int64)[chosen]
    groups = numbers[chosen]
    reason, usable = _foldable(labels, groups, classes, folds)
    names = {"file metadata": METADATA_FEATURES, "intensity statistics": INTENSITY_STATISTICS}
    chance = 1.0 / max(len(np.unique(labels)), 1)
    if reason is not None:
        return [_unscored(kind, columns, len(labels), chance, reason) for kind, columns in names.items()]
    parts = _folds(labels, group_names[groups].tolist(), usable, seed)
    features = {"file metadata": metadata_features(samples), "intensity statistics": statistics}
    return [
        _score(kind, names[kind], features[kind][chosen], labels, parts, classes, chance) for kind in names
    ]


def _limit(groups: I64, seed: int) -> Indices:
    if len(groups) <= MAX_IMAGES:
        return np.arange(len(groups))
    order = np.random.default_rng(seed).permutation(int(groups.max()) + 1)
    sizes = np.bincount(groups)[order].cumsum()
    return np.flatnonzero(np.isin(groups, order[: max(int((sizes <= MAX_IMAGES).sum()), 1)]))


def _foldable(labels: I64, groups: I64, classes: Sequence[str], folds: int) -> tuple[str | None, int]:
    present = np.unique(labels)
    if len(present) < 2:
        return "fewer than two classes are present", 0
    fewest = {int(label): len(np.unique(groups[labels == label])) for label in present}
    rarest = min(fewest, key=lambda label: fewest[label])
    if fewest[rarest] < 2:
        return f"the class {classes[rarest]} has a single group", 0
    return None, min(folds, fewest[rarest])


def _folds(labels: I64, groups: Sequence[str], folds: int, seed: int) -> list[tuple[I64, I64]]:
    fold = assign_folds(groups, labels, folds, seed)
    parts = [(np.flatnonzero(fold != index), np.flatnonzero(fold == index)) for index in range(folds)]
    return [part for part in parts if len(part[0]) and len(part[1])]


def _score(
    kind: str,
    names: tuple[str, ...],
    features: F64,
    labels: I64,
    parts: list[tuple[I64, I64]],
    classes: Sequence[str],
    chance: float,
) -> ShortcutScore:
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    probabilities = np.zeros((len(labels), len(classes)))
    for train, test in parts:
        probabilities[test] = shortcut_baseline(
            features[train], labels[train], features[test], num_classes=len(classes)
        )
    auroc: dict[str, float | None] = {}
    for index, name in enumerate(classes):
        truth = labels == index
        auroc[name] = float(roc_auc_score(truth, probabilities[:, index])) if truth.any() else None
    return ShortcutScore(
        features=kind,
        names=names,
        folds=len(parts),
        n_images=len(labels),
        balanced_accuracy=float(balanced_accuracy_score(labels, probabilities.argmax(axis=1))),
        chance=chance,
        auroc=auroc,
    )


def _unscored(kind: str, names: tuple[str, ...], n: int, chance: float, reason: str) -> ShortcutScore:
    return ShortcutScore(
        features=kind,
        names=names,
        folds=0,
        n_images=n,
        balanced_accuracy=None,
        chance=chance,
        auroc={},
        reason=reason,
    )
