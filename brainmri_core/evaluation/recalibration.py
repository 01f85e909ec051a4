"""The expected gain of fitting the temperature on a few labelled images of another data set, to decide how many to label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from brainmri_core.arrays import I64, Floats
from brainmri_core.evaluation.bootstrap import interval
from brainmri_core.evaluation.calibration import (
    equal_width_bins,
    expected_calibration_error,
    fit_temperature,
    nll,
    probabilities,
)
from brainmri_core.evaluation.discrepancy import number_groups
from brainmri_core.evaluation.external_schema import NoRecalibration, Recalibration, Spread


def plan_recalibration(
    logits: Floats,
    labels: I64,
    groups: Sequence[str],
    sizes: Sequence[int],
    *,
    temperature: float,
    resamples: int,
    seed: int,
) -> list[Recalibration | NoRecalibration]:
    """Fit the temperature on random parts of the images, and score it on the rest of each.

    Whole groups are drawn until they hold enough images. The rest has no image of a drawn group, since images of one
    patient are alike.

    Parameters
    ----------
    logits : numpy.ndarray
        Floating ``(N, K)``.
    labels : numpy.ndarray
        int64 ``(N,)``.
    groups : sequence of str
        Independent unit of each image.
    sizes : sequence of int
        Numbers of labelled images.
    temperature : float
        The temperature in use, for comparison.
    resamples, seed : int
        Number of draws, and their seed.

    Returns
    -------
    list
        For each size a `Recalibration`, whose ``draws`` counts those with a large enough rest and whose ``nll_gain`` is the
        NLL at the temperature in use minus that at the new one; or a `NoRecalibration` with the reason.
    """
    return [
        _planned(size, list(_draws(logits, labels, groups, size, temperature, resamples, seed)), resamples)
        if len(labels) >= 2 * size
        else NoRecalibration(
            images=size, reason=f"{len(labels)} images are too few to label {size} and score the rest"
        )
        for size in sizes
    ]


def _planned(size: int, drawn: list[dict[str, float]], resamples: int) -> Recalibration | NoRecalibration:
    if len(drawn) * 2 <= resamples:
        return NoRecalibration(
            images=size, reason="a few patients or groups hold most of the images, so that too little is left"
        )
    values = {name: np.array([item[name] for item in drawn]) for name in drawn[0]}
    spreads = {
        name: Spread(mean=float(found.mean()), interval=interval(found)) for name, found in values.items()
    }
    return Recalibration(images=size, draws=len(drawn), **spreads)


def _draws(
    logits: Floats,
    labels: I64,
    groups: Sequence[str],
    size: int,
    temperature: float,
    resamples: int,
    seed: int,
) -> Iterator[dict[str, float]]:
    number = number_groups(groups)
    rng = np.random.default_rng([seed, 0xCA1, size])
    for _ in range(resamples):
        chosen, rest = labelled_part(number, size, rng)
        if len(rest) < size:
            continue
        fitted = fit_temperature(logits[chosen], labels[chosen])
        yield {
            "temperature": fitted,
            "ece": _ece(logits[rest], labels[rest], fitted),
            "nll": nll(logits[rest], labels[rest], fitted),
            "nll_gain": nll(logits[rest], labels[rest], temperature)
            - nll(logits[rest], labels[rest], fitted),
        }


def labelled_part(number: I64, size: int, rng: np.random.Generator) -> tuple[I64, I64]:
    """Draw whole groups until they hold enough images.

    Parameters
    ----------
    number : numpy.ndarray
        int64 ``(N,)``: each image's group, from 0.
    size : int
        Number of images.
    rng : numpy.random.Generator
        Source of the draw.

    Returns
    -------
    chosen, rest : numpy.ndarray
        int64: `size` images of the groups drawn, and all images of the other groups.
    """
    counts = np.bincount(number)
    order = rng.permutation(len(counts))
    before = np.zeros(len(counts), np.int64)  # images of the groups drawn before each
    before[order[1:]] = counts[order].cumsum()[:-1]
    drawn = before[number] < size
    return rng.permutation(np.flatnonzero(drawn))[:size], np.flatnonzero(~drawn)


def _ece(logits: Floats, labels: I64, temperature: float) -> float:
    shares = probabilities(logits, temperature)
    confidence = shares.max(axis=1)
    return expected_calibration_error(
        confidence, shares.argmax(axis=1) == labels, equal_width_bins(confidence)
    )
