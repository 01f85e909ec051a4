"""Weights files of any trainer: which tensors an architecture takes, and error messages for files that do not fit.

Training tools add prefixes to the names in a state dict, such as ``model.``, ``backbone.``, ``encoder.``, ``state_dict`` or
``ema``. There is no list of them here. Nested mappings become dotted paths, and the prefix under which most of the
architecture's tensors are found, by name and shape, is taken.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from brainmri_core.errors import ModelError
from brainmri_core.escaping import printable
from brainmri_core.learning.models import MODEL_NAMES, build_model, head
from brainmri_core.learning.tensor_file import flat_tensors, read_tensor_file
from brainmri_core.learning.timm_models import is_timm
from brainmri_core.learning.weights_package import PACKAGES

# Published DenseNet weights have the layer names of torchvision 0.2.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|avg|averaged?|teacher)(?=[._]|$)", re.IGNORECASE)
_NOT_A_HEAD = re.compile(r"(?:^|\.)(?:optim\w*|\w*scheduler\w*|state)\.")
_LEARNED = (".weight", ".bias")
# Names in timm's EfficientNets and in EfficientNet-PyTorch (lukemelas) and its descendants, inside a block and outside.
_EXPANDED = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
    "se.conv_reduce": "_se_reduce",
    "se.conv_expand": "_se_expand",
}
_PLAIN = {**_EXPANDED, "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
_AROUND = {
    "conv_stem": "_conv_stem",
    "bn1": "_bn0",
    "conv_head": "_conv_head",
    "bn2": "_bn1",
    "classifier": "_fc",
}
_SHOWN = 4


@dataclass(frozen=True)
class Match:
    """How the tensors of a file match an architecture.

    Attributes
    ----------
    prefix : str
        Prefix of the architecture's names in the file, with its dot.
    body, head : dict
        Tensors by the architecture's names, including those of another shape.
    needed : int
        Number of tensors of the body, without running counts.
    missing, wrong, foreign : list of str
        Body tensors that the file lacks; those with another shape (by the architecture's names); and tensors of the file
        that belong to a larger body (by the file's names).
    left_out : list of str
        Weights of the file that the architecture does not have, such as a head of another name.
    also : list of str
        Other prefixes under which the file has the same tensors.
    """

    prefix: str
    body: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor]
    needed: int
    missing: list[str]
    wrong: list[str]
    foreign: list[str]
    left_out: list[str]
    also: list[str]

    @property
    def fits(self) -> bool:
        """Whether the whole body can be loaded."""
        return not (self.missing or self.wrong or self.foreign)

    @property
    def matched(self) -> int:
        """Number of needed tensors that the file has in the right shape."""
        return self.needed - len(self.missing) - len(self.wrong)

    @property
    def stem(self) -> torch.Tensor | None:
        """The weights of the first convolution, if the file has them."""
        return next((value for value in self.body.values() if value.ndim == 4), None)


class _ShapesOnly(TorchFunctionMode):
    """Build layers without memory or random numbers, so that trying all architectures takes seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        device = {"device": "meta"} if func in (torch.empty, torch.zeros, torch.ones) else {}
        return func(*args, **{**(kwargs or {}), **device})


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file, never running code from it.

    Returns
    -------
    dict
        Tensors by their path through the file's mappings, e.g. ``state_dict.backbone.conv1.weight``.

    Raises
    ------
    ModelError
        If the file is missing or damaged, or holds Python objects or no tensors.
    """
    if not path.is_file():
        raise ModelError(f"The weights file {path} does not exist; check train.model.weights_file.")
    remedy = "give a state dict of tensors, as torch.save(model.state_dict(), file) writes it"
    weights = flat_tensors(read_tensor_file(path, "weights file", remedy)[0])
    if not weights:
        raise ModelError(f"The weights file {path} holds no tensors; {remedy}.")
    return weights


def match(weights: Mapping[str, torch.Tensor], name: str) -> Match:
    """Match the tensors of a file with an architecture, whatever the prefix of their names.

    Parameters
    ----------
    weights : mapping
        From `read_weights`.
    name : str
        Architecture; in the file its first convolution may have one channel or three.
    """
    weights = {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in weights.items()}
    shapes, top, spellings = _architecture(name)
    best, prefixes, spelled = -1, [""], {key: key for key in shapes}
    for names in spellings:
        scores = _score(weights, names, shapes, top)
        if scores and max(scores.values()) > best:
            best, spelled = max(scores.values()), names
            prefixes = [prefix for prefix, score in scores.items() if score == best]
    chosen = next((prefix for prefix in prefixes if _AVERAGED.search(prefix)), prefixes[0])
    also = [prefix for prefix in prefixes if prefix != chosen]
    return _match(weights, chosen, spelled, shapes, top, also)


@cache
def _architecture(name: str) -> tuple[dict[str, torch.Size], str, list[dict[str, str]]]:
    """Return the shapes of an architecture's tensors, the name of its head, and its `_spellings`."""
    with _ShapesOnly():
        model = build_model(name, num_classes=1, in_channels=3)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    final = head(model)
    top = next(path for path, module in model.named_modules() if module is final)
    return shapes, top, _spellings(model, shapes)


def _spellings(model: nn.Module, shapes: Mapping[str, torch.Size]) -> list[dict[str, str]]:
    """Return the naming schemes that weights files use for an architecture, each as a mapping to its own names.

    These are its own names; those of ``nn.Sequential(*model.children())``, as in RadImageNet's weights; those of its
    ``features`` alone; and those of EfficientNet-PyTorch.
    """
    numbers = {name: str(number) for number, (name, _) in enumerate(model.named_children())}
    counted = {
        ".".join([numbers.get(first, first), *rest]): ".".join([first, *rest])
        for first, *rest in (key.split(".") for key in shapes)
    }
    inner = {key.removeprefix("features."): key for key in shapes if key.startswith("features.")}
    return [
        {key: key for key in shapes},
        counted,
        *(names for names in (inner, _underscored(shapes)) if names),
    ]


def _underscored(shapes: Mapping[str, torch.Size]) -> dict[str, str]:
    """Return EfficientNet-PyTorch's names of the tensors of one of timm's EfficientNets; empty for other models."""
    blocks = [key.rpartition(".conv_dw.")[0] for key in shapes if key.endswith(".conv_dw.weight")]
    found: dict[str, str] = {}
    for key in shapes:
        layer, _, tensor = key.rpartition(".")
        block = next((name for name in blocks if key.startswith(f"{name}.")), None)
        names = _AROUND if block is None else _EXPANDED if f"{block}.conv_pwl.weight" in shapes else _PLAIN
        theirs = names.get(layer if block is None else layer.removeprefix(f"{block}."))
        if theirs is None:
            return {}
        found[".".join([*(["_blocks", str(blocks.index(block))] if block else []), theirs, tensor])] = key
    return found


def _score(
    weights: Mapping[str, torch.Tensor], names: Mapping[str, str], shapes: Mapping[str, torch.Size], top: str
) -> Counter[str]:
    """Count, for each prefix, the body tensors with the right name and shape; if there are none, list the prefixes."""
    by_shape: Counter[str] = Counter()
    by_name: Counter[str] = Counter()
    for key, value in weights.items():
        parts = key.split(".")
        for start in range(len(parts)):
            own = names.get(".".join(parts[start:]))
            if own is not None and not own.startswith(f"{top}."):
                prefix = key[: len(key) - len(".".join(parts[start:]))]
                by_name[prefix] += 1
                by_shape[prefix] += _same(own, value.shape, shapes[own])
    return by_shape if any(by_shape.values()) else Counter(dict.fromkeys(by_name, 0))


def _same(name: str, found: torch.Size, wanted: torch.Size) -> bool:
    """Compare shapes. The first convolution may have one channel in the file instead of three.

    The position embeddings of a transformer may be for another image size.
    """
    if name == "pos_embed" and len(found) == len(wanted) == 3:
        return found[-1] == wanted[-1]
    gray = len(wanted) == 4 and wanted[1] == 3 and found == (wanted[0], 1, *wanted[2:])
    return found == wanted or gray


def _match(
    weights: Mapping[str, torch.Tensor],
    prefix: str,
    names: Mapping[str, str],
    shapes: Mapping[str, torch.Size],
    top: str,
    also: list[str],
) -> Match:
    inside = {own: weights[prefix + key] for key, own in names.items() if prefix + key in weights}
    body = {own: value for own, value in inside.items() if not own.startswith(f"{top}.")}
    family = f"{top.partition('.')[0]}."  # the head, and layers directly before it in the same module
    headless = not any(own.startswith(family) for own in inside)
    wanted = [
        key for key in shapes if not key.startswith(f"{top}.") and not key.endswith("num_batches_tracked")
    ]
    if headless:
        wanted = [key for key in wanted if not key.startswith(family)]
    parts = {key.partition(".")[0] for key, own in names.items() if not own.startswith(family)}
    rest = [key for key in weights if not (key.startswith(prefix) and key.removeprefix(prefix) in names)]
    foreign = [
        key for key in rest if key.startswith(prefix) and key.removeprefix(prefix).partition(".")[0] in parts
    ]
    copies = tuple(item for item in also if item)
    return Match(
        prefix,
        body,
        {own: value for own, value in inside.items() if own.startswith(f"{top}.")},
        len(wanted),
        [key for key in wanted if key not in body],
        [key for key in wanted if key in body and not _same(key, body[key].shape, shapes[key])],
        foreign,
        [
            key
            for key in rest
            if f".{key}".endswith(_LEARNED)
            and not (copies and key.startswith(copies))
            and not _NOT_A_HEAD.search(key)
        ],
        also,
    )


def misfit(weights: Mapping[str, torch.Tensor], found: Match, source: str, name: str) -> ModelError:
    """Return the error for a file that does not fit: how many tensors match, and which architecture it seems to be."""
    under = f" (under {printable(found.prefix)!r})" if found.prefix else ""
    text = (
        f"{source[0].upper()}{source[1:]} do not fit {name}: {found.matched} of its {found.needed} tensors before the "
        f"head are there in the right shape{under}"
    )
    others = {other: match(weights, other) for other in _candidates(name)}
    right = next((other for other, item in others.items() if item.fits), None)
    if found.foreign and not (found.missing or found.wrong):
        text += f", and {len(found.foreign)} more that it does not have, such as {shown(found.foreign[:1])}"
    if right is not None:
        return ModelError(
            f"{text}; they are those of a {right}: set train.model.name to it, or name another file."
        )
    if found.wrong and found.matched:
        shape = _architecture(name)[0][found.wrong[0]]
        text += f", {found.wrong[0]} is {_sides(found.body[found.wrong[0]].shape)} instead of {_sides(shape)}"
    elif found.missing and found.matched:
        text += f", {found.missing[0]} is not there"
    share = found.matched / found.needed
    near = max(others, key=lambda other: others[other].matched / others[other].needed)
    if others[near].matched / others[near].needed > max(0.5, share):
        text += f"; nearest is {near} with {others[near].matched} of {others[near].needed}"
    elif share < 0.5:
        named = [f"{key} ({_sides(value.shape)})" for key, value in list(weights.items())[:_SHOWN]]
        text += f"; the file has {len(weights)} tensors: {shown(named)}"
    theirs = name if is_timm(name) else f"torchvision {name}"
    return ModelError(f"{text}. Give weights of a {theirs}, or set train.model.name to their architecture.")


def _candidates(name: str) -> list[str]:
    """Return the other models that a file may belong to: torchvision's, and those of `PACKAGES` if timm is installed."""
    names = [*MODEL_NAMES, *(PACKAGES.values() if find_spec("timm") else ())]
    return [other for other in names if other != name]


def _sides(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "one number"


def shown(names: list[str]) -> str:
    """Return the first few names of a list from a file, fit for one line."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(printable(name)[:60] for name in names[:_SHOWN]) + more
