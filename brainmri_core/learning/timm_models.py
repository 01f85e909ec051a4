"""timm's models by ``timm/<name>``, for any number of classes, image size and number of channels.

timm is an optional dependency and is imported only when one of its models is used.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Mapping
from types import ModuleType

import torch
from torch import nn

from brainmri_core.errors import ModelError

PREFIX = "timm/"
Normalisation = tuple[list[float], list[float]]


def is_timm(name: str) -> bool:
    """Tell whether a name means one of timm's models."""
    return name.startswith(PREFIX)


def check_name(name: str) -> None:
    """Raise ModelError unless timm is installed and knows the architecture and, if given, the tag."""
    timm = _timm(name)
    known = timm.list_models()
    architecture, _, tag = name.removeprefix(PREFIX).partition(".")
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3, cutoff=0.4) or ["tf_efficientnet_lite0"]
        raise ModelError(
            f"The model {name!r} is not known to timm {timm.__version__}; did you mean "
            f"{' or '.join(PREFIX + other for other in near)}? (train.model.name)"
        )
    tagged = timm.list_pretrained(architecture)
    if tag and f"{architecture}.{tag}" not in tagged:
        raise ModelError(
            f"timm {timm.__version__} knows no weights {tag!r} of {PREFIX}{architecture}; choose from "
            f"{', '.join(PREFIX + other for other in tagged) or 'none, and leave the tag out'}. (train.model.name)"
        )


def create(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int | None,
    published: bool = False,
) -> nn.Module:
    """Build one of timm's models.

    Parameters
    ----------
    name : str
        ``timm/<architecture>`` or ``timm/<architecture>.<tag>``.
    num_classes : int
        Number of logits.
    in_channels : int
        1 for gray input, 3 for colour. For gray, timm sums the weights of the first convolution over the colours.
    image_size : int or None
        Side in pixels, for models whose parameters depend on it; None means that of timm's config.
    published : bool
        Load the published weights from timm's cache or the model hub; otherwise the weights are random.

    Raises
    ------
    ModelError
        If timm is not installed or does not know the name, or the model cannot be built for these images.
    """
    check_name(name)
    timm, own = _timm(name), name.removeprefix(PREFIX)
    record = timm.get_pretrained_cfg(own)
    wanted = {"num_classes": num_classes, "in_chans": in_channels, "pretrained": published}
    sized = {"img_size": image_size} if image_size is not None and record.fixed_input_size else {}
    try:
        model: nn.Module = timm.create_model(own, **wanted, **sized)
    except (TypeError, AssertionError, ValueError) as error:
        if not (sized and isinstance(error, TypeError)):
            raise _unfit(name, image_size) from error
        # The model has no parameter img_size; `check_input` shows whether the images fit.
        model = timm.create_model(own, **wanted)
    if not isinstance(model.get_classifier(), nn.Linear):  # type: ignore[operator]
        raise _without_pooling(name)
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if image_size is not None and isinstance(patch, tuple) and image_size % patch[0]:
        below = image_size // patch[0] * patch[0]
        raise ModelError(
            f"{name} cuts images into patches of {patch[0]} px, and {image_size} is not a multiple of that; set "
            f"train.data.image_size to {' or '.join(str(side) for side in (below, below + patch[0]) if side)}."
        )
    return model


def check_input(model: nn.Module, name: str, channels: int, image_size: int) -> None:
    """Raise ModelError unless a model accepts images of a size and pools before its head; only shapes are computed."""
    shapes = copy.deepcopy(model).to("meta").eval()
    pooled: list[int] = []
    shapes.get_classifier().register_forward_pre_hook(  # type: ignore[operator]
        lambda _, inputs: pooled.append(inputs[0].ndim)
    )
    try:
        with torch.no_grad():
            shapes(torch.empty(1, channels, image_size, image_size, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise _unfit(name, image_size) from error
    if pooled != [2]:
        raise _without_pooling(name)


def normalisation(name: str) -> Normalisation:
    """Return the mean and standard deviation of each colour that a model's published weights were trained with."""
    record = _timm(name).get_pretrained_cfg(name.removeprefix(PREFIX))
    return [float(value) for value in record.mean], [float(value) for value in record.std]


def is_published(name: str) -> bool:
    """Tell whether weights of a model are published."""
    return bool(_timm(name).get_pretrained_cfg(name.removeprefix(PREFIX)).has_weights)


def fitted(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights, by a model's own names, in the shapes of the model.

    The first convolution is summed over the colours where the model is gray, and position embeddings are interpolated
    where the image size differs.
    """
    from timm.layers.pos_embed import resample_abs_pos_embed
    from timm.models import adapt_input_conv

    own, found = model.state_dict(), dict(weights)
    for key, value in weights.items():
        wanted = own[key].shape
        if value.ndim == 4 and (value.shape[1], wanted[1]) == (3, 1):
            found[key] = adapt_input_conv(1, value)
        elif key == "pos_embed" and value.shape != wanted:
            prefix = (
                0 if getattr(model, "no_embed_class", False) else int(getattr(model, "num_prefix_tokens", 1))
            )
            grid = list(model.patch_embed.grid_size)  # type: ignore[union-attr, arg-type]
            found[key] = resample_abs_pos_embed(value, grid, num_prefix_tokens=prefix)
    return found


def has_one_size(model: nn.Module) -> bool:
    """Tell whether a model accepts only one image size, by timm's config; torchvision's models accept any."""
    record: dict[str, object] = getattr(model, "pretrained_cfg", {})
    return bool(record.get("fixed_input_size"))


def stages(model: nn.Module) -> list[str]:
    """Return the stages or blocks in timm's ``feature_info`` of a model, from the input to the head."""
    info = getattr(model, "feature_info", [])
    return list(dict.fromkeys(str(item["module"]) for item in getattr(info, "info", info)))


def parameters_by_block(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters with the number of their block, as timm groups them, from the input to the head."""
    from timm.models import group_parameters

    matcher = model.group_matcher(coarse=True)  # type: ignore[operator]
    by_name = dict(model.named_parameters())
    groups = group_parameters(model, matcher)
    return [(str(block), by_name[name]) for block in sorted(groups) for name in groups[block]]


def last_block(model: nn.Module) -> nn.Module:
    """Return the last layer in timm's ``feature_info`` of a model."""
    return model.get_submodule(stages(model)[-1])


def gradcam_layer(model: nn.Module) -> nn.Module:
    """Return the last layer on whose output the logits depend at every position of the image.

    If the head of a transformer sees only the class token, the last block's output at other positions is not used. Then it
    is the input of the last block's attention.
    """
    block = last_block(model)
    if getattr(model, "global_pool", None) == "token" and isinstance(
        attended := getattr(block, "norm1", None), nn.Module
    ):
        return attended
    return block


def map_of(model: nn.Module, output: object) -> torch.Tensor:
    """Return the output of a layer as a map ``(B, C, h, w)``; images are square.

    The tokens of a transformer are in row order, in most models after special ones such as the class token. Some models put
    the channels last.

    Raises
    ------
    ModelError
        If the output is neither a map nor tokens.
    """
    if isinstance(output, torch.Tensor) and output.ndim == 4:
        return output.permute(0, 3, 1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else output
    if isinstance(output, torch.Tensor) and output.ndim == 3:
        for prefix in (int(getattr(model, "num_prefix_tokens", 0)), 0):
            places = output[:, prefix:].transpose(1, 2)
            side = math.isqrt(places.shape[2])
            if side * side == places.shape[2]:
                return places.reshape(*places.shape[:2], side, side)
    raise ModelError(
        f"A layer of {type(model).__name__} gives neither a map nor the tokens of a square image; choose another "
        "train.model.name."
    )


def _unfit(name: str, image_size: int | None) -> ModelError:
    usual = _timm(name).get_pretrained_cfg(name.removeprefix(PREFIX)).input_size[-1]
    return ModelError(
        f"{name} does not take images of {image_size} px; set train.data.image_size to {usual}, the size of its published "
        "weights, or choose another train.model.name."
    )


def _without_pooling(name: str) -> ModelError:
    return ModelError(
        f"{name} does not end in pooled features and one linear layer, which training, probes and Grad-CAM need; choose "
        "another train.model.name."
    )


def _timm(name: str) -> ModuleType:
    try:
        import timm
    except ImportError:
        raise ModelError(
            f"The model {name} needs timm, which is not installed; install it with `pip install 'brainmri[timm]'`."
        ) from None
    return timm
