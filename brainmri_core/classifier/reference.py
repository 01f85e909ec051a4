"""The validation images of a classifier's checkpoint, as the classifier sees them: what other images are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brainmri_core.arrays import F64, I64
from brainmri_core.classifier.inference import Inference
from brainmri_core.errors import ConfigError, IntegrityError
from brainmri_core.evaluation.calibration import probabilities
from brainmri_core.evaluation.shift import ImageSet, image_features
from brainmri_core.evaluation.tested_model import validation_of
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.inference import predict_evenly
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import follow
from brainmri_core.project.pointers import PackPointer
from brainmri_core.project.sample_table import RESIZE_COLUMNS, SPLIT_COLUMNS, read_samples
from brainmri_core.splitting.assignment import independent_units


@dataclass(frozen=True)
class Reference:
    """N validation images.

    Attributes
    ----------
    labels : numpy.ndarray
        int64 ``(N,)`` class indices.
    probabilities : numpy.ndarray
        float64 ``(N, K)``, calibrated as the classifier is.
    """

    images: ImageSet
    labels: I64
    probabilities: F64


def validation_reference(inference: Inference, layout: Layout) -> Reference | str:
    """Predict the validation images of a checkpoint, or say why that cannot be done.

    Parameters
    ----------
    inference : Inference
        The model, with the record of its training.
    layout : Layout
        The project that holds its training data, if it is still there.
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
    found = predict_evenly(
        inference.model,
        pixels,
        rows,
        meta.preprocessing,
        device=inference.device,
        batch_size=inference.batch_size,
        precision=inference.precision,
        tta=inference.mirror,
        progress=False,
    )
    size = (chosen[name].to_numpy(np.int64) for name in ("width", "height"))
    images = ImageSet(image_features(pixels[rows], *size), tuple(independent_units(chosen)), found.embeddings)
    labels = chosen["class_index"].to_numpy(np.int64)
    return Reference(images, labels, probabilities(found.logits, inference.temperature or 1.0))
