"""Models by their torchvision names: built for any class count, gray or colour."""

from __future__ import annotations

import copy
import difflib

import torch
import torchvision
from torch import nn

from brainmri_core.errors import ModelError
from brainmri_core.learning.pooled import PooledClassifier

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


def build_model(name: str, *, num_classes: int, in_channels: int, depths: int = 1) -> nn.Module:
    """Build a model with random weights.

    Parameters
    ----------
    name : str
        One of `MODEL_NAMES`.
    num_classes : int
        Outputs (logits).
    in_channels : int
        1 for gray input, 3 for colour; the first convolution is made to fit.
    depths : int
        Of the network that the head sees; 1 is the network as it was published.

    Raises
    ------
    ModelError
        If the name is unknown, or the network has not so many depths.
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
    return model if depths == 1 else with_depths(model, name, depths)


def with_depths(model: nn.Module, name: str, depths: int) -> nn.Module:
    """Return a classifier with a fresh head that sees several depths of it; the model itself loses its own head.

    Raises
    ------
    ModelError
        If the network has not so many depths.
    """
    if depths == 1:
        return model
    widths = _depths(name, model)
    if depths - 1 > len(widths):
        raise ModelError(
            f"{name} has {len(widths) + 1} depths whose maps differ in size, and {depths} are asked for; lower "
            "train.probe.depths."
        )
    chosen = dict(list(widths.items())[1 - depths :])
    final = head(model)
    path = next(path for path, module in model.named_modules() if module is final)
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.Identity())
    return PooledClassifier(model, list(chosen), sum(chosen.values()) + final.in_features, final.out_features)


def _depths(name: str, model: nn.Module) -> dict[str, int]:
    """Return the last layer at each size of the maps but the last size, which the head sees, and its channels."""
    found: dict[int, tuple[str, int]] = {}
    layer = next(path for family, path in _FEATURE_LAYERS.items() if name.startswith(family))
    hollow = copy.deepcopy(model).to("meta").eval()
    trunk, prefix = (hollow.get_submodule(layer), f"{layer}.") if layer in _SEQUENCES else (hollow, "")

    def look(path: str) -> object:
        def note(_: nn.Module, __: object, output: torch.Tensor) -> None:
            if output.ndim == 4:
                found[output.shape[-1]] = (path, output.shape[1])

        return note

    for child, module in trunk.named_children():
        module.register_forward_hook(look(f"{prefix}{child}"))  # type: ignore[arg-type]
    channels = next(module for module in hollow.modules() if isinstance(module, nn.Conv2d)).in_channels
    with torch.no_grad():
        hollow(torch.empty(1, channels, 224, 224, device="meta"))
    sizes = sorted((size for size in found if size > 1), reverse=True)
    return dict(found[size] for size in sizes[:-1])


def gradcam_layer(name: str, model: nn.Module) -> nn.Module:
    """Return the layer whose output is the last feature map ``(B, C, h, w)``."""
    check_name(name)
    encoder = model.encoder if isinstance(model, PooledClassifier) else model
    return encoder.get_submodule(
        next(path for family, path in _FEATURE_LAYERS.items() if name.startswith(family))
    )


def head(model: nn.Module) -> nn.Linear:
    """Return the last linear layer; its input is the embedding."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def blocks(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters by block, from the input to the head; the head is the last linear layer alone."""
    final = {id(parameter) for parameter in head(model).parameters()}
    found: dict[str, list[nn.Parameter]] = {}
    encoder = model.encoder if isinstance(model, PooledClassifier) else model
    for name, parameter in encoder.named_parameters():
        if id(parameter) in final:
            continue
        first, second, *_ = name.split(".")
        key = f"{first}.{second}" if first in _SEQUENCES else first
        found.setdefault(key, []).append(parameter)
    return [*found.values(), list(head(model).parameters())]
