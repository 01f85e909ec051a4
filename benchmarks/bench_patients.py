"""How much a model gains from having seen the patient: scores of the same images, split in several ways.

    BRAINMRI_ARCHIVES=FOLDER python benchmarks/bench_patients.py --root ROOT [--quick] [--sets figshare kaggle]

A look-up (1-NN on 64 x 64 pixels) and a linear model (logistic regression on principal components of the same pixels) are
cross-validated: every image is predicted by a model that did not see its group. A network (resnet18 from scratch) is
trained once a division and a seed and measured on a quarter of the images. A set is taken whole, and reduced to the images
whose patient is known, where there are others. Intervals (95%) resample patients, and groups where the patient is unknown,
whatever the division. Prints a Markdown table; progress goes to standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from brainmri_core.arrays import I64, U8, Mask
from brainmri_core.config import load_config
from brainmri_core.config.data import FetchConfig, PhantomConfig, ResizeConfig, SplitConfig
from brainmri_core.config.files import config_file
from brainmri_core.config.training import TrainConfig
from brainmri_core.copies.fingerprint import half_size
from brainmri_core.copies.leaks import find_twins, patient_twins, read_copies
from brainmri_core.copies.lookup import nearest_neighbours, unit_vectors
from brainmri_core.evaluation.bootstrap import confusion_metrics, group_weights, interval
from brainmri_core.fetch import fetch
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.checkpoint import load_model
from brainmri_core.learning.device import choose_device, choose_precision
from brainmri_core.learning.inference import predict
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import ARCHIVES_VARIABLE, Layout
from brainmri_core.project.logs import StageLog
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import PackPointer
from brainmri_core.project.sample_table import known_patients, read_samples, write_samples
from brainmri_core.resize import resize
from brainmri_core.split import split
from brainmri_core.splitting.assignment import assign_folds, assign_side, independent_units
from brainmri_core.splitting.divisions import groups_by
from brainmri_core.system.checksums import sha256_json
from brainmri_core.train import train

SETS = {
    "kaggle": ("sartajbhuvaji/brain-tumor-classification-mri", "brain-tumor-classification-mri.zip"),
    "figshare": ("figshare/1512427", "figshare-1512427-jpg.zip"),
    "phantom": ("brainmri/phantom", None),
}
ROWS = ("official", "random", "copies", "subject", "patients")
MODELS = ("look-up", "linear", "network")
TEST_FRAC = 0.25
COMPONENTS = 150
RESAMPLES = 1000


@dataclass(frozen=True)
class Images:
    """The images of one set: their table, copies, thumbnails and pack, all in the same order of rows."""

    name: str
    table: pd.DataFrame
    copies: pd.DataFrame
    thumbs: U8
    pack: PackPointer
    job: Job

    def only(self, name: str, among: Mask) -> Images:
        """Return some of them under another name."""
        return replace(
            self, name=name, table=self.table[among].reset_index(drop=True), thumbs=self.thumbs[among]
        )

    @property
    def labels(self) -> I64:
        """Class index of each."""
        return self.table["class_index"].to_numpy(np.int64)


@dataclass(frozen=True)
class Predicted:
    """Predictions of some images: their positions, and the predicted classes."""

    rows: I64
    called: I64
    train: Mask


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def prepare(name: str, root: Path, size: int) -> Images:
    """Fetch, split and resize a set; keep what has a readable image and an undisputed class."""
    key, archive = SETS[name]
    entry = load_catalogue()[key]
    job = Job(Layout(root=root / name), f"bench-{time.time_ns()}", entry, StageLog("bench", "r", key, []))
    config = FetchConfig()
    if archive is None:
        config = FetchConfig(phantom=PhantomConfig(subjects_per_class=16, slices_per_subject=5))
    else:
        folder = os.environ.get(ARCHIVES_VARIABLE)
        if folder is None or not (Path(folder) / archive).is_file():
            raise SystemExit(f"set {ARCHIVES_VARIABLE} to the folder that holds {archive}")
        config = FetchConfig(archive=str(Path(folder) / archive))
    fetched = write_pointer(job.layout, fetch(config, job))
    mapping = write_pointer(job.layout, split(SplitConfig(seed=42), fetched, job))
    pack = write_pointer(job.layout, resize(ResizeConfig(size=size), mapping, job))
    folder = job.layout.absolute(mapping.samples).parent
    table = read_samples(job.layout.absolute(pack.samples))
    thumbs = np.load(folder / "thumbs.npy", allow_pickle=False)
    whole = Images(name, table, read_copies(folder), thumbs, pack, job)
    return whole.only(name, ((table["row"] >= 0) & (table["split"] != "excluded")).to_numpy())


def groups_of(images: Images, row: str) -> list[str]:
    """Return the groups that one way to split keeps whole."""
    kinds = {"copies": "near_duplicate", "subject": "subject", "patients": "auto"}
    if row not in kinds:
        return list(images.table["path"])
    return list(groups_by(kinds[row], images.table, images.copies, images.thumbs))


def official(images: Images) -> tuple[Mask, Mask] | None:
    origin = images.table["origin"].to_numpy(object)
    train, test = origin == "training", origin == "testing"
    return (train, test) if train.any() and test.any() else None


def parts(images: Images, row: str, folds: int, seed: int) -> Iterator[tuple[Mask, Mask]]:
    """Yield training and test sides that together test every image once; the official folders are one such pair."""
    if row == "official":
        if (sides := official(images)) is not None:
            yield sides
        return
    fold = assign_folds(groups_of(images, row), images.labels, folds, seed)
    for number in range(folds):
        yield fold != number, fold == number


def looked_up(images: Images, train: Mask, test: Mask) -> I64:
    rows = np.flatnonzero(train)
    nearest, _ = nearest_neighbours(
        images.thumbs, images.thumbs, train_rows=rows, test_rows=np.flatnonzero(test)
    )
    return images.labels[rows[nearest]]


def linear(images: Images, train: Mask, test: Mask) -> I64:
    """Predict by logistic regression on principal components of the 32 x 32 pixels, fitted on the training side."""
    vectors = unit_vectors(half_size(images.thumbs).astype(np.uint8))
    reduced = PCA(min(COMPONENTS, int(train.sum()) - 1), whiten=True, random_state=0).fit(vectors[train])
    model = LogisticRegression(C=0.01, max_iter=500, class_weight="balanced")
    model.fit(reduced.transform(vectors[train]), images.labels[train])
    return np.asarray(model.predict(reduced.transform(vectors[test])), np.int64)


def network(
    images: Images, groups: list[str], train_side: Mask, test: Mask, options: argparse.Namespace, seed: int
) -> I64:
    """Train resnet18 from scratch with the project's own training, and call the test side.

    Training refuses a split with copies or patients on two sides, so it is not told of them here: that is what is measured.
    """
    layout = images.job.layout
    table = images.table.assign(
        split=np.where(train_side, "train", np.where(test, "test", "excluded")),
        group=groups,
        pixel_sha256=[f"{n:064x}" for n in range(len(images.table))],
        path="blind/" + images.table["path"],
        patient=None,
    )
    job = replace(images.job, run_id=f"network-{time.time_ns()}")
    folder = layout.root / "blind" / job.run_id
    folder.mkdir(parents=True)
    write_samples(folder / "samples.parquet", table)
    blind = images.pack.model_copy(
        update={
            "samples": layout.relative(folder / "samples.parquet"),
            "content_hash": sha256_json(job.run_id),
        }
    )
    recipe = load_config(config_file("experiments/from-scratch.yaml")).train.model_dump()
    recipe["data"] |= {"image_size": options.size, "seed": seed}
    recipe["model"]["pretrained"] = False
    recipe["loop"]["epochs"] = options.epochs
    config = TrainConfig.model_validate(recipe)
    pointer = train(config, blind, job)
    device = choose_device(job.env)
    model, meta = load_model(layout.absolute(pointer.checkpoint), device)
    rows = table["row"].to_numpy(np.int64)[test]
    found = predict(
        model, open_pack(layout, images.pack), rows, meta.preprocessing,
        device=device, batch_size=64, precision=choose_precision("auto", True, device), tta=True, progress=False,
    )  # fmt: skip
    return np.asarray(found.logits.argmax(axis=1), np.int64)


def predictions(images: Images, model: str, row: str, options: argparse.Namespace) -> list[list[Predicted]]:
    """Predict the images once for each seed; the parts of one seed do not overlap."""
    if model == "network":
        return [network_once(images, row, options, seed) for seed in options.network_seeds]
    call = looked_up if model == "look-up" else linear
    seeds = options.seeds[:1] if row == "official" else options.seeds
    return [
        [
            Predicted(np.flatnonzero(test), call(images, train_side, test), train_side)
            for train_side, test in parts(images, row, options.folds, seed)
        ]
        for seed in seeds
    ]


def network_once(images: Images, row: str, options: argparse.Namespace, seed: int) -> list[Predicted]:
    if row == "official":
        sides = official(images)
        if sides is None:
            return []
        train_side, test = sides
    else:
        test = assign_side(groups_of(images, row), images.labels, TEST_FRAC, seed, "test")
        train_side = ~test
    # the validation groups are kept apart in the same way as the test side
    called = network(images, groups_of(images, row), train_side, test, options, seed)
    return [Predicted(np.flatnonzero(test), called, train_side)]


def scores(images: Images, seeds: list[list[Predicted]]) -> dict[str, tuple[float, list[float] | None]]:
    """Return accuracy and macro F1, the mean over the seeds, with intervals over independent units."""
    k = len(images.pack.classes)
    tested = np.unique(np.concatenate([part.rows for found in seeds for part in found]))
    number = np.zeros(len(images.table), np.int64)
    units = np.asarray(independent_units(images.table), object)
    number[tested], weights = group_weights(units[tested].tolist(), RESAMPLES, 0)
    weights = np.concatenate([np.ones((1, weights.shape[1]), np.float32), weights])
    drawn = []
    for found in seeds:
        cells = np.zeros((weights.shape[1], k * k))
        for part in found:
            np.add.at(cells, (number[part.rows], images.labels[part.rows] * k + part.called), 1.0)
        confusion = (weights.astype(np.float64) @ cells).reshape(-1, k, k)
        present = np.bincount(np.concatenate([images.labels[part.rows] for part in found]), minlength=k) > 0
        drawn.append(confusion_metrics(confusion, images.pack.classes, present))
    result = {}
    for name in ("accuracy", "macro_f1"):
        values = np.mean([item[name] for item in drawn], axis=0)
        result[name] = float(values[0]), interval(values[1:])
    return result


def crossing(images: Images, seeds: list[list[Predicted]]) -> tuple[int, int, int, int]:
    """Count the test images of the first seed, those with a copy and with their patient in training, and known patients."""
    tested = copied = shared = known = 0
    for part in seeds[0]:
        test = np.zeros(len(images.table), np.bool_)
        test[part.rows] = True
        tested += int(test.sum())
        copied += len(find_twins(images.table, images.copies, part.train, test))
        shared += len(patient_twins(images.table, part.train, test))
        known += int((known_patients(images.table)[test] != "").sum())
    return tested, copied, shared, known


def of_known(images: Images, seeds: list[list[Predicted]]) -> list[list[Predicted]]:
    """Return the predictions of the images whose patient is known; the models are the same."""
    known = known_patients(images.table) != ""
    return [
        [Predicted(part.rows[known[part.rows]], part.called[known[part.rows]], part.train) for part in found]
        for found in seeds
    ]


def line(images: Images, name: str, model: str, row: str, seeds: list[list[Predicted]]) -> str:
    tested, copied, shared, known = crossing(images, seeds)
    cells = [name, model, row, f"{tested:,}", f"{copied:,}", f"{shared:,} of {known:,}"]
    for value, bounds in scores(images, seeds).values():
        between = f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else ""
        cells.append(f"{value:.3f}{between}")
    return f"| {' | '.join(cells)} |"


HEADER = (
    "| images | model | divided by | tested | with a copy in training | with their patient in training | accuracy (95%) | "
    "macro F1 (95%) |\n|---|---|---|---:|---:|---:|---|---|"
)


def measure(options: argparse.Namespace) -> None:
    started, lines = time.perf_counter(), [HEADER]
    for name in options.sets:
        whole = prepare(name, options.root, options.size)
        known = known_patients(whole.table) != ""
        say(
            f"{name}: {len(whole.table):,} images, {len(set(independent_units(whole.table))):,} patients or groups"
        )
        partly = known.any() and not known.all()
        alone = whole.only(f"{name}, known patients alone", known) if partly else None
        for model in options.models:
            if model == "network" and options.quick:
                continue
            for images in (whole, alone) if alone is not None and model != "network" else (whole,):
                for row in options.rows:
                    clock = time.perf_counter()
                    seeds = [found for found in predictions(images, model, row, options) if found]
                    if not seeds:
                        continue
                    added = [line(images, images.name, model, row, seeds)]
                    if images is whole and partly:
                        among = of_known(images, seeds)
                        added.append(line(images, f"{name}, tested on known patients", model, row, among))
                    lines += added
                    say("\n".join(added) + f" {time.perf_counter() - clock:.0f} s")
    print("\n".join(lines))
    say(f"{(time.perf_counter() - started) / 60:.1f} min in all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="folder for the project files; a temporary one by default")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["figshare", "kaggle"])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--quick", action="store_true", help="skip the network")
    parser.add_argument("--folds", type=int, default=4, help="folds of the look-up and the linear model")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[42, 43], help="seeds of the look-up and the linear model"
    )
    parser.add_argument("--network-seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--size", type=int, default=96, help="pixels of the network's images")
    parser.add_argument("--epochs", type=int, default=14)
    options = parser.parse_args()
    if options.root is not None:
        options.root = options.root.resolve()
        measure(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        options.root = Path(folder)
        measure(options)


if __name__ == "__main__":
    main()
