"""Frozen encoders: the features of every image of a pack, computed once and kept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from brainmri_core.arrays import F32
from brainmri_core.config.base import Precision
from brainmri_core.config.training import ModelConfig
from brainmri_core.errors import IntegrityError, StorageError
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.batches import iterate
from brainmri_core.learning.checkpoint import Preprocessing
from brainmri_core.learning.device import autocast, choose_device, choose_precision, seed_everything
from brainmri_core.learning.models import head, with_depths
from brainmri_core.learning.pretrained import imagenet_statistics, initial_model
from brainmri_core.project.job import Job
from brainmri_core.project.pointers import PackPointer
from brainmri_core.system.locks import exclusive
from brainmri_core.system.storage import (
    check_sha256,
    read_json,
    sha256_file,
    sha256_json,
    write_json,
)

FEATURES_NAME, RECORD_NAME = "features.npy", "record.json"
_RULES = 1  # of computing features: raised, those kept by others are computed again


@dataclass(frozen=True)
class Encoder:
    """A network whose features are used as they are.

    Attributes
    ----------
    model : torch.nn.Module
        The encoder under a head whose input is the features; the head itself is not used.
    weights_sha256 : str
        Of the names and values of all tensors but the head's.
    """

    model: nn.Module
    name: str
    depths: int
    pretrained: bool
    preprocessing: Preprocessing
    precision: Precision
    device: torch.device
    weights_sha256: str

    @property
    def width(self) -> int:
        """Length of the features."""
        return head(self.model).in_features


def frozen(
    model: nn.Module,
    config: ModelConfig,
    depths: int,
    preprocessing: Preprocessing,
    precision: Precision,
    device: torch.device,
    job: Job,
) -> Encoder:
    """Take a network as a frozen encoder, with a warning where its weights are random."""
    if not config.has_weights:
        job.log.warning(
            "frozen random features are meant for tests; set model.pretrained, weights_file or weights_package"
        )
    final = {id(tensor) for tensor in head(model).parameters()}
    digest = hashlib.sha256()
    for key, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in final:
            digest.update(key.encode())
            digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    return Encoder(
        model,
        config.name,
        depths,
        config.has_weights,
        preprocessing,
        precision,
        device,
        digest.hexdigest(),
    )


def load_encoder(
    config: ModelConfig,
    depths: int,
    *,
    image_size: int,
    precision: Literal["auto", Precision],
    seed: int,
    pack: PackPointer,
    job: Job,
) -> Encoder:
    """Return the frozen encoder that a configuration names, for the images of a pack.

    Raises
    ------
    ModelError
        If the network or its weights cannot be had, or it has not so many depths.
    """
    device = choose_device(job.env)
    seed_everything(seed, job.env)
    first = initial_model(
        config,
        num_classes=len(pack.classes),
        pack_channels=pack.channels,
        image_size=image_size,
        log=job.log,
    )
    model = with_depths(first.model, config.name, depths)
    mean, std = first.normalisation or imagenet_statistics(first.channels)
    return frozen(
        model.to(device, memory_format=torch.channels_last),  # type: ignore[call-overload]
        config,
        depths,
        preprocessing_for(pack, job, image_size=image_size, channels=first.channels, mean=mean, std=std),
        choose_precision(precision, True, device),
        device,
        job,
    )


def preprocessing_for(
    pack: PackPointer, job: Job, *, image_size: int, channels: int, mean: list[float], std: list[float]
) -> Preprocessing:
    """Return how the images of a pack become a network's input."""
    return Preprocessing(
        pack_size=pack.size,
        image_size=image_size,
        channels=channels,
        colour=pack.channels == 3,
        fit=pack.fit,
        mean=mean,
        std=std,
        gray_ranges=pack.gray_ranges,
        modality=job.entry.modality,
    )


def features_of(encoder: Encoder, pack: PackPointer, job: Job, batch_size: int) -> tuple[F32, Path]:
    """Return the features of every row of a pack: read where they were computed before, else computed and kept.

    Parameters
    ----------
    pack : PackPointer
        Its folds have the same pixels, and share the features.

    Returns
    -------
    features : numpy.ndarray
        float32 ``(N, D)``, by row of the pack: the mean of those of the image and of its mirror image.
    folder : pathlib.Path
        Where they lie, with the record of what made them.
    """
    key = _key(encoder, pack)
    folder = job.layout.features_dir(job.dataset, sha256_json(key)[:16])
    with exclusive(job.layout.lock("features", job.dataset, folder.name)):
        if folder.is_dir():
            try:
                found = read_features(folder)
                job.log.info("features computed before", images=len(found), features=found.shape[1])
                return found, folder
            except (IntegrityError, StorageError, ValueError):
                job.log.warning("kept features are damaged; they are computed again", folder=folder.name)
        computed = _compute(encoder, pack, job, batch_size)
        with job.staged(folder, replace=True) as made:
            np.save(made / FEATURES_NAME, computed)
            write_json(
                made / RECORD_NAME,
                {
                    **key,
                    "pretrained": encoder.pretrained,
                    "images": len(computed),
                    "features": computed.shape[1],
                    "features_sha256": sha256_file(made / FEATURES_NAME),
                },
            )
    return computed, folder


def read_features(folder: Path) -> F32:
    """Read features that were kept.

    Raises
    ------
    IntegrityError
        If they are not those that the record beside them was written for.
    """
    record = read_json(folder / RECORD_NAME)
    expected = record.get("features_sha256") if isinstance(record, dict) else None
    check_sha256(folder / FEATURES_NAME, str(expected), "features")
    found: F32 = np.load(folder / FEATURES_NAME, mmap_mode="r", allow_pickle=False)
    return found


def _key(encoder: Encoder, pack: PackPointer) -> dict[str, Any]:
    """Return everything that decides features."""
    return {
        "rules": _RULES,
        "model_name": encoder.name,
        "depths": encoder.depths,
        "weights_sha256": encoder.weights_sha256,
        "preprocessing": encoder.preprocessing.model_dump(mode="json"),
        "precision": encoder.precision,
        "device": encoder.device.type,
        "pack_sha256": pack.pack_sha256,
    }


def _compute(encoder: Encoder, pack: PackPointer, job: Job, batch_size: int) -> F32:
    """Run the encoder over the whole pack, every image and its mirror image."""
    pixels = open_pack(job.layout, pack)
    model = encoder.model.eval()
    seen: list[torch.Tensor] = []

    def capture(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0].float())

    result = np.zeros((len(pixels), encoder.width), np.float32)
    rows, done = np.arange(len(pixels)), 0
    hook = head(model).register_forward_pre_hook(capture)
    try:
        with (
            tqdm(total=len(rows), desc="features", unit="image", disable=None) as bar,
            torch.inference_mode(),
            autocast(encoder.device, encoder.precision),
        ):
            for batch in iterate(pixels, rows, batch_size, encoder.preprocessing, encoder.device):
                model(batch)
                model(batch.flip(-1))
                result[done : done + len(batch)] = ((seen[0] + seen[1]) / 2).cpu().numpy()
                seen.clear()
                done += len(batch)
                bar.update(len(batch))
    finally:
        hook.remove()
    return result
