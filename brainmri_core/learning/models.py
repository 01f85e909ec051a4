"""Models by their torchvision names: built for any class count, gray or colour, scratch or pretrained."""

from __future__ import annotations

import contextlib
import difflib
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from brainmri_core.config.training import ModelConfig
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
_IMAGENET_CLASSES = 1000
_DOWNLOAD_TIMEOUT_S = 30.0
# Published DenseNet weights carry the layer names of torchvision 0.2.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")

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


def initial_model(
    config: ModelConfig, *, num_classes: int, pack_channels: int
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
    if config.weights_file is not None:
        weights = read_weights(Path(config.weights_file).expanduser())
        first = next((value for value in weights.values() if value.ndim == 4), None)
        channels = int(first.shape[1]) if first is not None and first.shape[1] in (1, 3) else 3
        model = build_model(config.name, num_classes=num_classes, in_channels=channels)
        load_backbone(model, weights, f"the weights file {config.weights_file}", config.name)
        return model, channels, True
    if config.pretrained:
        check_name(config.name)
        try:
            with _timeout(_DOWNLOAD_TIMEOUT_S):
                enum = torchvision.models.get_model_weights(config.name)
                weights = enum.DEFAULT.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise ModelError(
                f"The pretrained weights of {config.name} cannot be downloaded ({type(error).__name__}); give "
                "train.model.weights_file, or set train.model.pretrained to false to start from scratch."
            ) from None
        model = build_model(config.name, num_classes=num_classes, in_channels=3)
        load_backbone(model, weights, "torchvision's weights", config.name)
        return model, 3, True
    model = build_model(config.name, num_classes=num_classes, in_channels=pack_channels)
    return model, pack_channels, False


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Bound how long a download may be silent: a firewall that drops packets would hang it for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from ``.safetensors`` or ``.pth``, never running code from the file.

    Raises
    ------
    ModelError
        If the file is missing, damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise ModelError(f"The weights file {path} does not exist; check train.model.weights_file.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            value: Any = load_file(path)
        else:
            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - unpicklers raise anything on hostile bytes; all of it means: refuse
        raise ModelError(
            f"The weights file {path} cannot be read safely ({type(error).__name__}); give a state dict of tensors."
        ) from None
    for key in ("model", "state_dict"):
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    if not isinstance(value, Mapping) or not all(isinstance(item, torch.Tensor) for item in value.values()):
        raise ModelError(f"The weights file {path} holds no state dict; give a mapping of names to tensors.")
    return {str(name).removeprefix("module."): tensor for name, tensor in value.items()}


def load_backbone(model: nn.Module, weights: Mapping[str, torch.Tensor], source: str, name: str) -> None:
    """Load weights; a head of ImageNet's 1,000 classes, or none, leaves the model's fresh one in place.

    Raises
    ------
    ModelError
        If the weights belong to another architecture or another number of classes.
    """
    weights = {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in weights.items()}
    final = head(model)
    prefix = next(path for path, module in model.named_modules() if module is final)
    expected = model.state_dict()
    kept = {key: value for key, value in weights.items() if not key.startswith(f"{prefix}.")}
    body = {key: value for key, value in expected.items() if not key.startswith(f"{prefix}.")}
    missing = sorted(key for key in set(body) - set(kept) if not key.endswith("num_batches_tracked"))
    foreign = sorted(set(kept) - set(body))
    wrong = sorted(key for key in set(kept) & set(body) if kept[key].shape != body[key].shape)
    title = f"{source[0].upper()}{source[1:]}"
    if missing or foreign or wrong:
        raise ModelError(
            f"{title} do not fit {name} (first difference: {(missing or foreign or wrong)[0]}); "
            "use the file of that architecture or change train.model.name."
        )
    classes = len(weights[f"{prefix}.weight"]) if f"{prefix}.weight" in weights else _IMAGENET_CLASSES
    if classes not in (final.out_features, _IMAGENET_CLASSES):
        raise ModelError(
            f"{title} are for {classes} classes and this data has {final.out_features}; use weights for the same "
            f"classes, or remove the head ({prefix}.weight, {prefix}.bias) to keep the rest."
        )
    same_head = classes == final.out_features and f"{prefix}.weight" in weights
    model.load_state_dict(dict(weights) if same_head else kept, strict=False)
