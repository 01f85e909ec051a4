"""Two small data sets in one project: the second holds planted copies, shared patients and a class of its own."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from brainmri_core.config import with_seed
from brainmri_core.config.data import FetchConfig, PhantomConfig, ResizeConfig, SplitConfig
from brainmri_core.config.external import ExternalConfig
from brainmri_core.evaluate import evaluate
from brainmri_core.evaluation.contender import packed_samples
from brainmri_core.evaluation.tested_model import validation_of
from brainmri_core.external import evaluate_elsewhere
from brainmri_core.fetch import fetch
from brainmri_core.learning.checkpoint import load_checkpoint
from brainmri_core.project.catalogue import DatasetEntry, load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import Record, StageLog
from brainmri_core.project.pointer_store import follow, write_pointer
from brainmri_core.project.pointers import (
    CheckpointPointer,
    EvaluationPointer,
    ExternalEvaluationPointer,
    MappingPointer,
    PackPointer,
)
from brainmri_core.resize import resize
from brainmri_core.sources.phantom import read_truth, write_phantom
from brainmri_core.split import split
from brainmri_core.train import train
from tests.core.evaluation_case import evaluate_config
from tests.core.learning.training_pack import config as train_config

HOME, AWAY = "brainmri/phantom", "owner/away"
NEVER_LEARNT = "abscess"
FOLDERS = {"glioma": "glioma_tumor", "meningioma": "meningioma_tumor", "notumor": "no_tumor"}
PLANTED = {
    "copy_of_training": 5,
    "copy_of_validation": 2,
    "patient_in_training": 3,
    "patient_in_validation": 3,
    "related_to_copy": 3,
}
TESTED = 2


def away_entry(key: str = AWAY, **fields: Any) -> DatasetEntry:
    """The second data set's catalogue entry."""
    classes = ["glioma", "meningioma", NEVER_LEARNT, "notumor"]
    aliases = {"glioma_tumor": "glioma", "meningioma_tumor": "meningioma", "no_tumor": "notumor"}
    return DatasetEntry.model_validate(
        {"key": key, "source": "archive", "classes": classes, "aliases": aliases, **fields}
    )


@dataclass(frozen=True)
class TwoSites:
    """A trained and evaluated checkpoint of one data set, and the pack of another."""

    home: Job
    away: Job
    home_pack: PackPointer
    pack: PackPointer
    checkpoint: CheckpointPointer
    evaluation: EvaluationPointer
    records: list[Record]
    images: dict[str, int]

    def measure(
        self,
        run_id: str,
        *,
        pack: PackPointer | None = None,
        weights: Path | None = None,
        entry: DatasetEntry | None = None,
        trained_on: str = HOME,
        **config: Any,
    ) -> ExternalEvaluationPointer:
        """Evaluate the checkpoint on the second data set."""
        job = replace(self.away, run_id=run_id, entry=entry or self.away.entry)
        path = weights or self.home.layout.absolute(self.checkpoint.checkpoint)
        return evaluate_elsewhere(external_config(**config), trained_on, path, pack or self.pack, job)


def external_config(**fields: Any) -> ExternalConfig:
    """Return a quick external evaluation."""
    quick = {"bootstrap_resamples": 200, "recalibration_resamples": 40, "shift_permutations": 99}
    value = {**quick, "recalibration_images": [10, 200], **fields}
    filled = with_seed(ExternalConfig.model_validate(value), 42)
    assert isinstance(filled, ExternalConfig)
    return filled


def two_sites(root: Path) -> TwoSites:
    """Train on the synthetic data set, then make a second one that shares images and patients with it."""
    torch.set_num_threads(1)
    records: list[Record] = []
    layout = Layout(root=root)
    home = Job(layout, "r1", load_catalogue()[HOME], StageLog("test", "r1", HOME, [records.append], "DEBUG"))
    phantom = PhantomConfig(subjects_per_class=14, slices_per_subject=3, copies_per_kind=0, label_conflicts=0)
    fetched = write_pointer(layout, fetch(FetchConfig(phantom=phantom), home))
    truth = read_truth(layout.absolute(fetched.dataset_root))
    names = {image.path: image.subject for image in truth.images}
    mapping = write_pointer(layout, split(_by_patient(root / "home.csv", names), fetched, home))
    pack = write_pointer(layout, resize(ResizeConfig(size=64), mapping, home))
    training = train_config(
        loop={"epochs": 6},
        data={"batch_size": 16, "image_size": 32},
        model={"name": "resnet18"},
        optim={"lr": 1e-3, "schedule": "one_cycle"},
    )
    checkpoint = write_pointer(layout, train(training, pack, home))
    evaluation = write_pointer(
        layout, evaluate(evaluate_config(), checkpoint, pack, replace(home, run_id="e1"))
    )
    source = root.parent / "away"
    patients, counts = draw_away(source, home, pack, checkpoint, names)
    away = replace(home, entry=away_entry(), log=StageLog("test", "a1", AWAY, [records.append], "DEBUG"))
    other = pack_folder(source, away, _by_patient(root / "away.csv", patients), 64)
    return TwoSites(home, away, pack, other, checkpoint, evaluation, records, counts)


def pack_folder(source: Path, job: Job, config: SplitConfig, size: int) -> PackPointer:
    """Fetch a folder, split it and pack it."""
    layout = job.layout
    fetched = write_pointer(layout, fetch(FetchConfig(archive=str(source)), job))
    mapping = write_pointer(layout, split(config, fetched, job))
    return write_pointer(layout, resize(ResizeConfig(size=size), mapping, job))


def _by_patient(path: Path, names: dict[str, str]) -> SplitConfig:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([("path", "patient"), *names.items()])
    return SplitConfig(seed=42, patients_csv=str(path))


def draw_away(
    folder: Path, home: Job, pack: PackPointer, checkpoint: CheckpointPointer, subjects: dict[str, str]
) -> tuple[dict[str, str], dict[str, int]]:
    """Draw the second data set; return its patients by path, and its images by class."""
    layout = home.layout
    drawn = folder.with_name("drawn")
    fresh = write_phantom(
        drawn,
        PhantomConfig(
            seed=99, subjects_per_class=9, slices_per_subject=3, copies_per_kind=0, label_conflicts=0
        ),
    )
    patients: dict[str, str] = {}
    paths: dict[str, list[str]] = {}
    for image in fresh.images:
        name = {"pituitary": NEVER_LEARNT}.get(image.label) or FOLDERS[image.label]
        path = f"{name}/new {image.subject} {Path(image.path).stem}.png"
        (folder / name).mkdir(parents=True, exist_ok=True)
        _other_scanner(drawn / image.path, folder / path)
        patients[path] = f"away {image.subject}"
        paths.setdefault(image.subject, []).append(path)
    table = packed_samples(pack, home)
    validation = validation_of(table, load_checkpoint(layout.absolute(checkpoint.checkpoint))[0])
    common = table["label"].isin(list(FOLDERS))
    root = layout.absolute(follow(layout, MappingPointer, pack.mapping_pointer).dataset_root)
    sides = {
        "training": table[(table["split"] == "train") & ~validation & common],
        "validation": table[validation & common],
        "test": table[(table["split"] == "test") & common],
    }

    def plant(side: str, number: int, how: str) -> str:
        row = sides[side].iloc[number * 4]
        name = f"{FOLDERS[row['label']]}/{side} {how} {number}{Path(row['path']).suffix if how == 'file' else '.png'}"
        _copy(root / row["path"], folder / name, how)
        return name

    planted = [
        plant("training", number, how)
        for number, how in enumerate(("file", "mirrored", "brighter", "turned", "file"))
    ]
    planted += [plant("validation", 0, "file"), plant("validation", 1, "mirrored")]
    planted += [plant("test", 0, "file"), plant("test", 1, "brighter")]
    relatives, known, selected = _first_subjects(paths)
    for path in [planted[0], *relatives]:
        patients[path] = "known from a copy"
    for path in known:
        patients[path] = subjects[sides["training"].iloc[30]["path"]]
    for path in selected:
        patients[path] = subjects[sides["validation"].iloc[9]["path"]]
    return patients, dict(Counter(path.partition("/")[0] for path in [*chain(*paths.values()), *planted]))


def _first_subjects(paths: dict[str, list[str]]) -> list[list[str]]:
    """Return the images of the first subject of each class that both data sets have."""
    groups = list(paths.values())
    return [next(group for group in groups if group[0].startswith(f"{name}/")) for name in FOLDERS.values()]


def _other_scanner(source: Path, target: Path) -> None:
    """Give an image another contrast, noise and size."""
    with Image.open(source) as image:
        gray = image.convert("L").resize((200, 200), Image.Resampling.BILINEAR)
    rng = np.random.default_rng(len(target.name))
    pixels = 255 * (np.asarray(gray) / 255) ** 1.4 * 0.8 + rng.normal(0, 6, (200, 200))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(target)


def _copy(source: Path, target: Path, how: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if how == "file":
        shutil.copyfile(source, target)
        return
    with Image.open(source) as image:
        pixels = np.asarray(image.convert("L"))
    changed = {
        "mirrored": pixels[:, ::-1],
        "turned": np.rot90(pixels, 2),
        "brighter": (pixels * 0.8 + 20).clip(0, 255).astype(np.uint8),
    }[how]
    Image.fromarray(np.ascontiguousarray(changed)).save(target)
