"""The smallest project that runs all six stages, and one stage run the way the graph runs it."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from brainmri_core.config import STAGES, PipelineConfig
from brainmri_core.config.base import validate_config
from brainmri_core.config.data import PhantomConfig
from brainmri_core.gc import remove_leftovers
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import stage_log
from brainmri_core.project.pointer_store import latest_pointer, write_pointer
from brainmri_core.project.pointers import (
    CheckpointPointer,
    EvaluationPointer,
    FetchPointer,
    MappingPointer,
    PackPointer,
    Pointer,
    ValidationPointer,
)
from brainmri_core.project.run_record import make_plan, record_pointer, stage_record, write_plan
from brainmri_core.project.run_schema import PlannedStage
from brainmri_core.sources.phantom import write_phantom

PHANTOM = "brainmri/phantom"
POINTERS: dict[str, type[Pointer]] = {
    "fetch": FetchPointer,
    "split": MappingPointer,
    "resize": PackPointer,
    "validate": ValidationPointer,
    "train": CheckpointPointer,
    "evaluate": EvaluationPointer,
}
VARIANTS = {"old": 1, "new": 2}


def _folder(prefix: str) -> Path:
    """Make a folder that lasts as long as the session."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def archives() -> Path:
    """Return a folder with two small archives, ``old.zip`` and ``new.zip``, made once a session."""
    folder = _folder("brainmri-archives-")
    for name, seed in VARIANTS.items():
        write_phantom(
            folder / name,
            PhantomConfig(
                seed=seed, subjects_per_class=4, slices_per_subject=2, copies_per_kind=1, label_conflicts=0
            ),
        )
        shutil.make_archive(str(folder / name), "zip", folder / name)
        shutil.rmtree(folder / name)
    return folder


def configuration(variant: str, **changes: Any) -> PipelineConfig:
    """Return a configuration whose every stage takes about a second at most; variants differ in data and seed."""
    value: dict[str, Any] = {
        "env": {"seed": VARIANTS[variant], "prefer_cuda": False},
        "fetch": {"archive": str(archives() / f"{variant}.zip")},
        "split": {"folds": 2, "dest": "data/split_tree"},
        "resize": {"size": 64, "export_tree": "data/resized_tree"},
        "validate": {"fail_on": "never"},
        "train": {
            "data": {"image_size": 64, "batch_size": 16},
            "model": {"name": "mobilenet_v3_small", "pretrained": False},
            "loop": {"epochs": 1, "precision": "fp32"},
        },
        "evaluate": {"bootstrap_resamples": 10, "io": {"top_per_class": 1}},
    }
    for stage, block in changes.items():
        value[stage] = {**value.get(stage, {}), **block}
    return validate_config(PipelineConfig, value, "test")


def run_stage(root: Path, stage: str, run_id: str, config: PipelineConfig, url: str | None = None) -> Pointer:
    """Run one stage on the newest pointers: plan, manifest, result, pointer, in the order the graph writes them.

    With a URL the project is in an object store, and `root` holds this machine's copies.
    """
    layout = Layout(root=root) if url is None else Layout.at(url, str(root))
    entry = load_catalogue()[PHANTOM]
    remove_leftovers(layout, config)
    settings = config.stage(stage)  # type: ignore[arg-type]
    write_plan(
        layout,
        make_plan(
            run_id=run_id,
            dagster_run_id=None,
            dataset=PHANTOM,
            command="test",
            env=config.env.model_dump(mode="json"),
            stages=[
                PlannedStage(stage=stage, asset=stage, config=settings.model_dump(mode="json", by_alias=True))
            ],
        ),
    )
    with (
        stage_record(layout, run_id, stage, stage) as record,
        stage_log(stage, run_id, PHANTOM, config.log, layout.run_dir(run_id), console=False) as log,
    ):
        job = Job(layout=layout, run_id=run_id, entry=entry, log=log, env=config.env)
        pointer = _BODIES[stage](settings, job)
        record.result(pointer)
    stored = write_pointer(layout, pointer)
    record_pointer(layout, run_id, stage, stored)
    return stored


def run_all(root: Path, run_id: str, variant: str) -> dict[str, Pointer]:
    """Run the six stages, each as a run of its own."""
    config = configuration(variant)
    return {stage: run_stage(root, stage, f"{run_id}-{stage}", config) for stage in STAGES}


def _newest(job: Job, pointer_type: type[Any]) -> Any:
    found = latest_pointer(job.layout, pointer_type, job.dataset)
    assert found is not None
    return found


def _fetch(config: Any, job: Job) -> Pointer:
    from brainmri_core.fetch import fetch

    return fetch(config, job)


def _split(config: Any, job: Job) -> Pointer:
    from brainmri_core.split import split

    return split(config, _newest(job, FetchPointer), job)


def _resize(config: Any, job: Job) -> Pointer:
    from brainmri_core.resize import resize

    return resize(config, _newest(job, MappingPointer), job)


def _validate(config: Any, job: Job) -> Pointer:
    from brainmri_core.validate import validate

    return validate(config, _newest(job, PackPointer), job)


def _train(config: Any, job: Job) -> Pointer:
    from brainmri_core.train import train

    return train(config, _newest(job, PackPointer), job)


def _evaluate(config: Any, job: Job) -> Pointer:
    from brainmri_core.evaluate import evaluate

    return evaluate(config, _newest(job, CheckpointPointer), _newest(job, PackPointer), job)


_BODIES: dict[str, Callable[[Any, Job], Pointer]] = {
    "fetch": _fetch,
    "split": _split,
    "resize": _resize,
    "validate": _validate,
    "train": _train,
    "evaluate": _evaluate,
}


def launch_file(folder: Path, variant: str, **changes: Any) -> Path:
    """Write a variant's configuration as the YAML that the command line reads."""
    path = folder / f"{variant}.yaml"
    value = configuration(variant, **changes).model_dump(mode="json", by_alias=True)
    path.write_text(yaml.safe_dump(value))
    return path
