"""Models by name (torchvision's, or ``timm/<name>``), for any number of classes, gray or colour."""

from __future__ import annotations

import difflib

import torchvision
from torch import nn

from brainmri_core.errors import ModelError
from brainmri_core.learning import timm_models
from brainmri_core.learning.ensemble import networks_of
from brainmri_core.learning.pooled import SEQUENCES, PooledClassifier, depth_layers

# The layer of the last feature map before pooling, which Grad-CAM uses, by family.
_FEATURE_LAYERS = {
    "resnet": "layer4",
    "resnext": "layer4",
    "wide_resnet": "layer4",
    "efficientnet": "features",
    "convnext": "features",
    "densenet": "features",
    "mobilenet": "features",
    "regnet": "trunk_output",
}
MODEL_NAMES: tuple[str, ...] = tuple(
    name
    for name in torchvision.models.list_models(module=torchvision.models)
    if any(name.startswith(family) for family in _FEATURE_LAYERS)
)


def check_name(name: str) -> None:
    """Raise ModelError with the nearest names if an architecture is unknown."""
    if timm_models.is_timm(name):
        timm_models.check_name(name)
        return
    if name not in MODEL_NAMES:
        near = difflib.get_close_matches(name, MODEL_NAMES, n=3, cutoff=0.4) or ["resnet18"]
        raise ModelError(
            f"The model {name!r} is not known; did you mean {' or '.join(near)}? (train.model.name)"
        )


def build_model(
    name: str, *, num_classes: int, in_channels: int, image_size: int | None = None, depths: int = 1
) -> nn.Module:
    """Build a model with random weights.

    Parameters
    ----------
    name : str
        One of `MODEL_NAMES`, or ``timm/`` and one of timm's names.
    num_classes : int
        Number of logits.
    in_channels : int
        1 for gray input, 3 for colour; the first convolution is replaced to fit.
    image_size : int, optional
        Side in pixels, for models whose parameters depend on it; the default is that of their published weights.
    depths : int
        Number of feature maps that the head sees (see `pooled`); 1 for the architecture as published.

    Raises
    ------
    ModelError
        If the name is unknown, the model does not take images of this size, or it has fewer depths.
    """
    check_name(name)
    if timm_models.is_timm(name):
        model = timm_models.create(
            name, num_classes=num_classes, in_channels=in_channels, image_size=image_size
        )
    else:
        model = _of_torchvision(name, num_classes, in_channels)
    return with_depths(model, name, depths)


def _of_torchvision(name: str, num_classes: int, in_channels: int) -> nn.Module:
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    if in_channels != 3:
        path, first = next(
            (path, module) for path, module in model.named_modules() if isinstance(module, nn.Conv2d)
        )
        fresh = nn.Conv2d(
            in_channels,
            first.out_channels,
            first.kernel_size,  # type: ignore[arg-type]
            first.stride,  # type: ignore[arg-type]
            first.padding,  # type: ignore[arg-type]
            bias=first.bias is not None,
        )
        nn.init.kaiming_normal_(fresh.weight, mode="fan_out", nonlinearity="relu")
        parent, _, attribute = path.rpartition(".")
        setattr(model.get_submodule(parent), attribute, fresh)
    return model


def with_depths(model: nn.Module, name: str, depths: int) -> nn.Module:
    """Return a classifier with a new head on several depths of a model; `model` itself loses its head.

    Raises
    ------
    ModelError
        If the model has fewer depths.
    """
    if depths == 1:
        return model
    widths = depth_layers(model)
    if depths - 1 > len(widths):
        raise ModelError(
            f"{name} has {len(widths) + 1} depths to take features from, and {depths} are asked for; lower "
            "train.probe.depths."
        )
    chosen = dict(list(widths.items())[1 - depths :])
    final = head(model)
    path = next(path for path, module in model.named_modules() if module is final)
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.Identity())
    return PooledClassifier(model, list(chosen), sum(chosen.values()) + final.in_features, final.out_features)


def encoder_of(model: nn.Module) -> nn.Module:
    """Return the network below the head of a `PooledClassifier`; any other model itself."""
    return model.encoder if isinstance(model, PooledClassifier) else model


def gradcam_layer(name: str, model: nn.Module) -> nn.Module:
    """Return the layer that Grad-CAM uses; `timm_models.map_of` turns its output into a map ``(B, C, h, w)``."""
    if timm_models.is_timm(name):
        return timm_models.gradcam_layer(encoder_of(model))
    return last_block(name, model)


def last_block(name: str, model: nn.Module) -> nn.Module:
    """Return the module that computes the last feature map."""
    if timm_models.is_timm(name):
        return timm_models.last_block(encoder_of(model))
    check_name(name)
    return encoder_of(model).get_submodule(
        next(path for family, path in _FEATURE_LAYERS.items() if name.startswith(family))
    )


def head(model: nn.Module) -> nn.Linear:
    """Return the last linear layer, whose input is the embedding; for an ensemble, that of its first network."""
    model = networks_of(model)[0]
    if hasattr(model, "get_classifier"):
        final: nn.Linear = model.get_classifier()  # type: ignore[operator]
        return final
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def blocks(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters by block, from the input to the head; the head is the last linear layer alone."""
    final = {id(parameter) for parameter in head(model).parameters()}
    encoder = encoder_of(model)
    if hasattr(encoder, "group_matcher"):
        named = timm_models.parameters_by_block(encoder)
    else:
        named = [(_block_of(name), parameter) for name, parameter in encoder.named_parameters()]
    found: dict[str, list[nn.Parameter]] = {}
    for block, parameter in named:
        if id(parameter) not in final:
            found.setdefault(block, []).append(parameter)
    return [*found.values(), list(head(model).parameters())]


def _block_of(name: str) -> str:
    first, second, *_ = name.split(".")
    return f"{first}.{second}" if first in SEQUENCES else first
