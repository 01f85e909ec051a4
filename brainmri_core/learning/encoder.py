"""Frozen encoders: the features of every image of a pack, computed once and stored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from brainmri_core.arrays import F32, I64, U8
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
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import StageLog
from brainmri_core.project.pointers import PackPointer
from brainmri_core.system.checksums import check_sha256, sha256_file, sha256_json
from brainmri_core.system.json_files import read_json, write_json
from brainmri_core.system.locks import exclusive
from brainmri_core.system.storage import remove_stale, staging_folder

FEATURES_NAME, RECORD_NAME = "features.npy", "record.json"
_RULES = 1  # version of the computation: when it is raised, stored features are computed again


@dataclass(frozen=True)
class Encoder:
    """A frozen network that computes features.

    Attributes
    ----------
    model : torch.nn.Module
        The network with its head. The input of the head is the features; the head itself is not used.
    name : str
        Architecture.
    depths : int
        Number of feature maps whose means are the features; see `pooled`.
    pretrained : bool
        Whether its weights were trained.
    weights_sha256 : str
        SHA-256 of the names and values of all tensors except the head's.
    mirror : bool
        Whether the features are the mean of those of an image and of its mirror image.
    """

    model: nn.Module
    name: str
    depths: int
    pretrained: bool
    preprocessing: Preprocessing
    precision: Precision
    device: torch.device
    weights_sha256: str
    mirror: bool = True

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
    """Make an encoder of a network; log a warning where its weights are random."""
    if not config.has_weights:
        job.log.warning(
            "frozen random features are meant for tests; set model.pretrained, weights_file or weights_package"
        )
    return Encoder(
        model,
        config.name,
        depths,
        config.has_weights,
        preprocessing,
        precision,
        device,
        encoder_sha256(model),
    )


def encoder_sha256(model: nn.Module) -> str:
    """Return the SHA-256 of the names and values of all tensors of a network except its head's."""
    final = {id(tensor) for tensor in head(model).parameters()}
    digest = hashlib.sha256()
    for key, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in final:
            digest.update(key.encode())
            digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    return digest.hexdigest()


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

    Parameters
    ----------
    config : ModelConfig
        Name and weights of the network.
    depths : int
        Number of depths of the network whose features are joined.
    image_size : int
        Side of the input images in pixels.
    precision : str
        ``auto``, or the precision of the forward passes.
    seed : int
        Seed of random weights.
    pack : PackPointer
        The packed images.
    job : Job
        The run.

    Raises
    ------
    ModelError
        If the network or its weights are not available, or the network has fewer depths.
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
    """Return the preprocessing that turns the images of a pack into a network's input.

    Parameters
    ----------
    pack : PackPointer
        The packed images.
    job : Job
        The run, whose catalogue entry gives the modality.
    image_size : int
        Side of the input images in pixels.
    channels : int
        Input channels of the network.
    mean, std : list of float
        Normalisation per channel, for pixels in [0, 1].
    """
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


def features_of(
    encoder: Encoder,
    pack: PackPointer,
    layout: Layout,
    log: StageLog,
    batch_size: int,
    rows: I64 | None = None,
) -> tuple[F32, Path]:
    """Return the features of rows of a pack: read if they were computed before, else computed and stored.

    Parameters
    ----------
    encoder : Encoder
        The network.
    pack : PackPointer
        The pack. Its fold packs have the same pixels, and share the features.
    layout, log
        The project, and where to log.
    batch_size : int
        Images per forward pass.
    rows : numpy.ndarray or None
        int64 ``(N,)``; None means all rows. Where the features of all rows are stored, these are taken.

    Returns
    -------
    features : numpy.ndarray
        float32 ``(N, D)``, in the order of the rows.
    folder : pathlib.Path
        Folder of the features and of the record of their encoder.
    """
    key = _key(encoder, pack)
    folder = _folder(key, pack, layout)
    if rows is not None:
        whole = kept_features(encoder, pack, layout)
        if whole is not None:
            return whole[rows], folder
        key["rows"] = sha256_json(rows.tolist())
        folder = _folder(key, pack, layout)
    with exclusive(layout.lock("features", pack.dataset, folder.name)):
        if folder.is_dir():
            found = _intact(folder)
            if found is not None:
                log.info("features computed before", images=len(found), features=found.shape[1])
                return found, folder
            log.warning("kept features are damaged; they are computed again", folder=folder.name)
        pixels = open_pack(layout, pack)
        computed = encode(encoder, pixels, np.arange(len(pixels)) if rows is None else rows, batch_size)
        remove_stale(folder.parent)
        with staging_folder(folder, replace=True) as made:
            np.save(made / FEATURES_NAME, computed)
            write_json(
                made / RECORD_NAME,
                {
                    **key,
                    "images": len(computed),
                    "features": computed.shape[1],
                    "features_sha256": sha256_file(made / FEATURES_NAME),
                },
            )
    return computed, folder


def kept_features(encoder: Encoder, pack: PackPointer, layout: Layout) -> F32 | None:
    """Return the features of every row of a pack if they were computed before, None otherwise."""
    return _intact(_folder(_key(encoder, pack), pack, layout))


def _folder(key: dict[str, Any], pack: PackPointer, layout: Layout) -> Path:
    return layout.absolute(layout.relative(layout.features_dir(pack.dataset, sha256_json(key)[:16])))


def _intact(folder: Path) -> F32 | None:
    try:
        return read_features(folder)
    except (IntegrityError, StorageError, ValueError):
        return None


def read_features(folder: Path) -> F32:
    """Read stored features.

    Returns
    -------
    numpy.ndarray
        Read-only memory map, float32 ``(N, D)``.

    Raises
    ------
    IntegrityError
        If they are missing or do not match the record beside them.
    """
    record = read_json(folder / RECORD_NAME)
    expected = record.get("features_sha256") if isinstance(record, dict) else None
    check_sha256(folder / FEATURES_NAME, str(expected), "features")
    found: F32 = np.load(folder / FEATURES_NAME, mmap_mode="r", allow_pickle=False)
    return found


def _key(encoder: Encoder, pack: PackPointer) -> dict[str, Any]:
    """Return everything that the features depend on."""
    key = {
        "rules": _RULES,
        "model_name": encoder.name,
        "depths": encoder.depths,
        "weights_sha256": encoder.weights_sha256,
        "preprocessing": encoder.preprocessing.model_dump(mode="json"),
        "precision": encoder.precision,
        "device": encoder.device.type,
        "pack_sha256": pack.pack_sha256,
    }
    return key if encoder.mirror else {**key, "mirror": False}


def encode(encoder: Encoder, pixels: U8, rows: I64, batch_size: int, *, progress: bool = True) -> F32:
    """Compute the features of images.

    Parameters
    ----------
    encoder : Encoder
        The network.
    pixels : numpy.ndarray
        uint8 ``(M, P, P)`` or ``(M, P, P, 3)``, such as a pack.
    rows : numpy.ndarray
        int64 ``(N,)``: rows of `pixels`.
    batch_size : int
        Images per forward pass.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    numpy.ndarray
        float32 ``(N, D)``.
    """
    model = encoder.model.eval()
    seen: list[torch.Tensor] = []

    def capture(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0].float())

    result, done = np.zeros((len(rows), encoder.width), np.float32), 0
    hook = head(model).register_forward_pre_hook(capture)
    try:
        with (
            tqdm(total=len(rows), desc="features", unit="image", disable=None if progress else True) as bar,
            torch.inference_mode(),
            autocast(encoder.device, encoder.precision),
        ):
            for batch in iterate(pixels, rows, batch_size, encoder.preprocessing, encoder.device):
                model(batch)
                if encoder.mirror:
                    model(batch.flip(-1))
                result[done : done + len(batch)] = (sum(seen) / len(seen)).cpu().numpy()  # type: ignore[union-attr]
                seen.clear()
                done += len(batch)
                bar.update(len(batch))
    finally:
        hook.remove()
    return result
