"""Is a self-supervised warm-up worth its time? Training from random weights against training from contrastive ones.

    BRAINMRI_ARCHIVES=FOLDER python benchmarks/bench_self_supervised.py run --root ROOT [--size 64] [--epochs 6] [--warmup-epochs 10]
        [--folds 2] [--seeds 42] [--longer]
    python benchmarks/bench_self_supervised.py table --root ROOT

The warm-up is SimCLR (Chen et al., A simple framework for contrastive learning of visual representations, ICML 2020): two random
views of each image, and a loss (NT-Xent) by which a view finds the other view of its image among those of all others. It sees the training
side of each fold without its labels, neither the fold that is measured nor the test split. Then from-scratch.yaml trains from these
weights and from random ones: same folds, images, seeds and epochs. `--longer` adds a training from random weights whose epochs make up for
the views of the warm-up, for the question whether the time is better spent on labels.

`run` adds one line to ROOT/self_supervised.jsonl for every warm-up and training and leaves out those that are there, so it goes on where it was
stopped. `table` prints macro F1 out of fold, and the difference with its 95% interval over patients and groups, the mean over seeds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from real_pack import add_options, make_job, real_pack
from torch import nn
from tqdm import tqdm

from brainmri_core.arrays import I64
from brainmri_core.config import load_config, with_seed
from brainmri_core.config.files import config_file
from brainmri_core.config.training import AugmentConfig, OptimConfig, TrainConfig
from brainmri_core.cross_validation import fold_pack
from brainmri_core.evaluation.bootstrap import interval
from brainmri_core.evaluation.paired import macro_f1_draws
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.augment import augment
from brainmri_core.learning.batches import resident, to_float
from brainmri_core.learning.checkpoint import load_model
from brainmri_core.learning.device import autocast, choose_device, choose_precision, step_seed
from brainmri_core.learning.inference import predict
from brainmri_core.learning.models import build_model
from brainmri_core.learning.schedule import learning_rate
from brainmri_core.project.job import Job
from brainmri_core.project.pointers import FoldPackPointer
from brainmri_core.project.sample_table import read_samples
from brainmri_core.splitting.assignment import independent_units
from brainmri_core.system.storage import atomic_file
from brainmri_core.train import train

MODEL, RANDOM, WARM = "resnet18", "random weights", "self-supervised weights"
BATCH, WIDTH, TEMPERATURE = 64, 128, 0.2
RATE = OptimConfig(lr=1e-3, schedule="one_cycle")
VIEWS = AugmentConfig(
    rotate_deg=20.0,
    scale=0.5,
    shift=0.15,
    jitter_brightness=0.4,
    jitter_contrast=0.4,
    jitter_gamma=0.5,
    bias_field=0.3,
    noise_std=0.02,
    erase_prob=0.3,
)
Line = dict[str, Any]


def contrast_loss(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return NT-Xent of two views ``(B, D)`` of the same images, in the same order."""
    views = F.normalize(torch.cat([first, second]).float(), dim=1)
    likeness = views @ views.T / temperature
    likeness.fill_diagonal_(-torch.inf)
    n = len(first)
    return F.cross_entropy(likeness, torch.arange(2 * n, device=views.device).roll(n))


def warm_up(pixels: torch.Tensor, epochs: int, seed: int, job: Job) -> tuple[nn.Module, list[float]]:
    """Train an encoder on images without labels.

    Parameters
    ----------
    pixels : torch.Tensor
        uint8 ``(N, C, S, S)``.

    Returns
    -------
    encoder : torch.nn.Module
        Its head is an identity.
    losses : list of float
        Mean loss of each epoch.
    """
    device = choose_device(job.env)
    precision = choose_precision("auto", True, device)
    torch.manual_seed(seed)
    encoder = build_model(MODEL, num_classes=1, in_channels=pixels.shape[1])
    width = encoder.fc.in_features
    encoder.fc = nn.Identity()
    projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, WIDTH))
    model = nn.Sequential(encoder, projection).to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE.lr, weight_decay=RATE.weight_decay)
    seen = pixels.float() / 255
    mean, std = seen.mean(), seen.std()
    steps, losses = len(pixels) // BATCH, []
    for epoch in range(epochs):
        order = torch.randperm(
            len(pixels), generator=torch.Generator().manual_seed(step_seed(seed, 1, epoch, 0))
        )
        total = 0.0
        for step in tqdm(range(steps), desc=f"warm-up epoch {epoch + 1}", disable=None, leave=False):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(RATE, epoch * steps + step, steps, epochs)
            batch = to_float(pixels[order[step * BATCH : (step + 1) * BATCH]], device)
            generator = torch.Generator().manual_seed(step_seed(seed, 2, epoch, step))
            views = torch.cat([augment(batch, VIEWS, generator) for _ in range(2)])
            with autocast(device, precision):
                found = model(((views - mean) / std).contiguous(memory_format=torch.channels_last))
            loss = contrast_loss(*found.chunk(2), TEMPERATURE)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += float(loss.detach())
        losses.append(round(total / steps, 4))
    return encoder, losses


def rows_of(job: Job, seen: FoldPackPointer, split: str) -> pd.DataFrame:
    """Return the images of one side of a fold, by row of the pack."""
    table = read_samples(job.layout.absolute(seen.samples))
    return table[(table["split"] == split) & (table["row"] >= 0)].sort_values("row", ignore_index=True)


def trained(
    options: argparse.Namespace,
    seen: FoldPackPointer,
    job: Job,
    *,
    epochs: int,
    seed: int,
    weights: Path | None,
) -> Line:
    """Train one recipe without a fold, and predict the fold; the checkpoint is deleted."""
    overrides = [f"train.loop.epochs={epochs}", f"train.data.image_size={options.size}"]
    if weights is not None:
        overrides.append(f"train.model.weights_file={weights}")
    config = with_seed(load_config(config_file("experiments/from-scratch.yaml"), overrides).train, seed)
    assert isinstance(config, TrainConfig)
    started = time.perf_counter()
    pointer = train(config, seen, job)
    seconds = time.perf_counter() - started
    path, device = job.layout.absolute(pointer.checkpoint), choose_device(job.env)
    model, meta = load_model(path, device)
    logits = predict(
        model,
        open_pack(job.layout, seen),
        rows_of(job, seen, "test")["row"].to_numpy(np.int64),
        meta.preprocessing,
        device=device,
        batch_size=config.data.batch_size,
    ).logits
    history = pd.read_parquet(job.layout.absolute(pointer.history))
    shutil.rmtree(path.parent)
    return {
        "called": logits.argmax(axis=1).tolist(),
        "val_macro_f1": pointer.val_macro_f1,
        "best_epoch": pointer.best_epoch,
        "curve": [round(value, 4) for value in history["val_macro_f1"]],
        "seconds": round(seconds, 1),
    }


def read_lines(root: Path) -> list[Line]:
    path = root / "self_supervised.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def add_line(root: Path, line: Line) -> None:
    with (root / "self_supervised.jsonl").open("a") as handle:
        print(json.dumps(line), file=handle)


def warm_weights(options: argparse.Namespace, seen: FoldPackPointer, job: Job, key: Line) -> Path:
    """Return the file of the warm-up's weights, from an earlier run or made now."""
    name = "-".join(str(key[part]) for part in ("size", "warmup_epochs", "fold", "seed"))
    path: Path = options.root.resolve() / "self_supervised" / f"{name}.pth"
    if not path.is_file():
        rows: I64 = rows_of(job, seen, "train")["row"].to_numpy(np.int64)
        started = time.perf_counter()
        pixels = resident(open_pack(job.layout, seen), rows, options.size)
        encoder, losses = warm_up(pixels, options.warmup_epochs, key["seed"], job)
        with atomic_file(path) as handle:
            torch.save(encoder.state_dict(), handle)
        seconds = round(time.perf_counter() - started, 1)
        add_line(
            options.root,
            {**key, "variant": "warm-up", "images": len(rows), "losses": losses, "seconds": seconds},
        )
    return path


def run(options: argparse.Namespace) -> None:
    pack = real_pack(options.root, options.size)
    for seed in options.seeds:
        for fold in range(options.folds):
            job = make_job(options.root, f"self-supervised-{time.time_ns()}")
            seen = fold_pack(pack, fold, job)
            key = {"fold": fold, "seed": seed, "size": options.size, "warmup_epochs": options.warmup_epochs}
            # an epoch of the warm-up sees two views of every image, validation groups included
            longer = options.epochs + round(2 * options.warmup_epochs / (1 - TrainConfig().data.val_frac))
            variants = {RANDOM: options.epochs, WARM: options.epochs}
            if options.longer:
                variants[f"{RANDOM}, {longer} epochs"] = longer
            for name, epochs in variants.items():
                line = {**key, "variant": name, "epochs": options.epochs}
                if any(done.items() >= line.items() for done in read_lines(options.root)):
                    continue
                weights = warm_weights(options, seen, job, key) if name == WARM else None
                job = make_job(options.root, f"self-supervised-{time.time_ns()}")
                found = trained(options, seen, job, epochs=epochs, seed=seed, weights=weights)
                add_line(options.root, {**line, **found})
    table(options)


def table(options: argparse.Namespace) -> None:
    """Print a table for every size and length that was run."""
    lines = [line for line in read_lines(options.root) if "called" in line]
    for size, epochs, warmup in dict.fromkeys((x["size"], x["epochs"], x["warmup_epochs"]) for x in lines):
        part = [x for x in lines if (x["size"], x["epochs"], x["warmup_epochs"]) == (size, epochs, warmup)]
        complete = _complete(part)
        print(f"\n{MODEL}, {size} px, {epochs} epochs, warm-up of {warmup}; ", end="")
        print(", ".join(f"fold {fold} seed {seed}" for fold, seed in complete), "\n")
        if complete:
            _print_scores(options, size, part, complete)


def _complete(part: list[Line]) -> list[tuple[int, int]]:
    """Return the folds and seeds that every variant has; of a seed with fewer folds than the first, none."""
    of_variant: dict[str, set[tuple[int, int]]] = {}
    for line in part:
        of_variant.setdefault(line["variant"], set()).add((line["fold"], line["seed"]))
    shared = set.intersection(*of_variant.values())
    folds = {seed: {fold for fold, other in shared if other == seed} for _, seed in shared}
    most = max(map(len, folds.values()), default=0)
    return sorted((fold, seed) for fold, seed in shared if len(folds[seed]) == most)


def _print_scores(
    options: argparse.Namespace, size: int, part: list[Line], complete: list[tuple[int, int]]
) -> None:
    job = make_job(options.root, "self-supervised-table", [])
    pack = real_pack(options.root, size)
    folds, seeds = sorted({fold for fold, _ in complete}), sorted({seed for _, seed in complete})
    held = pd.concat([rows_of(job, fold_pack(pack, fold, job), "test") for fold in folds], ignore_index=True)
    labels, units = held["class_index"].to_numpy(np.int64), independent_units(held)
    variants = list(dict.fromkeys(line["variant"] for line in part))
    draws = {}
    for name in variants:
        of_fold = {(x["fold"], x["seed"]): x["called"] for x in part if x["variant"] == name}
        calls = [np.array([i for fold in folds for i in of_fold[fold, seed]], np.int64) for seed in seeds]
        scored = macro_f1_draws(labels, calls, units, pack.classes, resamples=2000, seed=0)
        draws[name] = np.mean(scored, axis=0)
    print(f"{len(held)} images of {len(set(units))} patients and groups\n")
    print("| first weights | macro F1 out of fold | against random weights | seconds a training |")
    print("| --- | --- | --- | --- |")
    for name in variants:
        score, against = _shown(draws[name]), ""
        if name != RANDOM:
            against = _shown(draws[name] - draws[RANDOM], "+")
        seconds = np.median([x["seconds"] for x in part if x["variant"] == name])
        print(f"| {name} | {score} | {against} | {seconds:.0f} |")


def _shown(draws: Any, sign: str = "") -> str:
    """Return a score and its interval as text."""
    bounds = interval(draws[1:])
    told = "no interval" if bounds is None else " to ".join(f"{value:{sign}.3f}" for value in bounds)
    return f"{draws[0]:{sign}.3f} ({told})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for work in (run, table):
        command = commands.add_parser(work.__name__)
        command.set_defaults(work=work)
        add_options(command)
        command.add_argument("--size", type=int, default=64)
        command.add_argument("--epochs", type=int, default=6)
        command.add_argument("--warmup-epochs", type=int, default=10)
        command.add_argument(
            "--folds", type=int, default=2, help="use this many of the split's folds, from the first"
        )
        command.add_argument("--seeds", type=int, nargs="+", default=[42])
        command.add_argument(
            "--longer", action="store_true", help="also train from random weights for the time of the warm-up"
        )
    options = parser.parse_args()
    options.work(options)


if __name__ == "__main__":
    main()
