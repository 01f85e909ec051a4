"""The model that a training starts from: random, with torchvision's weights, or with those of a file."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torchvision
from torch import nn

from brainmri_core.config.training import ModelConfig
from brainmri_core.errors import ModelError
from brainmri_core.escaping import printable
from brainmri_core.learning.models import build_model, check_name, head
from brainmri_core.learning.weights import Match, match, misfit, read_weights, shown
from brainmri_core.project.logs import StageLog

_IMAGENET_CLASSES = 1000
_DOWNLOAD_TIMEOUT_S = 30.0


def initial_model(
    config: ModelConfig, *, num_classes: int, pack_channels: int, log: StageLog
) -> tuple[nn.Module, int, bool]:
    """Build the model training starts from.

    Returns
    -------
    model : torch.nn.Module
    in_channels : int
        3 where pretrained weights want colour, else the pack's.
    pretrained : bool
        Whether weights were loaded.

    Raises
    ------
    ModelError
        If the weights cannot be had or do not fit.
    """
    check_name(config.name)
    weights: Mapping[str, torch.Tensor]
    if config.weights_file is not None:
        weights = read_weights(Path(config.weights_file).expanduser())
        source = f"the weights in {config.weights_file}"
    elif config.pretrained:
        weights = _published(config.name)
        source = "torchvision's weights"
    else:
        model = build_model(config.name, num_classes=num_classes, in_channels=pack_channels)
        return model, pack_channels, False
    found = match(weights, config.name)
    if not found.fits:
        raise misfit(weights, found, source, config.name)
    channels = 3 if found.stem is None else int(found.stem.shape[1])
    model = build_model(config.name, num_classes=num_classes, in_channels=channels)
    kept = _load(model, found, source)
    _tell(log, found, source, kept)
    return model, channels, True


def _published(name: str) -> Mapping[str, torch.Tensor]:
    try:
        with _timeout(_DOWNLOAD_TIMEOUT_S):
            enum = torchvision.models.get_model_weights(name)
            weights: Mapping[str, torch.Tensor] = enum.DEFAULT.get_state_dict(progress=False, check_hash=True)
            return weights
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"The pretrained weights of {name} cannot be downloaded ({type(error).__name__}); give "
            "train.model.weights_file, or set train.model.pretrained to false to start from scratch."
        ) from None


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Bound how long a download may be silent: a firewall that drops packets would hang it for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _load(model: nn.Module, found: Match, source: str) -> bool:
    """Load a fitting match, and its head where it is for the same classes; say whether the head was kept.

    Raises
    ------
    ModelError
        If the head is for another number of classes, other than ImageNet's: such a file is easily the wrong one.
    """
    final = head(model)
    prefix = next(path for path, module in model.named_modules() if module is final)
    wanted = {f"{prefix}.{key}": value.shape for key, value in final.state_dict().items()}
    weight = found.head.get(f"{prefix}.weight")
    classes = _IMAGENET_CLASSES if weight is None else len(weight)
    if classes not in (final.out_features, _IMAGENET_CLASSES):
        raise ModelError(
            f"{source[0].upper()}{source[1:]} are for {classes} classes and this data has {final.out_features}; use "
            f"weights for the same classes, or remove the head ({prefix}.weight, {prefix}.bias) to keep the rest."
        )
    kept = {key: value.shape for key, value in found.head.items()} == wanted
    model.load_state_dict({**found.body, **(found.head if kept else {})}, strict=False)
    return kept


def _tell(log: StageLog, found: Match, source: str, kept: bool) -> None:
    """Say what of a file is used, and what is not."""
    log.info(
        "weights loaded",
        source=source,
        tensors=len(found.body),
        under=printable(found.prefix) or "their own names",
        head="the file's" if kept else "fresh",
    )
    if found.left_out:
        log.warning(
            f"{source[0].upper()}{source[1:]} have a head of another name; it is left out: {shown(found.left_out)}."
        )
    if found.also:
        log.info(
            "other weights of the same names are in the file",
            used=printable(found.prefix),
            others=shown(found.also),
        )
