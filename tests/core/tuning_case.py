"""A small project with a split of two folds, studies to try on it, and trainings of a second each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from brainmri_core.config.data import FetchConfig, ResizeConfig, SplitConfig
from brainmri_core.config.training import TrainConfig
from brainmri_core.config.tuning import TuneConfig
from brainmri_core.fetch import fetch
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import StageLog
from brainmri_core.project.pointer_store import latest_pointer, write_pointer
from brainmri_core.project.pointers import PackPointer, TuningPointer
from brainmri_core.resize import resize
from brainmri_core.split import split
from brainmri_core.system.store_url import is_url
from brainmri_core.tuning import tune
from tests.core.learning.training_pack import config as train_config

PHANTOM = "brainmri/phantom"
SPACE = """
space:
  train.optim.lr: {low: 1e-4, high: 1e-1, log: true}
  train.optim.schedule: {}
  train.optim.label_smoothing: {low: 0, high: 0.2}
"""


def project_in(root: Path | str, run_id: str) -> Layout:
    """Return a project in a folder, or in an object store; each run is on a machine of its own there."""
    return Layout.at(str(root), f"machine-{run_id}") if is_url(str(root)) else Layout(root=Path(root))


def job_in(root: Path | str, run_id: str) -> Job:
    """Return a job on the phantom."""
    return Job(
        project_in(root, run_id), run_id, load_catalogue()[PHANTOM], StageLog("tune", run_id, PHANTOM, [])
    )


def make_packed(root: Path | str) -> PackPointer:
    """Fetch, split into two folds and resize."""
    job = job_in(root, "data")
    phantom = {"subjects_per_class": 5, "slices_per_subject": 4, "copies_per_kind": 1, "label_conflicts": 0}
    fetched = write_pointer(job.layout, fetch(FetchConfig.model_validate({"phantom": phantom}), job))
    mapping = write_pointer(job.layout, split(SplitConfig(seed=42, folds=2), fetched, job))
    return write_pointer(job.layout, resize(ResizeConfig(size=32), mapping, job))


def pack_in(root: Path | str, run_id: str = "data") -> PackPointer:
    """Return the newest pack of a project."""
    pack = latest_pointer(project_in(root, run_id), PackPointer, PHANTOM)
    assert pack is not None
    return pack


def around(**blocks: dict[str, Any]) -> TrainConfig:
    """Return the settings around a study's: one epoch of a small network."""
    return train_config(**{"data": {"batch_size": 16, "val_frac": 0.25}, "loop": {"epochs": 1}, **blocks})


def search(
    root: Path | str, run_id: str, trials: int, *, pack: PackPointer | None = None, **more: Any
) -> TuningPointer:
    """Work on the study `small`."""
    settings = {"study": "small", "trials": trials, "seed": 1, "random_trials": 2, "pruner": "none"}
    given = {key: more.pop(key) for key in ("usual", "fit", "train") if key in more}
    config = TuneConfig.model_validate({**settings, **more})
    job = replace(job_in(root, run_id))
    return tune(config, given.pop("train", around()), pack or pack_in(root, run_id), job, **given)
