"""Models by their torchvision names: built for any class count, gray or colour."""

from __future__ import annotations

import difflib

import torchvision
from torch import nn

from brainmri_core.errors import ModelError

# Where Grad-CAM looks: the last feature map before pooling, by family.
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
# Children that hold the blocks, rather than being one.
_SEQUENCES = frozenset({"features", "trunk_output"})

MODEL_NAMES: tuple[str, ...] = tuple(
    name
    for name in torchvision.models.list_models(module=torchvision.models)
    if any(name.startswith(family) for family in _FEATURE_LAYERS)
)


def check_name(name: str) -> None:
    """Raise ModelError, with the nearest names, unless an architecture is known."""
    if name not in MODEL_NAMES:
        near = difflib.get_close_matches(name, MODEL_NAMES, n=3, cutoff=0.4) or ["resnet18"]
        raise ModelError(
            f"The model {name!r} is not known; did you mean {' or '.join(near)}? (train.model.name)"
        )


def build_model(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """Build a model with random weights.

    Parameters
    ----------
    name : str
        One of `MODEL_NAMES`.
    num_classes : int
        Outputs (logits).
    in_channels : int
        1 for gray input, 3 for colour; the first convolution is made to fit.

    Raises
    ------
    ModelError
        If the name is unknown.
    """
    check_name(name)
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


def gradcam_layer(name: str, model: nn.Module) -> nn.Module:
    """Return the layer whose output is the last feature map ``(B, C, h, w)``."""
    check_name(name)
    return model.get_submodule(
        next(path for family, path in _FEATURE_LAYERS.items() if name.startswith(family))
    )


def head(model: nn.Module) -> nn.Linear:
    """Return the last linear layer; its input is the embedding."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def blocks(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters by block, from the input to the head; the head is the last linear layer alone."""
    final = {id(parameter) for parameter in head(model).parameters()}
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in final:
            continue
        first, second, *_ = name.split(".")
        key = f"{first}.{second}" if first in _SEQUENCES else first
        found.setdefault(key, []).append(parameter)
    return [*found.values(), list(head(model).parameters())]
