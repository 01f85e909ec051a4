"""How many label errors with a known right answer do the label-issue candidates find, and how high do they rank them?

    BRAINMRI_ARCHIVES=FOLDER python benchmarks/bench_label_errors.py --root ROOT [--model look-up|linear|probe|network] [--epochs N]

The catalogue lists images of the Kaggle set whose label is wrong (14, filed as pituitary, meningioma in the Figshare set).
They are kept in the data with their wrong label (`split.corrections: ignore`), every image is predicted by a model that saw
no image of its group, and the candidates of an evaluation are made from these predictions. Models: a look-up (the share of
each class among the 15 nearest images, 64 x 64 pixels), a linear model (logistic regression on principal components of the
same pixels), the probe of experiments/quick.yaml on frozen features, and the network of experiments/from-scratch.yaml, trained
once a fold. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from brainmri_core.arrays import F32, F64, I64, U8, Mask
from brainmri_core.config import load_config
from brainmri_core.config.data import FetchConfig, ResizeConfig, SplitConfig
from brainmri_core.config.files import config_file
from brainmri_core.config.training import TrainConfig
from brainmri_core.copies.lookup import unit_vectors
from brainmri_core.evaluation.fold_scores import probabilities_of
from brainmri_core.evaluation.label_issues import known_error_ranks, label_issues
from brainmri_core.evaluation.probe_folds import fold_predictions
from brainmri_core.fetch import fetch
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.checkpoint import load_model
from brainmri_core.learning.device import choose_device, choose_precision
from brainmri_core.learning.encoder import features_of, load_encoder
from brainmri_core.learning.inference import predict
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import ARCHIVES_VARIABLE, Layout
from brainmri_core.project.logs import StageLog
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import PackPointer
from brainmri_core.project.sample_table import read_samples, write_samples
from brainmri_core.resize import resize
from brainmri_core.split import split
from brainmri_core.splitting.assignment import assign_folds, independent_units
from brainmri_core.system.checksums import sha256_json
from brainmri_core.system.json_files import read_json
from brainmri_core.train import train

KEY, ARCHIVE = "sartajbhuvaji/brain-tumor-classification-mri", "brain-tumor-classification-mri.zip"
FOLDS, NEIGHBOURS, COMPONENTS = 5, 15, 150


def prepare(root: Path, size: int) -> tuple[Job, PackPointer, pd.DataFrame, U8, dict[str, str]]:
    """Fetch, split with the wrong labels in place, and resize; return the data and the right labels."""
    archive = Path(os.environ.get(ARCHIVES_VARIABLE, "/nonexistent")) / ARCHIVE
    if not archive.is_file():
        raise SystemExit(f"set {ARCHIVES_VARIABLE} to the folder that holds {ARCHIVE}")
    entry = load_catalogue()[KEY]
    job = Job(Layout(root=root), f"bench-{time.time_ns()}", entry, StageLog("bench", "r", KEY, []))
    fetched = write_pointer(job.layout, fetch(FetchConfig(archive=str(archive)), job))
    mapping = write_pointer(job.layout, split(SplitConfig(seed=42, corrections="ignore"), fetched, job))
    known = read_json(job.layout.absolute(mapping.split_json))["label_corrections"]
    thumbs = np.load(job.layout.absolute(mapping.samples).with_name("thumbs.npy"), allow_pickle=False)
    pack = write_pointer(job.layout, resize(ResizeConfig(size=size), mapping, job))
    table = read_samples(job.layout.absolute(pack.samples))
    used = ((table["row"] >= 0) & (table["split"] != "excluded")).to_numpy()
    right = {path: item["right"] for path, item in known.items()}
    return job, pack, table[used].reset_index(drop=True), thumbs[used], right


def look_up(vectors: F32, labels: I64, train_rows: I64, rows: I64, k: int) -> F64:
    """Return the share of each class among the nearest training images."""
    likeness = vectors[rows] @ vectors[train_rows].T
    nearest = np.argpartition(-likeness, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    return np.stack([(labels[train_rows][nearest] == label).mean(axis=1) for label in range(k)], axis=1)


def linear(vectors: F32, labels: I64, train_rows: I64, rows: I64, k: int) -> F64:
    """Return the probabilities of a logistic regression on principal components."""
    components = PCA(COMPONENTS, random_state=0).fit(vectors[train_rows])
    model = LogisticRegression(C=10, max_iter=2000).fit(
        components.transform(vectors[train_rows]), labels[train_rows]
    )
    result = np.zeros((len(rows), k))
    result[:, model.classes_] = model.predict_proba(components.transform(vectors[rows]))
    return result


def network(job: Job, pack: PackPointer, table: pd.DataFrame, held: Mask, given: argparse.Namespace) -> F64:
    """Train from scratch on the images that are not held out, and return the probabilities of those that are."""
    own = replace(job, run_id=f"network-{time.time_ns()}")
    folder = job.layout.root / "folds" / own.run_id
    folder.mkdir(parents=True)
    write_samples(folder / "samples.parquet", table.assign(split=np.where(held, "test", "train"), fold=-1))
    fold = pack.model_copy(
        update={
            "samples": job.layout.relative(folder / "samples.parquet"),
            "content_hash": sha256_json(own.run_id),
        }
    )
    recipe = load_config(config_file("experiments/from-scratch.yaml")).train.model_dump()
    recipe["data"] |= {"image_size": given.size, "seed": 42}
    recipe["model"]["pretrained"] = False
    recipe["loop"]["epochs"] = given.epochs
    pointer = train(TrainConfig.model_validate(recipe), fold, own)
    device = choose_device(job.env)
    model, meta = load_model(job.layout.absolute(pointer.checkpoint), device)
    found = predict(
        model, open_pack(job.layout, pack), table["row"].to_numpy(np.int64)[held], meta.preprocessing,
        device=device, batch_size=64, precision=choose_precision("auto", True, device), tta=True, progress=False,
    )  # fmt: skip
    return np.asarray(softmax(found.logits.astype(np.float64), axis=1))


def probe(job: Job, pack: PackPointer, table: pd.DataFrame, fold: I64) -> F64:
    """Return probabilities by linear models on frozen features; each image is predicted by one that saw nothing of its fold."""
    recipe = load_config(config_file("experiments/quick.yaml")).train
    encoder = load_encoder(
        recipe.model, recipe.probe.depths, image_size=pack.size, precision="auto", seed=42, pack=pack, job=job
    )
    features, _ = features_of(encoder, pack, job.layout, job.log, 32)
    # the images of the test split as well: here nothing is judged but the labels
    found = fold_predictions(
        features,
        table.assign(split="train", fold=fold),
        job.entry.classes,
        val_frac=0.2,
        seed=42,
        balanced=True,
    )
    return probabilities_of(table[["path"]].merge(found, on="path"), job.entry.classes)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="project folder to work in")
    parser.add_argument(
        "--model", nargs="+", default=["look-up", "linear"], choices=["look-up", "linear", "probe", "network"]
    )
    parser.add_argument("--epochs", type=int, default=20, help="epochs of the network")
    parser.add_argument("--size", type=int, default=128, help="image side of probe and network, in pixels")
    given = parser.parse_args()
    job, pack, table, thumbs, right = prepare(given.root.resolve(), given.size)
    labels, k = table["class_index"].to_numpy(np.int64), len(job.entry.classes)
    fold = assign_folds(independent_units(table), labels, FOLDS, 42)
    vectors = unit_vectors(thumbs)
    print(
        "| model | candidates | known errors | found | with the right label | ranks |\n|---|---:|---:|---:|---:|---|"
    )
    for name in given.model:
        probabilities = np.zeros((len(table), k))
        if name == "probe":
            probabilities = probe(job, pack, table, fold)
        for number in range(FOLDS) if name != "probe" else ():
            rows, seen = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
            print(f"{name}, fold {number}", file=sys.stderr, flush=True)
            if name == "network":
                probabilities[rows] = network(job, pack, table, fold == number, given)
            else:
                model = look_up if name == "look-up" else linear
                probabilities[rows] = model(vectors, labels, seen, rows, k)
        issues = label_issues(table, probabilities, job.entry.classes)
        ranks = known_error_ranks(issues, {path: right[path] for path in table["path"] if path in right})
        found = ranks.dropna(subset="rank")
        correct = int((found["suggested"] == found["right"]).sum())
        listed = ", ".join(map(str, found["rank"]))
        print(
            f"| {name} | {len(issues)} | {len(ranks)} | {len(found)} | {correct} | {listed or '-'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
