"""Compare training recipes: every variant over several seeds on the default split, by validation macro F1 alone.

    BRAINMRI_ARCHIVES=FOLDER python benchmarks/ablation.py run --root ROOT [--image-size 64] [--epochs 12] [--seeds 42 43 44]
    python benchmarks/ablation.py table --root ROOT
    python benchmarks/ablation.py confirm --root ROOT [--image-size 128] [--epochs 20] [--seeds 42]

`run` adds one line a training to ROOT/ablation.jsonl and leaves out those that are there, so it goes on where it was
stopped, inside a training too. A seed decides the validation groups, the first weights, the order and the augmentation, and is the same for all
variants: differences are taken seed by seed. `confirm` trains the chosen recipe, then looks at the test split, once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from real_pack import add_options, keep_checkpoint, make_job, real_pack

from brainmri_core.config import load_config
from brainmri_core.config.evaluation import EvaluateConfig
from brainmri_core.config.files import config_file
from brainmri_core.config.training import TrainConfig
from brainmri_core.evaluate import evaluate
from brainmri_core.project.pointers import PackPointer
from brainmri_core.train import train

Blocks = dict[str, dict[str, Any]]
BASE = "one_cycle + EMA"
ONE_CYCLE: Blocks = {"optim": {"lr": 0.002, "schedule": "one_cycle"}}
EMA: Blocks = {"optim": {"ema_decay": 0.99}}
SMOOTHING: Blocks = {"optim": {"label_smoothing": 0.05}}
MOTION: Blocks = {"aug": {"rotate_deg": 15, "scale": 0.15, "shift": 0.05}}
MIXUP: Blocks = {"aug": {"mixup_alpha": 0.2}}
GAMMA_AND_BIAS: Blocks = {"aug": {"jitter_gamma": 0.3, "bias_field": 0.3}}
STRONG: Blocks = {
    "aug": {"rotate_deg": 20, "scale": 0.25, "shift": 0.1, "jitter_brightness": 0.2, "jitter_contrast": 0.2}
}


def join(*parts: Blocks) -> Blocks:
    """Merge config blocks, the later over the earlier."""
    merged: Blocks = {}
    for part in parts:
        for block, values in part.items():
            merged[block] = {**merged.get(block, {}), **values}
    return merged


def variants(epochs: int, image_size: int) -> dict[str, Blocks]:
    """Return every variant by name, the most informative first; StepLR drops after half of the epochs, as in pipeline.yaml."""
    base = join(ONE_CYCLE, EMA)
    return {
        "StepLR (pipeline.yaml)": {"optim": {"step_size": max(1, epochs // 2)}},
        BASE: base,
        f"{BASE} + label smoothing, scale and shift": join(base, SMOOTHING, MOTION),
        f"{BASE} + label smoothing, scale, shift and mixup": join(base, SMOOTHING, MOTION, MIXUP),
        "one_cycle": ONE_CYCLE,
        f"{BASE} + mixup": join(base, MIXUP),
        f"{BASE} + balanced sampling": join(
            base, {"optim": {"balanced_sampling": True, "class_weights": False}}
        ),
        f"{BASE} + label smoothing": join(base, SMOOTHING),
        f"{BASE} + scale and shift": join(base, MOTION),
        "cosine with warm-up": {"optim": {"lr": 0.002, "schedule": "cosine"}},
        f"{BASE} + no class weights": join(base, {"optim": {"class_weights": False}}),
        f"{BASE} + strong augmentation": join(base, STRONG),
        f"{BASE} + label smoothing, no class weights": join(
            base, SMOOTHING, {"optim": {"class_weights": False}}
        ),
        f"{BASE} + progressive resizing": join(base, {"data": {"start_size": image_size // 2}}),
        f"{BASE} + cutmix": join(base, {"aug": {"cutmix_alpha": 1.0}}),
        f"{BASE} + gamma and bias field": join(base, GAMMA_AND_BIAS),
        f"{BASE} + RandAugment": join(base, {"aug": {"randaugment_ops": 2}}),
        f"{BASE} + random erasing": join(base, {"aug": {"erase_prob": 0.5}}),
        f"{BASE}, fp32": join(base, {"loop": {"precision": "fp32"}}),
        f"{BASE}, bf16": join(base, {"loop": {"precision": "bf16"}}),
    }


def recipe(blocks: Blocks, *, image_size: int, epochs: int, seed: int) -> TrainConfig:
    """Return the default training from scratch with some blocks changed."""
    fixed: Blocks = {
        "data": {"image_size": image_size, "seed": seed},
        "model": {"pretrained": False},
        "loop": {"epochs": epochs},
    }
    value = load_config(config_file("pipeline.yaml")).train.model_dump()
    return TrainConfig.model_validate(join(value, blocks, fixed))


def train_once(root: Path, pack: PackPointer, config: TrainConfig, run_id: str) -> dict[str, Any]:
    """Train and return what is compared; the checkpoints are deleted."""
    job = make_job(root, run_id)
    started = time.perf_counter()
    pointer = train(config, pack, job)
    seconds = time.perf_counter() - started
    history = pd.read_parquet(job.layout.absolute(pointer.history))
    shutil.rmtree(job.layout.absolute(pointer.checkpoint).parent)
    return {
        "val_macro_f1": pointer.val_macro_f1,
        "last_val_macro_f1": float(history["val_macro_f1"].iloc[-1]),
        "last_val_loss": float(history["val_loss"].iloc[-1]),
        "best_epoch": pointer.best_epoch,
        "curve": [round(value, 4) for value in history["val_macro_f1"]],
        "images_per_s": float(history["images_per_s"].median()),
        "seconds": seconds,
    }


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def run(options: argparse.Namespace) -> None:
    results = options.root / "ablation.jsonl"
    pack = real_pack(options.root, options.pack_size)
    chosen = variants(options.epochs, options.image_size)
    if options.variants:
        chosen = {
            name: blocks for name, blocks in chosen.items() if any(part in name for part in options.variants)
        }
    for seed in options.seeds:
        for name, blocks in chosen.items():
            key = {"variant": name, "seed": seed, "image_size": options.image_size, "epochs": options.epochs}
            if any(line.items() >= key.items() for line in read_lines(results)):
                continue
            config = recipe(blocks, image_size=options.image_size, epochs=options.epochs, seed=seed)
            found = train_once(options.root, pack, config, f"ablation-{time.time_ns()}")
            with results.open("a") as handle:
                print(json.dumps({**key, **found}), file=handle)


def table(options: argparse.Namespace) -> None:
    lines = pd.DataFrame(read_lines(options.root / "ablation.jsonl"))
    for (size, epochs), part in lines.groupby(["image_size", "epochs"], sort=False):
        scores = part.pivot(index="variant", columns="seed", values="val_macro_f1")
        last = part.pivot(index="variant", columns="seed", values="last_val_macro_f1")
        print(f"\n{size} px, {epochs} epochs, seeds {', '.join(map(str, scores.columns))}\n")
        print("| variant | best val macro F1 | per seed | last epoch | against base, seed by seed |")
        print("| --- | --- | --- | --- | --- |")
        for name in dict.fromkeys(part["variant"]):
            row = scores.loc[name].dropna()
            change = (row - scores.loc[BASE]).dropna() if BASE in scores.index else pd.Series(dtype=float)
            against = (
                f"{change.mean():+.3f} ({change.min():+.3f} to {change.max():+.3f})"
                if len(change) and name != BASE
                else ""
            )
            print(
                f"| {name} | {row.mean():.3f} | {', '.join(f'{value:.3f}' for value in row)} "
                f"| {last.loc[name].mean():.3f} | {against} |"
            )


def confirm(options: argparse.Namespace) -> None:
    """Train the recipe of from-scratch.yaml and evaluate it once on the test split."""
    results = options.root / "confirm.jsonl"
    pack = real_pack(options.root, options.pack_size)
    experiment = load_config(config_file("experiments/from-scratch.yaml"), options.override).train
    changed: Blocks = {
        name: values
        for name, values in experiment.model_dump(exclude_unset=True).items()
        if isinstance(values, dict)
    }
    for seed in options.seeds:
        job = make_job(options.root, f"confirm-{options.image_size}-{options.epochs}-{seed}")
        config = recipe(changed, image_size=options.image_size, epochs=options.epochs, seed=seed)
        started = time.perf_counter()
        checkpoint = keep_checkpoint(job, train(config, pack, job))
        seconds = time.perf_counter() - started
        scored = EvaluateConfig.model_validate({"data": {"seed": seed}})
        headline = evaluate(scored, checkpoint, pack, job).headline
        found = {
            "seed": seed,
            "config": config.model_dump(mode="json"),
            "val_macro_f1": checkpoint.val_macro_f1,
            "best_epoch": checkpoint.best_epoch,
            "train_seconds": seconds,
            "test": headline,
        }
        with results.open("a") as handle:
            print(json.dumps(found), file=handle)
        print(json.dumps({**found, "config": None}, indent=1))
    lines = [line for line in read_lines(results) if line["seed"] in options.seeds]
    print(
        f"validation macro F1, mean over seeds: {statistics.mean(line['val_macro_f1'] for line in lines):.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for work, size, epochs, seeds in (
        (run, 64, 12, [42, 43, 44]),
        (table, 64, 12, []),
        (confirm, 128, 20, [42]),
    ):
        command = commands.add_parser(work.__name__)
        command.set_defaults(work=work)
        add_options(command)
        command.add_argument("--pack-size", type=int, default=128)
        command.add_argument("--image-size", type=int, default=size)
        command.add_argument("--epochs", type=int, default=epochs)
        command.add_argument("--seeds", type=int, nargs="+", default=seeds)
        command.add_argument("--variants", nargs="*", help="parts of names of variants; default: all")
        command.add_argument(
            "--override",
            action="append",
            default=[],
            help="for confirm: change a setting of the recipe, as key=value",
        )
        command.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work(options)


if __name__ == "__main__":
    main()
