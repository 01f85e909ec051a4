"""Checkpoints: weights and everything needed to use them, loaded without running code from the file."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from brainmri_core.config.base import Precision
from brainmri_core.errors import ModelError
from brainmri_core.learning.ensemble import Ensemble, Member
from brainmri_core.learning.models import build_model
from brainmri_core.learning.tensor_file import is_safetensors, read_tensor_file
from brainmri_core.system.checksums import sha256_file
from brainmri_core.system.storage import atomic_file

SCHEMA_VERSION = 1
_TWIN = "checkpoint_sha256"


class Preprocessing(BaseModel):
    """How an image becomes the model's input.

    Attributes
    ----------
    pack_size : int
        Side of the pack's images in pixels, to which an image is fitted first.
    image_size : int
        Side of the model's input in pixels.
    channels : int
        Channels of the model's input; a gray image is repeated.
    colour : bool
        Whether images are decoded in colour.
    fit : str
        How images are fitted to the square: ``letterbox`` or ``stretch``.
    mean, std : list of float
        Of the training pixels, scaled to [0, 1], per channel.
    gray_ranges : dict
        Depth (``16-bit``, ``float`` ...) to the values of black and white, for files that declare none. Empty where the
        training images had no such files, or an older version prepared them.
    modality : str
        Modality that the model accepts: MR, or any where the catalogue accepted others in the training data.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pack_size: int
    image_size: int
    channels: int
    colour: bool
    fit: Literal["letterbox", "stretch"]
    mean: list[float]
    std: list[float]
    gray_ranges: dict[str, tuple[float, float]] = Field(default_factory=dict)
    modality: Literal["MR", "any"] = "MR"


class MemberRecord(BaseModel):
    """The origin of one network of an ensemble.

    Attributes
    ----------
    fold : int
        The fold that the network was not trained on.
    checkpoint_pointer : str
        Pointer of its checkpoint.
    checkpoint_sha256 : str
        SHA-256 of that checkpoint's file.
    temperature : float or None
        Temperature fitted on its predictions of that fold; None where the fold has too few images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fold: int = Field(ge=0)
    checkpoint_pointer: str
    checkpoint_sha256: str
    temperature: float | None


class EnsembleRecord(BaseModel):
    """The networks of an ensemble, and the cost of using them.

    Attributes
    ----------
    members : list of MemberRecord
        The networks.
    parameters, weights_bytes : int
        Of all networks together.
    forward_passes : int
        Forward passes per image, one for each network.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    members: list[MemberRecord] = Field(min_length=2)
    parameters: int
    weights_bytes: int
    forward_passes: int


class CheckpointMeta(BaseModel):
    """The metadata of a checkpoint.

    Attributes
    ----------
    depths : int
        Number of the network's feature maps that its head sees (see `pooled`); 1 for the architecture as published.
    averaged_epochs : int
        Number of last epochs whose weights are averaged; 0 for the weights of one epoch.
    ensemble : EnsembleRecord or None
        The networks of an ensemble, each a `model_name`; None for a single network.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    model_name: str
    classes: list[str] = Field(min_length=2)
    preprocessing: Preprocessing
    train_config: dict[str, Any]
    env_config: dict[str, Any]
    data_hash: str
    pack_pointer: str | None
    dataset: str
    run_id: str
    epoch: int
    val_macro_f1: float
    precision: Precision | None = None
    depths: int = 1
    code: dict[str, Any] = Field(default_factory=dict)
    averaged_epochs: int = 0
    ensemble: EnsembleRecord | None = None

    @property
    def model(self) -> str:
        """The model in words: its architecture, and how many networks there are if it is an ensemble."""
        return (
            f"{self.model_name} (ensemble of {len(self.ensemble.members)})"
            if self.ensemble
            else self.model_name
        )


def save_tensors(path: Path, value: Any) -> None:
    """Write tensors and plain values atomically, in torch's format.

    Raises
    ------
    StorageError
        If the disk is full or fails; the previous file stays.
    """
    with atomic_file(path) as handle:
        try:
            torch.save(value, handle)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None  # torch's second error, from closing its archive, hides the cause
            raise


def save_checkpoint(path: Path, state_dict: Mapping[str, torch.Tensor], meta: CheckpointMeta) -> None:
    """Write a checkpoint atomically; the previous file stays on an error.

    Raises
    ------
    StorageError
        If the disk is full or fails.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    save_tensors(path, {"meta": meta.model_dump(mode="json"), "model": weights})


def save_safetensors(
    path: Path, state_dict: Mapping[str, torch.Tensor], meta: CheckpointMeta, twin_sha256: str
) -> None:
    """Write weights as safetensors; the header holds the metadata, and the SHA-256 of the checkpoint in torch's format."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    with atomic_file(path) as handle:
        handle.write(safetensors.torch.save(weights, {"meta": meta.model_dump_json(), _TWIN: twin_sha256}))


def known_hashes(path: Path) -> set[str]:
    """Return the hashes that may identify a checkpoint in an evaluation: its own, and that of its `twin_sha256`."""
    return {sha256_file(path), twin_sha256(path)}


def twin_sha256(path: Path) -> str:
    """Return the SHA-256 of the torch checkpoint that a safetensors file was made from; of other files, their own."""
    with contextlib.suppress(safetensors.SafetensorError, KeyError):
        if is_safetensors(path):
            with safetensors.safe_open(path, "pt") as file:
                return str((file.metadata() or {})[_TWIN])
    return sha256_file(path)


def load_checkpoint(path: Path) -> tuple[CheckpointMeta, dict[str, torch.Tensor]]:
    """Read a checkpoint, in torch's format or as safetensors.

    Raises
    ------
    ModelError
        If the file is missing, damaged, holds anything but tensors and plain values, or lacks the metadata.
    """
    if not path.is_file():
        raise ModelError(f"The checkpoint {path} does not exist; train a model or name another file.")
    value, notes = read_tensor_file(path, "checkpoint", "it is not used")
    try:
        if notes:
            return CheckpointMeta.model_validate_json(notes["meta"]), value
        return CheckpointMeta.model_validate(value["meta"]), dict(value["model"])
    except (KeyError, TypeError, ValidationError):
        raise ModelError(
            f"The checkpoint {path} carries no record of its model, classes and preprocessing; use one that this "
            "project trained or exported as safetensors, or start a training from it with train.model.weights_file."
        ) from None


def load_model(path: Path, device: torch.device) -> tuple[nn.Module, CheckpointMeta]:
    """Load a checkpoint's model in evaluation mode, channels-last.

    Raises
    ------
    ModelError
        As in `load_checkpoint`, or if the weights do not fit the recorded architecture.
    """
    meta, weights = load_checkpoint(path)
    model = _untrained(meta)
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise ModelError(
            f"The weights in {path} do not fit {meta.model} with {len(meta.classes)} classes; use the right file."
        ) from None
    return model.to(device, memory_format=torch.channels_last).eval(), meta  # type: ignore[call-overload]


def _untrained(meta: CheckpointMeta) -> nn.Module:
    """Build the model that the metadata describe, with random weights."""

    def network() -> nn.Module:
        return build_model(
            meta.model_name,
            num_classes=len(meta.classes),
            in_channels=meta.preprocessing.channels,
            image_size=meta.preprocessing.image_size,
            depths=meta.depths,
        )

    if meta.ensemble is None:
        return network()
    how = meta.preprocessing
    return Ensemble([Member(network(), how.mean, how.std) for _ in meta.ensemble.members])
