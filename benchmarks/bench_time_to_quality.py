"""Minutes and epochs until the validation macro F1 reaches the classic recipe's best: same images, same machine.

    BRAINMRI_ARCHIVES=FOLDER python benchmarks/bench_time_to_quality.py --root ROOT [--size 64] [--epochs 4]
        [--classic-epochs 8] [--seeds 42 43 44] [--override train.data.start_size=32]

Both sides train resnet18 from scratch on the same training groups and are scored on the same validation groups; the test
split is not touched. Ours is `train` with from-scratch.yaml. After every epoch of ours the classic side runs its share of
epochs, so that both see the same machine. What counts is training and validation, without start-up.

Beside them, on the same groups, the probe of quick.yaml at `--probe-size` pixels and the fine-tuning of solid.yaml at `--tune-size`:
seconds from the pack to the validation score, features computed anew; and once the seconds from the pack to the probe's 5-fold
score, with the interval over patients. A size of 0 leaves one out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from classic import Classic, write_folders
from real_pack import add_options, make_job, real_pack

from brainmri_core.config import load_config, with_seed
from brainmri_core.config.embeddings import EmbeddingsConfig
from brainmri_core.config.files import config_file
from brainmri_core.config.training import TrainConfig
from brainmri_core.embeddings import embeddings
from brainmri_core.evaluation.embeddings_schema import read_embeddings_metrics
from brainmri_core.images.pack import open_pack
from brainmri_core.project.job import Job
from brainmri_core.project.logs import Record
from brainmri_core.project.pointers import PackPointer
from brainmri_core.project.sample_table import read_samples
from brainmri_core.splitting.assignment import validation_mask
from brainmri_core.system.storage import remove_folder
from brainmri_core.train import train

Scores = list[tuple[float, float]]


def write_sides(options: argparse.Namespace, pack: PackPointer, config: TrainConfig, folder: Path) -> None:
    """Write the training and validation images of a seed as class folders, the same images `train` takes."""
    job = make_job(options.root, "quality")
    table = read_samples(
        job.layout.absolute(pack.samples), {"row": "int64", "class_index": "int64", "split": "str"}
    )
    table = table[(table["row"] >= 0) & table["split"].isin(["train", "test"])].sort_values(
        "row", ignore_index=True
    )
    val = validation_mask(table, config.data.val_frac, config.data.resolved_seed)
    row, labels = table["row"].to_numpy(np.int64), np.zeros(pack.n_images, np.int64)
    labels[row] = table["class_index"]
    pixels = open_pack(job.layout, pack)
    write_folders(pixels, row[val], labels, folder / "val")
    write_folders(pixels, row[(table["split"] == "train").to_numpy() & ~val], labels, folder / "train")


def race(options: argparse.Namespace, seed: int) -> tuple[Scores, Scores]:
    """Return seconds and score of every epoch, ours and the classic recipe's."""
    pack = real_pack(options.root, options.size)
    overrides = [
        f"train.loop.epochs={options.epochs}",
        "train.loop.resume=false",
        f"train.data.image_size={options.size}",
        *options.override,
    ]
    config = with_seed(load_config(config_file("experiments/from-scratch.yaml"), overrides).train, seed)
    assert isinstance(config, TrainConfig)
    ours: Scores = []
    other: Scores = []
    share = -(-options.classic_epochs // options.epochs)
    with tempfile.TemporaryDirectory() as folder:
        write_sides(options, pack, config, Path(folder))
        classic = Classic(
            Path(folder) / "train",
            Path(folder) / "val",
            size=options.size,
            batch_size=config.data.batch_size,
            epochs=options.classic_epochs,
            seed=seed,
        )
        steps = timed(classic.scores(options.classic_epochs))

        def take_turns(record: Record) -> None:
            if record["event"] == "epoch":
                ours.append((record["seconds"], record["val_macro_f1"]))
                other.extend(scored for scored, _ in zip(steps, range(share), strict=False))

        train(config, pack, make_job(options.root, f"quality-{time.time_ns()}", [take_turns]))
        other.extend(steps)
    return ours, other


def shipped(options: argparse.Namespace, name: str, seed: int, *overrides: str) -> tuple[float, float]:
    """Return the seconds of a shipped recipe from the pack to its best validation score, and the score."""
    recipe = load_config(
        config_file(f"experiments/{name}.yaml"), ["train.loop.resume=false", *overrides]
    ).train
    config = with_seed(recipe, seed)
    assert isinstance(config, TrainConfig)
    job, pack = shipped_pack(options)
    start = time.perf_counter()
    made = train(config, pack, job)
    return time.perf_counter() - start, made.val_macro_f1


def probe_over_folds(options: argparse.Namespace) -> str:
    """Return the probe's score over the folds, and the seconds from the pack to it."""
    recipe = load_config(config_file("experiments/quick.yaml")).train
    config = with_seed(
        EmbeddingsConfig(model=recipe.model, probe=recipe.probe, image_size=options.probe_size),
        options.seeds[0],
    )
    assert isinstance(config, EmbeddingsConfig)
    job, pack = shipped_pack(options)
    start = time.perf_counter()
    made = embeddings(config, pack, job)
    seconds = time.perf_counter() - start
    pooled = read_embeddings_metrics(job.layout.absolute(made.metrics)).pooled
    interval = pooled.intervals["macro_f1"] if pooled and pooled.intervals else None
    assert interval is not None
    low, high = interval
    score = f"{made.headline['macro_f1']:.3f} ({low:.3f} to {high:.3f})"
    return f"probe, {options.probe_size} px: 5-fold macro F1 {score} after {seconds:.0f} s from the pack"


def shipped_pack(options: argparse.Namespace) -> tuple[Job, PackPointer]:
    """Return the pack for the shipped recipes, without stored features."""
    pack = real_pack(options.root, max(options.probe_size, options.tune_size))
    job = make_job(options.root, f"probe-{time.time_ns()}", [])
    kept = job.layout.features_dir(job.dataset, "").parent
    if kept.is_dir():
        remove_folder(kept)
    return job, pack


def timed(scores: Iterator[float]) -> Iterator[tuple[float, float]]:
    """Yield each score with the seconds until it came."""
    start = time.perf_counter()
    for score in scores:
        yield time.perf_counter() - start, score
        start = time.perf_counter()


def reached(scores: Scores, target: float) -> tuple[int, float] | None:
    """Return epochs and seconds until a score was at least the target, or None if it never was."""
    seconds = 0.0
    for epoch, (took, score) in enumerate(scores, 1):
        seconds += took
        if score >= target:
            return epoch, seconds
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--classic-epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument(
        "--override", action="append", default=[], help="change a setting of from-scratch.yaml, as key=value"
    )
    parser.add_argument(
        "--probe-size", type=int, default=192, help="image side of the probe, in pixels; 0: no probe"
    )
    parser.add_argument(
        "--tune-size",
        type=int,
        default=192,
        help="image side of the fine-tuning, in pixels; 0: none",
    )
    options = parser.parse_args()
    print(
        f"resnet18 from scratch, {options.size} px, ours {options.epochs} epochs, classic {options.classic_epochs}"
    )
    if options.probe_size:
        print(probe_over_folds(options), flush=True)
    ratios = []
    for seed in options.seeds:
        if options.probe_size:
            size = f"train.data.image_size={options.probe_size}"
            seconds, score = shipped(options, "quick", seed, size)
            print(f"seed {seed}: probe {score:.3f} after {seconds / 60:.2f} min from the pack", flush=True)
        if options.tune_size:
            size = f"train.data.image_size={options.tune_size}"
            seconds, score = shipped(options, "solid", seed, size)
            print(
                f"seed {seed}: fine-tuning {score:.3f} after {seconds / 60:.2f} min from the pack", flush=True
            )
        ours, classic = race(options, seed)
        best = max(score for _, score in classic)
        there, here = reached(classic, best), reached(ours, best)
        assert there is not None
        epochs, seconds = there
        print(f"seed {seed}: classic best {best:.3f} after {epochs} epochs, {seconds / 60:.2f} min; ", end="")
        if here is None:
            print(f"ours did not reach it in {len(ours)} epochs (best {max(score for _, score in ours):.3f})")
            continue
        ratios.append(seconds / here[1])
        print(
            f"ours there after {here[0]} epochs, {here[1] / 60:.2f} min: {ratios[-1]:.2f} times sooner",
            end="",
        )
        print(f" (our best {max(score for _, score in ours):.3f})")
    if ratios:
        print(
            f"reached for {len(ratios)} of {len(options.seeds)} seeds; median {statistics.median(ratios):.2f} times sooner"
        )


if __name__ == "__main__":
    main()
