"""A small project with everything an evaluation needs: data, split, pack and a trained checkpoint."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from PIL import Image

from brainmri_core.config import with_seed
from brainmri_core.config.data import FetchConfig, ResizeConfig, SplitConfig
from brainmri_core.config.evaluation import EvaluateConfig
from brainmri_core.evaluate import evaluate
from brainmri_core.fetch import fetch
from brainmri_core.project.catalogue import DatasetEntry, load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import Record, StageLog
from brainmri_core.project.pointer_store import latest_pointer, write_pointer
from brainmri_core.project.pointers import (
    CheckpointPointer,
    EvaluationPointer,
    FetchPointer,
    MappingPointer,
    PackPointer,
    Pointer,
)
from brainmri_core.resize import resize
from brainmri_core.split import split
from brainmri_core.train import train
from tests.core.learning.training_pack import config as train_config
from tests.core.learning.training_pack import draw
from tests.once import once

P = TypeVar("P", bound=Pointer)
_EVALUATION = "evaluation.json"
HOSTILE_CLASSES = ['gli<b>oma & "co"', "notumor", "pituitary|`x`</script>"]
HOSTILE_FILE = "\"><img src=x onerror=alert(1)> {i} {{7*7}} 'é.png"


@dataclass(frozen=True)
class Case:
    """A data set up to a trained checkpoint."""

    job: Job
    fetched: FetchPointer
    mapping: MappingPointer
    pack: PackPointer
    checkpoint: CheckpointPointer
    records: list[Record]

    def evaluate(self, run_id: str, pack: PackPointer | None = None, **blocks: Any) -> EvaluationPointer:
        """Evaluate the checkpoint as run `run_id`; `blocks` are of the evaluation's configuration."""
        job = replace(self.job, run_id=run_id)
        return evaluate(evaluate_config(**blocks), self.checkpoint, pack or self.pack, job)

    def file(self, pointer: EvaluationPointer, name: str) -> Path:
        """Return a file of an evaluation's folder."""
        return self.job.layout.absolute(pointer.folder) / name


def evaluate_config(**blocks: Any) -> EvaluateConfig:
    """Return a quick evaluation."""
    value = {"bootstrap_resamples": 100, "data": {"batch_size": 16}, "io": {"top_per_class": 3}, **blocks}
    filled = with_seed(EvaluateConfig.model_validate(value), 42)
    assert isinstance(filled, EvaluateConfig)
    return filled


def prepare(root: Path, entry: DatasetEntry, fetch_config: FetchConfig, size: int, **training: Any) -> Case:
    """Fetch, split, resize and train."""
    torch.set_num_threads(1)
    job, records = _job(root, entry)
    layout = job.layout
    fetched = write_pointer(layout, fetch(fetch_config, job))
    mapping = write_pointer(layout, split(SplitConfig(seed=42), fetched, job))
    pack = write_pointer(layout, resize(ResizeConfig(size=size), mapping, job))
    checkpoint = write_pointer(layout, train(train_config(**training), pack, job))
    return Case(job, fetched, mapping, pack, checkpoint, records)


def reopened(root: Path, entry: DatasetEntry) -> Case:
    """Return the case that `prepare` has left in a folder, or in the one that this folder was copied from."""
    job, records = _job(root, entry)

    def newest(kind: type[P]) -> P:
        found = latest_pointer(job.layout, kind, entry.key)
        assert found is not None
        return found

    parts = newest(FetchPointer), newest(MappingPointer), newest(PackPointer), newest(CheckpointPointer)
    return Case(job, *parts, records)


def _job(root: Path, entry: DatasetEntry) -> tuple[Job, list[Record]]:
    records: list[Record] = []
    return Job(Layout(root=root), "r1", entry, StageLog("test", "r1", entry.key, [records.append])), records


def phantom_case(root: Path) -> Case:
    """Synthetic slices with planted copies and known tumour masks."""
    phantom = {"subjects_per_class": 12, "slices_per_subject": 3, "copies_per_kind": 4, "label_conflicts": 2}
    return prepare(
        root,
        load_catalogue()["brainmri/phantom"],
        FetchConfig.model_validate({"phantom": phantom}),
        64,
        loop={"epochs": 3},
        data={"batch_size": 16},
    )


def evaluated_case(factory: pytest.TempPathFactory, folder: Path) -> tuple[Case, EvaluationPointer]:
    """A copy of `phantom_case`, made once in the session, and the evaluation of its checkpoint."""

    def make(made: Path) -> None:
        (made / _EVALUATION).write_text(phantom_case(made).evaluate("e1").model_dump_json())

    shutil.copytree(once(factory, "phantom-case", make), folder)
    pointer = EvaluationPointer.model_validate_json((folder / _EVALUATION).read_text())
    return reopened(folder, load_catalogue()["brainmri/phantom"]), pointer


def hostile_case(root: Path) -> Case:
    """A data set whose class folders and file names would break a careless page."""
    source = root.parent / "hostile"
    rng = np.random.default_rng(0)
    for label, name in enumerate(HOSTILE_CLASSES):
        folder = source / name.replace("/", "∕")
        folder.mkdir(parents=True)
        for i in range(24):
            Image.fromarray(draw(label, 40, rng)).save(folder / HOSTILE_FILE.replace("{i}", str(i)))
    classes = [name.replace("/", "∕") for name in HOSTILE_CLASSES]
    entry = DatasetEntry(
        key="owner/hostile", source="archive", title="<u>T</u>", licence="<i>none</i>", classes=classes
    )
    return prepare(
        root, entry, FetchConfig(archive=str(source)), 32, loop={"epochs": 1}, data={"batch_size": 8}
    )
