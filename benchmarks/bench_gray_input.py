"""Gray images in a network with weights for colour: as three equal channels, or with the first convolution's weights summed.

    python benchmarks/bench_gray_input.py [--models resnet18 ...] [--size 128] [--batch 16] [--rounds 5]

The networks have random weights; what they do with them takes the same time. Colours are normalised as ImageNet's, each in its own
way, so that a sum has to take their means and deviations into itself. What it takes of the means is no constant at the border, where a
convolution sees zeros in place of an image: `ones` gives the network a second channel that is one inside and zero outside, which is exact;
`sum` adds the constant as a bias, which is not, and is the least work that there can be. The three take turns, on one thread, in processor
time; the ratio is that of the time of three channels to theirs, the median of the rounds (range).
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from brainmri_core.learning.models import build_model
from brainmri_core.learning.pretrained import imagenet_statistics

CLASSES = 4
MODELS = ["resnet18", "efficientnet_b0", "convnext_tiny", "timm/mobilenetv4_conv_small"]
Input = Callable[[torch.Tensor], torch.Tensor]


def first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    """Return the first convolution and its place."""
    return next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))


def replaced(model: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    """Return a copy of a model whose first convolution has other weights."""
    model = copy.deepcopy(model)
    path, old = first_convolution(model)
    fresh = copy.deepcopy(old)
    fresh.in_channels, fresh.weight = weight.shape[1], nn.Parameter(weight)
    fresh.bias = old.bias if bias is None else nn.Parameter(bias + (0 if old.bias is None else old.bias))
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, fresh)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def variants(name: str) -> dict[str, tuple[nn.Module, Input]]:
    """Return the three networks, and what makes their input of gray images in [0, 1]."""
    torch.manual_seed(0)
    model = build_model(name, num_classes=CLASSES, in_channels=3)
    mean, std = (torch.tensor(values)[None, :, None, None] for values in imagenet_statistics(3))
    weight = first_convolution(model)[1].weight.detach()
    scaled = (weight / std).sum(dim=1, keepdim=True)
    constant = -(weight * mean / std).sum(dim=1, keepdim=True)

    def with_ones(gray: torch.Tensor) -> torch.Tensor:
        return torch.cat([gray, torch.ones_like(gray)], dim=1)

    return {
        "three": (replaced(model, weight, None), lambda gray: (gray - mean) / std),
        "ones": (replaced(model, torch.cat([scaled, constant], dim=1), None), with_ones),
        "sum": (replaced(model, scaled, constant.sum(dim=(1, 2, 3))), lambda gray: gray),
    }


def infer(model: nn.Module, make: Input, gray: torch.Tensor) -> torch.Tensor:
    """Return the logits of a batch."""
    with torch.inference_mode():
        logits: torch.Tensor = model(make(gray).contiguous(memory_format=torch.channels_last))
    return logits


def step(model: nn.Module, make: Input, gray: torch.Tensor) -> None:
    """Compute a batch's gradients."""
    logits = model(make(gray).contiguous(memory_format=torch.channels_last))
    F.cross_entropy(logits, torch.arange(len(gray)) % CLASSES).backward()  # type: ignore[no-untyped-call]


def compare(name: str, gray: torch.Tensor, rounds: int) -> str:
    """Return a row of the table."""
    networks = variants(name)
    with torch.inference_mode():
        logits = {kind: infer(model.eval(), make, gray) for kind, (model, make) in networks.items()}
    cells = []
    for work in (infer, step):
        spent: dict[str, list[float]] = {kind: [] for kind in networks}
        for _ in range(rounds + 1):
            for kind, (model, make) in networks.items():
                model.train(work is step)
                start = time.process_time()
                work(model, make, gray)
                spent[kind].append(time.process_time() - start)
        for kind in ("ones", "sum"):
            pairs = zip(spent["three"][1:], spent[kind][1:], strict=True)  # the first round only warms up
            ratios = [three / other for three, other in pairs]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    spread = logits["three"].std()
    apart = [
        f"{float((logits[kind] - logits['three']).abs().max() / spread):.0e}" for kind in ("ones", "sum")
    ]
    return f"| `{name}` | {' | '.join([*cells, *apart])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    gray = torch.rand(
        options.batch, 1, options.size, options.size, generator=torch.Generator().manual_seed(1)
    )
    print("| encoder | inference, ones | inference, sum | training step, ones | training step, sum |", end="")
    print(" logits apart, ones | logits apart, sum |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in options.models:
        print(compare(name, gray, options.rounds), flush=True)


if __name__ == "__main__":
    main()
