"""A network whose head is a probe on its own frozen features: a finished classifier, or the start of fine-tuning."""

from __future__ import annotations

import time

import torch
from torch import nn

from brainmri_core.arrays import I64
from brainmri_core.learning.encoder import features_of, frozen
from brainmri_core.learning.models import head
from brainmri_core.learning.probe import fit_probe
from brainmri_core.learning.state import Loop
from brainmri_core.project.job import Job
from brainmri_core.project.pointers import PackPointer


def probe_head(
    loop: Loop, model: nn.Module, pack: PackPointer, job: Job, *, labels: I64, train: I64, val: I64
) -> dict[str, float | int]:
    """Fit a probe on the frozen features of a model, and copy it into the model's head.

    Parameters
    ----------
    loop : Loop
        Config, preprocessing, device and precision of the training.
    model : torch.nn.Module
        The model; its head is changed.
    pack : PackPointer
        The pack.
    job : Job
        The run.
    labels : numpy.ndarray
        int64 ``(N,)``, by row of the pack.
    train, val : numpy.ndarray
        int64 rows of the pack.

    Returns
    -------
    dict
        A record like that of an epoch. The scores are for the mean features of each image and its mirror image.
    """
    config, start = loop.config, time.monotonic()
    encoder = frozen(
        model, config.model, config.probe.depths, loop.preprocessing, loop.precision, loop.device, job
    )
    features, _ = features_of(encoder, pack, job.layout, job.log, config.data.batch_size)
    balanced = config.optim.class_weights or config.optim.balanced_sampling
    fitted = fit_probe(features, labels, train, val, classes=len(pack.classes), balanced=balanced)
    final = head(model)
    with torch.no_grad():
        final.weight.copy_(torch.from_numpy(fitted.weight))
        final.bias.copy_(torch.from_numpy(fitted.bias))
    seconds = time.monotonic() - start
    job.log.info(
        "probe fitted",
        features=features.shape[1],
        strength=fitted.strength,
        val_macro_f1=fitted.val_macro_f1,
        seconds=seconds,
    )
    return {
        "epoch": 1,
        "train_loss": fitted.train_loss,
        "val_loss": fitted.val_loss,
        "val_macro_f1": fitted.val_macro_f1,
        "val_balanced_accuracy": fitted.val_balanced_accuracy,
        "image_size": loop.preprocessing.image_size,
        "learning_rate": 0.0,
        "images_per_s": pack.n_images / max(seconds, 1e-9),
        "seconds": seconds,
    }
