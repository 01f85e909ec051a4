"""Shift: how unlike two sets of images are in size, gray levels, edges and a model's embeddings.

A model is evaluated on images like those it was trained on. On a set with shift, its scores, calibration and thresholds may
not hold; the measures of shift do not show that they do not hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from brainmri_core.arrays import F32, F64, I64, U8
from brainmri_core.evaluation.discrepancy import GroupSums, Kernel, number_groups, permutation_test
from brainmri_core.images.statistics import (
    EDGE_STATISTICS,
    INTENSITY_STATISTICS,
    edge_statistics,
    intensity_statistics,
    to_gray,
)
from brainmri_core.splitting.assignment import assign_folds
from brainmri_core.system.threads import cores, threads
from brainmri_core.validation.shortcuts import shortcut_baseline

SIZE_FEATURES = ("width", "height", "aspect")
FEATURES = {"size": SIZE_FEATURES, "intensity": INTENSITY_STATISTICS, "edges": EDGE_STATISTICS}
FEATURE_NAMES = tuple(name for names in FEATURES.values() for name in names)
KINDS = (*FEATURES, "embedding")
PERMUTATIONS = 999
LEVEL = 0.05
"""Significance level for all kinds of features together; each kind is tested at a fourth of it (Bonferroni)."""
MAX_IMAGES = 2000  # of each set, for measures that compare each image with all others
_FOLDS = 5
_CHUNK = 128
_NAMED = 2  # features of each kind in the summary
_WORDS = {
    "aspect": "width by height",
    "mean": "mean gray level",
    "std": "contrast",
    "median": "median gray level",
    "entropy": "entropy of the gray levels",
    "fraction_black": "share of black",
    "edge_strength": "strength of edges",
} | {f"percentile_{share}": f"{share}th percentile of the gray levels" for share in (10, 25, 75, 90)}
_WORDS["percentile_99"] = "level of the brightest pixels"


@dataclass(frozen=True)
class ImageSet:
    """The features of N images.

    Attributes
    ----------
    features : numpy.ndarray
        float64 ``(N, 16)``, columns as in `FEATURE_NAMES`.
    groups : tuple of str
        Independent unit of each image (`assignment.independent_units`), or a name of its own where groups are unknown.
    embeddings : numpy.ndarray or None
        float32 ``(N, D)``, from the same model for both sets.
    """

    features: F64
    groups: tuple[str, ...]
    embeddings: F32 | None = None

    def __len__(self) -> int:
        return len(self.features)

    @property
    def n_groups(self) -> int:
        """Number of independent units."""
        return len(set(self.groups))

    def points(self, kind: str) -> F64 | None:
        """Return the features of one of `KINDS` as points, float64 ``(N, D)``; None where they were not computed."""
        if kind == "embedding":
            return None if self.embeddings is None else self.embeddings.astype(np.float64)
        columns = self.features[:, [FEATURE_NAMES.index(name) for name in FEATURES[kind]]]
        # On a logarithmic scale, twice and half the usual width are equally far from it.
        return np.log2(np.maximum(columns, 1e-6)) if kind == "size" else columns

    def part(self, seed: int) -> ImageSet:
        """Return a random part of at most `MAX_IMAGES` images, in whole groups, but at least two groups."""
        if len(self) <= MAX_IMAGES:
            return self
        number = number_groups(self.groups)
        order = np.random.default_rng([seed, 0x5419]).permutation(int(number.max()) + 1)
        filled = np.bincount(number)[order].cumsum()
        chosen = np.flatnonzero(np.isin(number, order[: max(int((filled <= MAX_IMAGES).sum()), 2)]))
        embeddings = None if self.embeddings is None else self.embeddings[chosen]
        return ImageSet(self.features[chosen], tuple(self.groups[row] for row in chosen), embeddings)


class FeatureShift(BaseModel):
    """One feature in both sets.

    Attributes
    ----------
    reference, other : float
        Medians.
    auroc : float
        Probability that the feature is larger in an image of the other set than in one of the reference; 0.5 without shift.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    feature: str
    kind: str
    reference: float
    other: float
    auroc: float


class Discrepancy(BaseModel):
    """How unlike the sets are in one kind of features.

    Attributes
    ----------
    squared : float or None
        Unbiased squared maximum mean discrepancy: about 0 without shift, at most 2.
    p_value : float or None
        Of a permutation test over groups.
    reason : str or None
        Why it was not measured; None if it was.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    squared: float | None
    p_value: float | None
    reason: str | None = None


class OriginModel(BaseModel):
    """How well a small model predicts which of the two sets an image is from, on groups that it was not trained on.

    Attributes
    ----------
    auroc : float or None
        With all features; 0.5 is chance.
    by_kind : dict
        With a single kind of features.
    folds : int
        Number of folds of the cross-validation.
    reason : str or None
        Why there is no such model; None if there is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    auroc: float | None
    by_kind: dict[str, float]
    folds: int
    reason: str | None = None


class ShiftReport(BaseModel):
    """How unlike a set of images is to a reference.

    Attributes
    ----------
    compared : tuple of int
        Number of images of the reference and of the other set used for discrepancies and origin model.
    features : tuple of FeatureShift
        Most different feature first.
    summary : str
        A summary in plain sentences.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: str
    other: str
    images: tuple[int, int]
    groups: tuple[int, int]
    compared: tuple[int, int]
    permutations: int
    discrepancies: tuple[Discrepancy, ...]
    features: tuple[FeatureShift, ...]
    origin: OriginModel
    summary: str

    def discrepancy(self, kind: str) -> Discrepancy:
        """Return the entry of one of `KINDS`."""
        return next(item for item in self.discrepancies if item.kind == kind)


def image_features(pixels: U8, width: I64, height: I64) -> F64:
    """Compute the features of fitted images.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8 ``(N, P, P)`` or ``(N, P, P, 3)``: the fitted images; may be a memory map.
    width, height : numpy.ndarray
        int64 ``(N,)``: size of the images before fitting.

    Returns
    -------
    numpy.ndarray
        float64 ``(N, 16)``, columns as in `FEATURE_NAMES`.
    """

    def work(start: int) -> F64:
        gray = to_gray(pixels[start : start + _CHUNK])
        return np.hstack([intensity_statistics(gray), edge_statistics(gray)])

    with threads(cores()) as pool:
        seen = list(pool.map(work, range(0, len(pixels), _CHUNK)))
    columns = len(INTENSITY_STATISTICS) + len(EDGE_STATISTICS)
    size = np.stack([width, height, width / np.maximum(height, 1)], axis=1).astype(np.float64)
    return np.hstack([size, np.concatenate(seen) if seen else np.zeros((0, columns))])


def measure_shift(
    reference: ImageSet,
    other: ImageSet,
    names: tuple[str, str],
    *,
    seed: int,
    permutations: int = PERMUTATIONS,
) -> ShiftReport:
    """Measure how unlike a set of images is to a reference, such as the validation images of a model.

    Parameters
    ----------
    reference, other : ImageSet
        At least one image each.
    names : tuple of str
        Names of the sets for the summary.
    seed : int
        Seed of the permutations, the folds, and the sample of a set with more than `MAX_IMAGES` images.
    permutations : int
        Number of permutations of a test; the smallest p value is 1 / (1 + permutations).

    Returns
    -------
    ShiftReport
        Measures that are not possible (for a single group, or without embeddings) have a reason instead of a number.
    """
    first, second = reference.part(seed), other.part(seed)
    discrepancies = tuple(_discrepancy(kind, first, second, permutations, seed) for kind in KINDS)
    features = _feature_shifts(reference, other)
    origin = _origin_model(first, second, seed)
    return ShiftReport(
        reference=names[0],
        other=names[1],
        images=(len(reference), len(other)),
        groups=(reference.n_groups, other.n_groups),
        compared=(len(first), len(second)),
        permutations=permutations,
        discrepancies=discrepancies,
        features=features,
        origin=origin,
        summary=_summary(names, discrepancies, features, origin),
    )


def _not_comparable(first: ImageSet, second: ImageSet, kind: str) -> str | None:
    """Return why two sets cannot be compared in one of `KINDS`; None if they can."""
    if kind == "embedding" and (first.embeddings is None or second.embeddings is None):
        return "there are no embeddings of one of the sets"
    if min(first.n_groups, second.n_groups) < 2:
        return "one of the sets is a single patient or group"
    return None


def _discrepancy(kind: str, first: ImageSet, second: ImageSet, permutations: int, seed: int) -> Discrepancy:
    reason = _not_comparable(first, second, kind)
    if reason is not None:
        return Discrepancy(kind=kind, squared=None, p_value=None, reason=reason)
    here, there = first.points(kind), second.points(kind)
    assert here is not None and there is not None
    points = np.concatenate([here, there])
    number = np.concatenate([number_groups(first.groups), first.n_groups + number_groups(second.groups)])
    sums = GroupSums.of(points, number, Kernel.fit(points, standardise=kind != "embedding"))
    side = np.arange(len(sums.sizes)) < first.n_groups
    squared, p_value = permutation_test(sums, side, permutations, seed)
    return Discrepancy(kind=kind, squared=squared, p_value=p_value)


def _feature_shifts(reference: ImageSet, other: ImageSet) -> tuple[FeatureShift, ...]:
    from sklearn.metrics import roc_auc_score

    origin = np.r_[np.zeros(len(reference)), np.ones(len(other))]
    found = [
        FeatureShift(
            feature=name,
            kind=kind,
            reference=float(np.median(reference.features[:, column])),
            other=float(np.median(other.features[:, column])),
            auroc=float(
                roc_auc_score(origin, np.r_[reference.features[:, column], other.features[:, column]])
            ),
        )
        for column, (kind, name) in enumerate((kind, name) for kind in FEATURES for name in FEATURES[kind])
    ]
    return tuple(sorted(found, key=lambda item: -abs(item.auroc - 0.5)))


def _origin_model(first: ImageSet, second: ImageSet, seed: int) -> OriginModel:
    from sklearn.metrics import roc_auc_score

    folds = min(_FOLDS, first.n_groups, second.n_groups)
    reason = _not_comparable(first, second, "size")
    if reason is not None:
        return OriginModel(auroc=None, by_kind={}, folds=0, reason=reason)
    features = np.concatenate([first.features, second.features])
    labels = np.r_[np.zeros(len(first), np.int64), np.ones(len(second), np.int64)]
    groups = [*(f"reference {name}" for name in first.groups), *(f"other {name}" for name in second.groups)]
    fold = assign_folds(groups, labels, folds, seed)

    def auroc(columns: Sequence[str]) -> float:
        chosen = features[:, [FEATURE_NAMES.index(name) for name in columns]]
        shares = np.zeros(len(labels))
        for index in range(folds):
            inside = fold == index
            fitted = shortcut_baseline(chosen[~inside], labels[~inside], chosen[inside], num_classes=2)
            shares[inside] = fitted[:, 1]
        return float(roc_auc_score(labels, shares))

    by_kind = {kind: auroc(columns) for kind, columns in FEATURES.items()}
    return OriginModel(auroc=auroc(FEATURE_NAMES), by_kind=by_kind, folds=folds)


def _summary(
    names: tuple[str, str],
    discrepancies: Sequence[Discrepancy],
    features: Sequence[FeatureShift],
    origin: OriginModel,
) -> str:
    reference, other = names
    known = [(item.kind, item.p_value) for item in discrepancies if item.p_value is not None]
    missing = [f"{item.kind} ({item.reason})" for item in discrepancies if item.p_value is None]
    unlike = [(kind, p) for kind, p in known if p <= LEVEL / len(KINDS)]
    sentences = []
    if unlike:
        listed = ", ".join(f"{kind} (p = {p:.3g})" for kind, p in unlike)
        sentences.append(f"The images of {other} are unlike those of {reference} in {listed}.")
        telling = [item for item in features if abs(item.auroc - 0.5) > 0.1]
        named = [item for kind, _ in unlike for item in [one for one in telling if one.kind == kind][:_NAMED]]
        if named:
            sentences.append(f"Most of it: {'; '.join(map(_described, named))}.")
    elif known:
        sentences.append(
            f"No difference between the images of {other} and those of {reference} was found in "
            f"{', '.join(kind for kind, _ in known)} (least p = {min(p for _, p in known):.2g})."
        )
    if origin.auroc is not None:
        sentences.append(
            f"A small model tells which of them an image is from with an AUROC of {origin.auroc:.2f}."
        )
    if missing:
        sentences.append(f"Not compared: {', '.join(missing)}.")
    return " ".join(sentences)


def _described(item: FeatureShift) -> str:
    way = "higher" if item.auroc > 0.5 else "lower"
    words = _WORDS.get(item.feature, item.feature)
    return f"{way} {words} (median {item.other:.3g} against {item.reference:.3g})"
