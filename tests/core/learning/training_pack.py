"""A small packed data set that can be learnt, written the way split and resize write theirs."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from brainmri_core.config import with_seed
from brainmri_core.config.training import TrainConfig
from brainmri_core.learning import loop as loop_module
from brainmri_core.project.job import Job
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import MappingPointer, PackPointer
from brainmri_core.project.sample_table import write_samples
from brainmri_core.system.checksums import sha256_file
from brainmri_core.train import train

CLASSES = ["glioma", "meningioma", "notumor", "pituitary"]


def draw(label: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """A noisy disc whose brightness and ring pattern depend on the class."""
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    centre = rng.uniform(-0.1, 0.1, 2)
    radius = np.hypot(y - centre[0], x - centre[1])
    rings = np.cos(radius * 2 * np.pi * (2 + 3 * label)) * 40
    image = 60 + 40 * label + rings * (radius < 0.45) + rng.normal(0, 6, (size, size))
    return image.clip(0, 255).astype(np.uint8)


def make_pack(
    job: Job,
    *,
    per_class: int = 16,
    size: int = 32,
    colour: bool = False,
    classes: Sequence[str] = CLASSES,
    change: Any = None,
) -> PackPointer:
    """Write a pack and its sample table; two images a group, every fourth group is the test side.

    `change` may edit the table before it is written.
    """
    rng = np.random.default_rng(7)
    folder = job.layout.root / "data" / "packed"
    folder.mkdir(parents=True)
    labels = [index for index in range(len(classes)) for _ in range(per_class)]
    pixels = np.stack([draw(label, size, rng) for label in labels]).astype(np.uint8)
    np.save(folder / "pack.npy", np.stack([pixels] * 3, -1) if colour else pixels)
    table = pd.DataFrame(
        {
            "path": [f"{classes[label]}/{row}.png" for row, label in enumerate(labels)],
            "label": [classes[label] for label in labels],
            "class_index": labels,
            "group": [f"g{row // 2}" for row in range(len(labels))],
            "pixel_sha256": [f"p{row}" for row in range(len(labels))],
            "split": ["test" if row // 2 % 4 == 3 else "train" for row in range(len(labels))],
            "fold": 0,
            "row": np.arange(len(labels)),
            "width": size,
            "height": size,
        }
    )
    if change is not None:
        table = change(table)
    write_samples(folder / "samples.parquet", table)
    mapping = write_pointer(job.layout, _mapping(job, list(classes)), update_latest=False)
    return PackPointer(
        dataset=job.dataset,
        run_id=job.run_id,
        content_hash=sha256_file(folder / "pack.npy"),
        pointer_path="outputs/pointers/pack/x.json",
        written_at_utc="2026-01-01T00:00:00Z",
        pack="data/packed/pack.npy",
        pack_sha256=sha256_file(folder / "pack.npy"),
        samples="data/packed/samples.parquet",
        size=size,
        channels=3 if colour else 1,
        n_images=len(labels),
        mapping_pointer=mapping.pointer_path or "",
        classes=list(classes),
        fit="letterbox",
    )


def _mapping(job: Job, classes: list[str]) -> MappingPointer:
    return MappingPointer(
        dataset=job.dataset,
        run_id=job.run_id,
        content_hash="0" * 64,
        classes=classes,
        num_classes=len(classes),
        index_remap=None,
        path="outputs/index_remap.json",
        written_at_utc="2026-01-01T00:00:00Z",
        samples="data/packed/samples.parquet",
        dataset_root="data",
        split_json="outputs/split.json",
        fetch_pointer=None,
        counts={},
    )


def config(**blocks: dict[str, Any]) -> TrainConfig:
    """A quick training from scratch; `blocks` override, as ``optim={"lr": 1e-3}``."""
    value: dict[str, Any] = {
        "data": {"batch_size": 8, "val_frac": 0.25},
        "model": {"name": "mobilenet_v3_small", "pretrained": False},
        "optim": {"lr": 2e-3, "schedule": "one_cycle"},
        "loop": {"epochs": 2},
    }
    for name, block in blocks.items():
        value[name] = {**value.get(name, {}), **block}
    filled = with_seed(TrainConfig.model_validate(value), 42)
    assert isinstance(filled, TrainConfig)
    return filled


def train_until(
    options: TrainConfig, pack: PackPointer, job: Job, step: int, stop: Callable[[], None]
) -> None:
    """Train until `stop`, called when the `step`-th batch is augmented, interrupts the training."""
    augment, calls = loop_module.augment, itertools.count(1)

    def interrupting(*arguments: Any) -> torch.Tensor:
        if next(calls) == step:
            stop()
        return augment(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop_module, "augment", interrupting)
        train(options, pack, job)


def by_signal() -> None:
    """Interrupt as Ctrl-C does: the training ends after the batch it is in."""
    signal.raise_signal(signal.SIGINT)


def at_once() -> None:
    """Interrupt in the middle of a batch."""
    raise KeyboardInterrupt
