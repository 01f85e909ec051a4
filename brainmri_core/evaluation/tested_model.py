"""What an evaluation measures: a model, and the images that it is evaluated on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from brainmri_core.arrays import I64, U8, Mask
from brainmri_core.config.base import Precision
from brainmri_core.config.evaluation import EvaluateConfig
from brainmri_core.errors import ConfigError, DataError, IntegrityError, ModelError
from brainmri_core.evaluation.seen_before import seen_in_training
from brainmri_core.images.pack import check_pack, open_pack
from brainmri_core.learning.checkpoint import CheckpointMeta, Preprocessing, load_model
from brainmri_core.learning.device import choose_device, choose_precision
from brainmri_core.learning.inference import Predictions, predict_evenly
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import follow, history
from brainmri_core.project.pointers import CheckpointPointer, FoldPackPointer, PackPointer
from brainmri_core.project.sample_table import RESIZE_COLUMNS, SPLIT_COLUMNS, read_samples
from brainmri_core.splitting.assignment import validation_mask
from brainmri_core.system.checksums import check_sha256


@dataclass(frozen=True)
class TestedModel:
    """A model and the images that it is evaluated on.

    Attributes
    ----------
    weights : pathlib.Path
        The checkpoint's file.
    pixels : numpy.ndarray
        The pack, uint8 ``(N, P, P)`` or ``(N, P, P, 3)``.
    samples : pandas.DataFrame
        The images to predict, in pack order; ``split`` is ``test`` or ``validation``.
    seen_in_training : int
        Number of test images that the checkpoint was trained on or selected by, or whose patient it was; 0 on its own data.
    """

    model: nn.Module
    meta: CheckpointMeta
    weights: Path
    device: torch.device
    precision: Precision
    batch_size: int
    mirror: bool
    pixels: U8
    samples: pd.DataFrame
    seen_in_training: int

    @property
    def classes(self) -> list[str]:
        """Class names by index."""
        return self.meta.classes

    @property
    def inference(self) -> str:
        """Arithmetic and test-time augmentation; two models are compared only if these are the same."""
        return f"{self.precision}, with mirror images" if self.mirror else self.precision

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the model's input."""
        return self.meta.preprocessing


def load_tested_model(
    config: EvaluateConfig, checkpoint: CheckpointPointer | None, pack: PackPointer, job: Job
) -> TestedModel:
    """Load a checkpoint and choose the rows of a pack to predict.

    Raises
    ------
    ConfigError
        If neither a checkpoint pointer nor ``evaluate.model.weights_path`` is given.
    ModelError
        If the checkpoint is missing, damaged or foreign, or not what the configuration asks for.
    DataError
        If the classes of model and data differ, or the test split is empty.
    """
    layout = job.layout
    weights = _weights(config, checkpoint, job)
    check_pack(layout, pack)
    device = choose_device(job.env)
    model, meta = load_model(weights, device)
    _check_fit(config, meta, pack, weights)
    table = read_samples(layout.absolute(pack.samples), {**SPLIT_COLUMNS, **RESIZE_COLUMNS})
    packed = table[table["row"] >= 0].sort_values("row", ignore_index=True)
    test = (packed["split"] == "test").to_numpy()
    if not test.any():
        raise DataError(
            f"The test split of {job.dataset} is empty; raise split.test_frac, or check split.strategy and its folders."
        )
    own = meta.data_hash == pack.content_hash
    validation = validation_of(packed, meta) if own else np.zeros(len(packed), np.bool_)
    if not own:
        job.log.warning(
            "other data than the model was trained on",
            trained_on=meta.data_hash[:12],
            evaluated_on=pack.content_hash[:12],
        )
    trained = meta.preprocessing.gray_ranges
    if any(pack.gray_ranges.get(depth, limits) != limits for depth, limits in trained.items()):
        job.log.warning(
            "values of more than 8 bits have another gray range than in training; set resize.gray_ranges to the model's",
            model=trained,
            pack=pack.gray_ranges,
        )
    seen = 0 if own else seen_in_training(packed[test], pack, meta, job)
    chosen = packed[test | validation].reset_index(drop=True)
    chosen["split"] = np.where(chosen["split"] == "test", "test", "validation")
    return TestedModel(
        model=model,
        meta=meta,
        weights=weights,
        device=device,
        precision=choose_precision(config.precision, True, device),
        batch_size=config.data.batch_size,
        mirror=config.mirror,
        pixels=open_pack(layout, pack),
        samples=chosen,
        seen_in_training=seen,
    )


def forward(tested_model: TestedModel) -> Predictions:
    """Predict the images, with embeddings."""
    return predict_rows(tested_model, tested_model.samples["row"].to_numpy(np.int64))


def predict_rows(tested_model: TestedModel, rows: I64) -> Predictions:
    """Predict rows of the pack; the same image always gets the same bits."""
    return predict_evenly(
        tested_model.model,
        tested_model.pixels,
        rows,
        tested_model.preprocessing,
        device=tested_model.device,
        batch_size=tested_model.batch_size,
        precision=tested_model.precision,
        tta=tested_model.mirror,
    )


def _weights(config: EvaluateConfig, checkpoint: CheckpointPointer | None, job: Job) -> Path:
    if checkpoint is not None:
        path = job.layout.absolute(checkpoint.checkpoint)
        check_sha256(path, checkpoint.checkpoint_sha256, "checkpoint")
        return path
    if config.model.weights_path is None:
        raise ConfigError(
            "There is no checkpoint to evaluate; train a model or set evaluate.model.weights_path to a file."
        )
    return job.layout.given(config.model.weights_path)


def _check_fit(config: EvaluateConfig, meta: CheckpointMeta, pack: PackPointer, weights: Path) -> None:
    wanted, size = config.model.name, config.data.image_size
    if wanted is not None and wanted != meta.model_name:
        raise ModelError(
            f"The checkpoint {weights} is a {meta.model_name}, but evaluate.model.name is {wanted!r}; correct one of them."
        )
    if size is not None and size != meta.preprocessing.image_size:
        raise ModelError(
            f"The checkpoint {weights} sees images of {meta.preprocessing.image_size} px, but evaluate.data.image_size is "
            f"{size}; leave it empty to take the checkpoint's."
        )
    if meta.classes != pack.classes:
        raise DataError(
            f"The checkpoint {weights} knows the classes {', '.join(meta.classes)}, but the data has "
            f"{', '.join(pack.classes)}, in this order; evaluate it on data with its own classes."
        )
    found = (pack.size, pack.fit, pack.channels == 3)
    expected = (meta.preprocessing.pack_size, meta.preprocessing.fit, meta.preprocessing.colour)
    if found != expected:
        raise DataError(
            f"The checkpoint {weights} was trained on images fitted to {_described(*expected)}, but the pack holds "
            f"{_described(*found)}; run resize with the size, fit and color it was trained with."
        )


def _described(size: int, fit: str, colour: bool) -> str:
    return f"{size} px ({fit}, {'colour' if colour else 'gray'})"


def validation_of(packed: pd.DataFrame, meta: CheckpointMeta) -> Mask:
    """Find the images that selected a checkpoint, by repeating the keyed choice of its training.

    For a fold ensemble these are the images that no member was trained on: each was in a member's fold, or selected it.

    Parameters
    ----------
    packed : pandas.DataFrame
        The packed images of the checkpoint's own pack, in pack order.
    meta : CheckpointMeta
        The checkpoint's metadata.

    Returns
    -------
    numpy.ndarray
        bool ``(N,)``; all False if the metadata do not tell how it was trained.
    """
    try:
        data = meta.train_config["data"]
        seed = data["seed"] if data.get("val_seed") is None else data["val_seed"]
        frac, seed = float(data["val_frac"]), int(seed)
    except (KeyError, TypeError, ValueError):
        return np.zeros(len(packed), np.bool_)
    if meta.ensemble is None:
        return validation_mask(packed, frac, seed)
    training: Mask = (packed["split"] == "train").to_numpy(np.bool_)
    found = training
    for member in meta.ensemble.members:
        trained: Mask = training & (packed["fold"] != member.fold).to_numpy(np.bool_)
        side = packed.assign(split=np.where(trained, "train", "test"))
        found = found & (~trained | validation_mask(side, frac, seed))
    return found


def packs_trained_on(
    meta: CheckpointMeta, layout: Layout, stored: str | None = None
) -> Iterator[PackPointer]:
    """Yield the pack that a checkpoint was trained on, then other packs with the same content, newest first.

    The first is that of the pointer `stored`, else the one that the metadata name, if it still exists.
    """
    stored = stored or meta.pack_pointer
    named: list[PackPointer] = []
    if stored is not None:
        with contextlib.suppress(ConfigError, IntegrityError):
            named = [follow(layout, PackPointer, stored)]
    others = (history(layout, kind, meta.dataset) for kind in (PackPointer, FoldPackPointer))
    for pack in chain(named, *others):
        if pack.content_hash == meta.data_hash:
            yield pack
