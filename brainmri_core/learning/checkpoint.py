"""Checkpoints: weights together with everything needed to use them, loaded without running code from the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from brainmri_core.config.base import Precision
from brainmri_core.errors import ModelError
from brainmri_core.learning.models import build_model
from brainmri_core.storage import atomic_file

SCHEMA_VERSION = 1


class Preprocessing(BaseModel):
    """How an image becomes the model's input.

    Attributes
    ----------
    pack_size : int
        Side in pixels images are fitted to first.
    image_size : int
        Side in pixels the model sees.
    channels : int
        Channels the model sees; a gray image is repeated.
    colour : bool
        Whether images are decoded in colour.
    mean, std : list of float
        Of the training pixels, scaled to [0, 1], per channel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pack_size: int
    image_size: int
    channels: int
    colour: bool
    fit: Literal["letterbox", "stretch"]
    mean: list[float]
    std: list[float]


class CheckpointMeta(BaseModel):
    """What a checkpoint knows about itself."""

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
    code: dict[str, Any] = Field(default_factory=dict)


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
                raise error.__context__ from None  # torch fails again while it closes its archive, and hides the cause
            raise


def save_checkpoint(path: Path, state_dict: Mapping[str, torch.Tensor], meta: CheckpointMeta) -> None:
    """Write a checkpoint atomically; the previous file survives a failure."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    save_tensors(path, {"meta": meta.model_dump(mode="json"), "model": weights})


def save_safetensors(path: Path, state_dict: Mapping[str, torch.Tensor], meta: CheckpointMeta) -> None:
    """Write weights as safetensors, the record as JSON under ``meta`` in the header."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    with atomic_file(path) as handle:
        handle.write(safetensors.torch.save(weights, {"meta": meta.model_dump_json()}))


def load_checkpoint(path: Path) -> tuple[CheckpointMeta, dict[str, torch.Tensor]]:
    """Read a checkpoint.

    Raises
    ------
    ModelError
        If the file is missing, damaged, carries anything but tensors and plain values, or lacks this project's record.
    """
    if not path.is_file():
        raise ModelError(f"The checkpoint {path} does not exist; train a model or name another file.")
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - unpicklers raise anything on hostile bytes; all of it means: refuse
        raise ModelError(
            f"The checkpoint {path} cannot be read safely ({type(error).__name__}); it is not used."
        ) from None
    try:
        return CheckpointMeta.model_validate(value["meta"]), dict(value["model"])
    except (KeyError, TypeError, ValidationError):
        raise ModelError(
            f"The checkpoint {path} carries no record of its model, classes and preprocessing; "
            "use one that this project trained."
        ) from None


def load_model(path: Path, device: torch.device) -> tuple[nn.Module, CheckpointMeta]:
    """Load a checkpoint's model in evaluation mode, channels-last.

    Raises
    ------
    ModelError
        If the weights do not fit the recorded architecture.
    """
    meta, weights = load_checkpoint(path)
    model = build_model(
        meta.model_name, num_classes=len(meta.classes), in_channels=meta.preprocessing.channels
    )
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise ModelError(
            f"The weights in {path} do not fit {meta.model_name} with {len(meta.classes)} classes; use the right file."
        ) from None
    return model.to(device, memory_format=torch.channels_last).eval(), meta  # type: ignore[call-overload]
