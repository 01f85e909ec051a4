"""A classifier's predictions and features of its validation images, the reference for measuring drift.

A classifier's network without its head is an encoder, so its features are computed once and stored like those of other
encoders. For a probe this was done when it was fitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from brainmri_core.arrays import F32, F64, I64
from brainmri_core.classifier.inference import Inference
from brainmri_core.errors import ConfigError, IntegrityError
from brainmri_core.evaluation.calibration import probabilities
from brainmri_core.evaluation.shift import ImageSet, image_features
from brainmri_core.evaluation.tested_model import validation_of
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.encoder import Encoder, encoder_sha256, features_of
from brainmri_core.learning.models import head
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import StageLog
from brainmri_core.project.pointer_store import follow
from brainmri_core.project.pointers import PackPointer
from brainmri_core.project.sample_table import RESIZE_COLUMNS, SPLIT_COLUMNS, read_samples
from brainmri_core.splitting.assignment import independent_units


@dataclass(frozen=True)
class Reference:
    """N validation images of a classifier.

    Attributes
    ----------
    images : ImageSet
        Their features and groups.
    labels : numpy.ndarray
        int64 ``(N,)`` class indices.
    probabilities : numpy.ndarray
        float64 ``(N, K)``, with the classifier's calibration.
    """

    images: ImageSet
    labels: I64
    probabilities: F64


def encoder_of(inference: Inference, *, mirror: bool = True) -> Encoder:
    """Return a classifier's network as an encoder; with `mirror`, in the arithmetic that a probe's features were computed in."""
    meta = inference.meta
    return Encoder(
        inference.model,
        meta.model_name,
        meta.depths,
        True,
        meta.preprocessing,
        (meta.precision or inference.precision) if mirror else inference.precision,
        inference.device,
        encoder_sha256(inference.model),
        mirror,
    )


def validation_reference(inference: Inference, layout: Layout, log: StageLog) -> Reference | str:
    """Predict the validation images of a checkpoint.

    Parameters
    ----------
    inference : Inference
        The model.
    layout : Layout
        The project with its training data.
    log : StageLog
        Where to log.

    Returns
    -------
    Reference or str
        The reference, or the reason why there is none.
    """
    meta = inference.meta
    gone = "the images that the checkpoint was validated on are not in this project"
    if meta.pack_pointer is None:
        return gone
    try:
        pack = follow(layout, PackPointer, meta.pack_pointer)
        if pack.content_hash != meta.data_hash:
            return gone
        table = read_samples(layout.absolute(pack.samples), {**SPLIT_COLUMNS, **RESIZE_COLUMNS})
        pixels = open_pack(layout, pack)
    except (IntegrityError, ConfigError):
        return gone
    packed = table[table["row"] >= 0].sort_values("row", ignore_index=True)
    chosen = packed[validation_of(packed, meta)]
    if not len(chosen):
        return "the checkpoint has no validation images, or does not say which"
    rows = chosen["row"].to_numpy(np.int64)
    plain, _ = features_of(encoder_of(inference, mirror=False), pack, layout, log, inference.batch_size, rows)
    logits = _logits(inference, plain, pack, layout, log, rows)
    size = (chosen[name].to_numpy(np.int64) for name in ("width", "height"))
    images = ImageSet(image_features(pixels[rows], *size), tuple(independent_units(chosen)), plain)
    labels = chosen["class_index"].to_numpy(np.int64)
    return Reference(images, labels, probabilities(logits, inference.temperature or 1.0))


def _logits(
    inference: Inference, plain: F32, pack: PackPointer, layout: Layout, log: StageLog, rows: I64
) -> F32:
    """Return the logits of rows of a pack; `plain` are their features without mirror images."""
    if inference.meta.ensemble is not None:  # its features come from only one of its networks
        return inference.outputs(open_pack(layout, pack), rows).logits
    # The head is linear: the mean logits of an image and its mirror image are the logits of their mean features.
    features = plain
    if inference.mirror:
        features, _ = features_of(encoder_of(inference), pack, layout, log, inference.batch_size, rows)
    with torch.inference_mode():
        found: F32 = (
            head(inference.model)(torch.from_numpy(np.array(features)).to(inference.device)).cpu().numpy()
        )
    return found
