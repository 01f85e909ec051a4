"""Training against its limits: the loop against the bare step, the step against arithmetic, validation against inference.

    python benchmarks/bench_train_step.py [--model resnet18] [--size 224] [--batches 4] [--rounds 3] [--precision auto] [--layouts]

The loop is `run_epochs` itself on a memory-mapped pack of noise, with the augmentation and averaging of from-scratch.yaml;
the bare step is forward, loss, backward and the fused optimiser on one batch that is already the model's input. Between
any two epochs of the loop every other part is measured once, so all of them see the same machine. In bf16 on the CPU, "plain
autocast" is the bare step with depthwise convolutions in bf16, too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from brainmri_core.config import load_config
from brainmri_core.config.files import config_file
from brainmri_core.learning.batches import resident
from brainmri_core.learning.checkpoint import Preprocessing
from brainmri_core.learning.device import (
    Precision,
    autocast,
    choose_device,
    choose_precision,
    peak_memory_mib,
    seed_everything,
)
from brainmri_core.learning.loop import Reporting, run_epochs, validate_weights
from brainmri_core.learning.models import build_model
from brainmri_core.learning.state import Data, Loop, new_state

CLASSES = 4


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(
    work: Callable[[], object], times: int, device: torch.device, clock: Callable[[], float]
) -> float:
    """Return the seconds one call takes, as a mean over some."""
    wait(device)
    start = clock()
    for _ in range(times):
        work()
    wait(device)
    return (clock() - start) / times


class BareStep:
    """Forward, loss, backward and optimiser on one resident batch."""

    def __init__(
        self,
        name: str,
        batch: torch.Tensor,
        precision: Precision,
        memory_format: torch.memory_format,
        compiled: bool,
        plain: bool = False,
    ) -> None:
        self.batch = batch.contiguous(memory_format=memory_format)
        self.labels = torch.arange(len(batch), device=batch.device) % CLASSES
        model = build_model(name, num_classes=CLASSES, in_channels=batch.shape[1])
        self.plain = model.to(batch.device, memory_format=memory_format).train()  # type: ignore[call-overload]
        self.model: Any = torch.compile(self.plain) if compiled else self.plain
        self.optimiser = torch.optim.AdamW(self.plain.parameters(), fused=True)
        self.precision = precision
        self.context = (
            partial(torch.autocast, batch.device.type, torch.bfloat16)
            if plain
            else partial(autocast, batch.device, precision)
        )

    def __call__(self) -> None:
        """Take one step."""
        self.optimiser.zero_grad(set_to_none=True)
        with self.context():
            logits = self.model(self.batch)
        F.cross_entropy(logits.float(), self.labels).backward()
        self.optimiser.step()

    def infer(self) -> None:
        """Run the forward pass alone, in evaluation mode."""
        with torch.inference_mode(), autocast(self.batch.device, self.precision):
            self.plain.eval()(self.batch)
        self.plain.train()

    def flops(self) -> tuple[int, int]:
        """Floating-point operations of one training step and of one forward pass; 0 where torch counts them wrongly."""
        if any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in self.plain.modules()):
            return 0, 0  # torch 2.14 counts the gradients of a convolution in groups as if it had one group
        with FlopCounterMode(display=False) as step:
            self()
        with FlopCounterMode(display=False) as forward:
            self.infer()
        return step.get_total_flops(), forward.get_total_flops()


def arithmetic(device: torch.device, precision: Precision) -> tuple[Callable[[], None], int]:
    """Return a large channels-last 3x3 convolution in the same precision, and its floating-point operations."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    n, c, side = (32, 128, 28) if device.type == "cpu" else (128, 256, 56)
    images = torch.randn(n, c, side, side, device=device, dtype=dtype).contiguous(
        memory_format=torch.channels_last
    )
    conv = nn.Conv2d(c, c, 3, padding=1, bias=False).to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    times = 8

    def work() -> None:
        with torch.inference_mode():
            for _ in range(times):
                conv(images)

    return work, times * 2 * n * side * side * c * c * 9


@contextmanager
def noise_loop(
    name: str, size: int, images: int, batch_size: int, precision: str, epochs: int, compiled: bool
) -> Iterator[tuple[Loop, nn.Module]]:
    """Yield a training on a pack of noise that lies in a file, the way a real one does."""
    config = load_config(config_file("experiments/from-scratch.yaml")).train
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update={"name": name}),
            "data": config.data.model_copy(update={"batch_size": batch_size}),
            "loop": config.loop.model_copy(update={"epochs": epochs, "compile": compiled}),
        }
    )
    device = choose_device(load_config().env)
    chosen = choose_precision(precision, True, device)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        noise = np.random.default_rng(0).integers(0, 256, (2 * images, size, size), np.uint8)
        np.save(Path(folder) / "pack.npy", noise)
        pixels = resident(np.load(Path(folder) / "pack.npy", mmap_mode="r"), np.arange(2 * images), size)
        if device.type == "cuda":
            pixels = pixels.to(device)
        labels = torch.arange(2 * images) % CLASSES
        data = Data(pixels, labels, np.arange(images), np.arange(images, 2 * images), CLASSES)
        plain = Preprocessing(
            pack_size=size, image_size=size, channels=1, colour=False, fit="letterbox", mean=[0.5], std=[0.3]
        )
        model = build_model(config.model.name, num_classes=CLASSES, in_channels=1)
        loop = Loop(config, data, plain, device, chosen, 0, None)
        yield loop, model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def measure(options: argparse.Namespace) -> None:
    seed_everything(0, load_config().env)
    with noise_loop(
        options.model,
        options.size,
        options.batches * options.batch,
        options.batch,
        options.precision,
        options.rounds + 1,
        options.compile,
    ) as (loop, model):
        state = new_state(loop, model)
        clock = time.process_time if options.processor_time else time.perf_counter
        took: dict[str, list[float]] = {}
        facts: dict[str, int] = {}
        parts: dict[str, tuple[Callable[[], object], int]] = {}
        ended = [clock()]

        def between(record: dict[str, Any]) -> None:
            whole = clock() - ended[0]
            first = not parts
            if first:
                facts["memory"] = peak_memory_mib(loop.device)
                parts["validation"] = (lambda: validate_weights(loop, state.model, state.weights()), 1)
                parts.update(other_parts(options, loop, facts))
            values = {part: seconds(work, times, loop.device, clock) for part, (work, times) in parts.items()}
            training = (whole - values["validation"]) / len(loop.data.train)
            values["loop"] = training if options.processor_time else 1 / record["images_per_s"]
            for part, value in values.items():
                if not first:
                    took.setdefault(part, []).append(value)
            ended[0] = clock()

        run_epochs(loop, state, Reporting(save=lambda: None, epoch=between, smaller=lambda parts: None))
    report(options, took, facts, f"{loop.precision}, {loop.device}")


def other_parts(
    options: argparse.Namespace, loop: Loop, facts: dict[str, int]
) -> dict[str, tuple[Callable[[], object], int]]:
    """Return the parts that the loop is compared with, and how often a round calls each; operation counts go into `facts`."""
    batch = torch.randn(options.batch, 1, options.size, options.size, device=loop.device)
    name = loop.config.model.name
    bare = BareStep(name, batch, loop.precision, torch.channels_last, options.compile)
    facts["step"], facts["inference"] = bare.flops()
    bound, facts["bound"] = arithmetic(loop.device, loop.precision)
    parts: dict[str, tuple[Callable[[], object], int]] = {
        "bound": (bound, 1),
        "step": (bare, options.batches),
        "inference": (bare.infer, options.batches),
    }
    if loop.device.type == "cpu" and loop.precision == "bf16":
        parts["plain autocast"] = (
            BareStep(name, batch, "bf16", torch.channels_last, False, plain=True),
            options.batches,
        )
    if options.layouts:
        layouts = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}
        choices: set[Precision] = {"fp32", loop.precision}
        for precision in sorted(choices):
            for title, layout in layouts.items():
                step = BareStep(name, batch, precision, layout, False)
                parts[f"{precision} {title}"] = (step, max(1, options.batches // 2))
    return parts


def report(
    options: argparse.Namespace, took: dict[str, list[float]], facts: dict[str, int], where: str
) -> None:
    def ratio(first: str, second: str, factor: float = 1.0) -> str:
        """Median of the ratios of rounds, with their range."""
        values = [factor * a / b for a, b in zip(took[first], took[second], strict=True)]
        return f"{statistics.median(values):6.1%} ({min(values):.1%} to {max(values):.1%})"

    median = {part: statistics.median(values) for part, values in took.items()}
    size = options.batch
    print(
        f"{options.model}, {options.size} px, batch {size}, {where}, {torch.get_num_threads()} threads, "
        f"compile {options.compile}, malloc top pad {os.environ.get('MALLOC_TOP_PAD_', 'default')}; "
        f"{'processor' if options.processor_time else 'wall'} time, median of {options.rounds} interleaved rounds (range)"
    )
    print(
        f"arithmetic bound            {facts['bound'] / median['bound'] / 1e9:8.0f} GFLOP/s (3x3 convolution, channels-last)"
    )
    print(f"bare step                   {size / median['step']:8.1f} images/s")
    if facts["step"]:
        print(f"arithmetic of a step        {facts['step'] / size / 1e9:8.2f} GFLOP an image")
        print(f"bare step / bound           {ratio('bound', 'step', facts['step'] / facts['bound'])}")
    print(f"training loop               {1 / median['loop']:8.1f} images/s")
    print(f"training loop / bare step   {ratio('step', 'loop', 1 / size)}")
    print(f"bare inference              {size / median['inference']:8.1f} images/s")
    if facts["step"]:
        print(
            f"bare inference / bound      {ratio('bound', 'inference', facts['inference'] / facts['bound'])}"
        )
    print(f"validation pass / inference {ratio('inference', 'validation', options.batches)}")
    print(f"peak memory after one epoch {facts['memory']:8d} MiB")
    for title in took:
        if title not in ("bound", "step", "inference", "validation", "loop"):
            print(
                f"bare step, {title:18} {size / median[title]:6.1f} images/s, against ours {ratio('step', title)}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18", help="encoder, as in train.model.name")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--batches", type=int, default=4, help="steps per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--layouts", action="store_true", help="also measure NCHW and fp32")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor seconds of one thread, for a busy machine",
    )
    options = parser.parse_args()
    if options.processor_time:
        torch.set_num_threads(1)
    measure(options)


if __name__ == "__main__":
    main()
