"""Schedules of learning rate and image size as pure functions of the step, so that resuming needs no scheduler state."""

from __future__ import annotations

import math

from brainmri_core.config.training import OptimConfig

_RISE = 0.3
_FIRST = 1 / 25
_LAST = 1e-4
_GROWTH = 0.75
_SIDE_STEP = 16


def learning_rate(config: OptimConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Return the learning rate of an optimiser step.

    Parameters
    ----------
    config : OptimConfig
        Peak rate and schedule: ``step`` (StepLR by epochs), ``cosine`` with linear warm-up, or ``one_cycle`` (Smith and
        Topin, Super-convergence, 2018: cosine up over 30% of the steps, cosine down to nearly zero).
    step : int
        Index of the step, from 0.
    steps_per_epoch, epochs : int
        Length of the training.
    """
    total = max(1, steps_per_epoch * epochs)
    if config.schedule == "step":
        return config.lr * config.gamma ** (step // steps_per_epoch // config.step_size)
    if config.schedule == "cosine":
        warm = config.warmup_epochs * steps_per_epoch
        if step < warm:
            return config.lr * (step + 1) / (warm + 1)
        return config.lr * _cosine(1.0, 0.0, (step - warm) / max(1.0, total - warm))
    rise = max(1.0, _RISE * total)
    if step < rise:
        return config.lr * _cosine(_FIRST, 1.0, step / rise)
    return config.lr * _cosine(1.0, _LAST, (step - rise) / max(1.0, total - rise))


def training_side(start: int | None, full: int, epoch: int, epochs: int) -> int:
    """Return the side in pixels of the training images of an epoch, counted from 0.

    Progressive resizing (Tan and Le, EfficientNetV2, ICML 2021): the side grows from `start` in steps of 16 pixels to
    `full`, which it has in the last quarter of the epochs, and in any case in the last epoch. Without `start` it is always
    `full`.
    """
    share = epoch / (_GROWTH * epochs)
    if start is None or share >= 1 or epoch == epochs - 1:
        return full
    return min(full, start + _SIDE_STEP * round((full - start) * share / _SIDE_STEP))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2
