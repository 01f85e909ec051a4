"""An encoder with a linear layer on the averaged feature maps of several of its depths, not only of the last."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from brainmri_core.errors import ModelError
from brainmri_core.learning.timm_models import map_of, stages

# Children that contain the blocks and are not blocks themselves.
SEQUENCES = frozenset({"features", "trunk_output"})
_SIDE = 224
_BLOCKS = 4  # chosen in a network whose maps all have the same size


def depth_layers(model: nn.Module) -> dict[str, int]:
    """Return the layers whose pooled outputs can be features besides the head's input.

    In a network whose maps shrink, these are the last layers at each map size, except the smallest size, which the head
    sees. In a network whose maps all have the same size, such as a vision transformer, these are four evenly spread
    blocks, including the last one.

    Parameters
    ----------
    model : torch.nn.Module
        With its own head; it is not changed, and only shapes are computed.

    Returns
    -------
    dict
        Path of each layer, from the input on, to the length of its pooled output.

    Raises
    ------
    ModelError
        If an output is neither a map nor tokens, or the model accepts only an image size that it does not declare.
    """
    shapes = copy.deepcopy(model).to("meta").eval()
    trunk = next((name for name, _ in shapes.named_children() if name in SEQUENCES), "")
    children = [f"{trunk}.{name}".lstrip(".") for name, _ in shapes.get_submodule(trunk).named_children()]
    named = stages(shapes) if hasattr(shapes, "pretrained_cfg") else children
    found: dict[str, tuple[int, int]] = {}

    def look(path: str) -> Any:
        def note(_: nn.Module, __: object, output: Any) -> None:
            if getattr(output, "ndim", 4) != 2:  # after the pooling there is no map any more
                found[path] = (map_of(shapes, output).shape[-1], pool(shapes, output).shape[1])

        return note

    for path in named:
        shapes.get_submodule(path).register_forward_hook(look(path))
    side = getattr(getattr(shapes, "patch_embed", None), "img_size", None) or (_SIDE, _SIDE)
    channels = next(module for module in shapes.modules() if isinstance(module, nn.Conv2d)).in_channels
    try:
        with torch.no_grad():
            shapes(torch.empty(1, channels, *side, device="meta"))
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"The depths of a {type(model).__name__} cannot be found; set train.probe.depths to 1, "
            "or choose another train.model.name."
        ) from error
    by_size = {size: path for path, (size, _) in found.items() if size > 1}
    if len(by_size) == 1 and len(found) > _BLOCKS:
        every = len(found) / _BLOCKS
        chosen = [list(found)[round(every * (number + 1)) - 1] for number in range(_BLOCKS)]
    elif len(by_size) == 1:
        chosen = list(found)
    else:
        chosen = [by_size[size] for size in sorted(by_size, reverse=True)[:-1]]
    return {path: found[path][1] for path in chosen}


def pool(model: nn.Module, output: torch.Tensor) -> torch.Tensor:
    """Return the mean ``(B, D)`` of a layer's map over the image, after the class token where there is one."""
    places = map_of(model, output)
    mean = places.mean((2, 3))
    has_more = output.ndim == 3 and output.shape[1] > places.shape[2] * places.shape[3]
    if has_more and getattr(model, "cls_token", None) is not None:
        return torch.cat([output[:, 0], mean], dim=1)
    return mean


class PooledClassifier(nn.Module):
    """An encoder with a linear head on the pooled maps of some of its layers and on the encoder's own output.

    Parameters
    ----------
    encoder : torch.nn.Module
        A classifier without its head, which returns the head's input, ``(B, D)``.
    layers : sequence of str
        Paths of the layers whose maps are averaged over the image, from the input on.
    width : int
        Total number of features.
    num_classes : int
        Number of logits.
    """

    def __init__(self, encoder: nn.Module, layers: Sequence[str], width: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.layers = tuple(layers)
        self.head = nn.Linear(width, num_classes)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(B, K)``."""
        logits: torch.Tensor = self.head(self.pooled(batch))
        return logits

    def pooled(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the features ``(B, width)`` that the head sees, shallowest layer first."""
        found: dict[str, torch.Tensor] = {}

        def keep(path: str) -> Any:
            return lambda _, __, output: found.__setitem__(path, pool(self.encoder, output))

        hooks = [self.encoder.get_submodule(path).register_forward_hook(keep(path)) for path in self.layers]
        try:
            last = self.encoder(batch)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([*(found[path] for path in self.layers), last], dim=1)
