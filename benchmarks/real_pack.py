"""The real data sets as packs, made by the project's own stages, for the training benchmarks and the ablation."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from brainmri_core.config import load_config
from brainmri_core.config.data import FetchConfig, ResizeConfig, SplitConfig
from brainmri_core.fetch import fetch
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import ARCHIVES_VARIABLE, Layout
from brainmri_core.project.logs import Sink, StageLog, stream_sink
from brainmri_core.project.pointer_store import read_pointer, write_pointer
from brainmri_core.project.pointers import CheckpointPointer, PackPointer
from brainmri_core.resize import resize
from brainmri_core.split import split

DATASET = "sartajbhuvaji/brain-tumor-classification-mri"
ARCHIVES = {DATASET: "brain-tumor-classification-mri.zip", "figshare/1512427": "figshare-1512427-jpg.zip"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root", type=Path, required=True, help="folder for the project files; kept and reused"
    )


def make_job(root: Path, run_id: str, sinks: Sequence[Sink] | None = None, dataset: str = DATASET) -> Job:
    """Return a job on a real data set; its log goes to `sinks`, by default to the console."""
    log = StageLog(
        "benchmark", run_id, dataset, list(sinks) if sinks is not None else [stream_sink(sys.stderr)]
    )
    return Job(layout=Layout(root=root.resolve()), run_id=run_id, entry=load_catalogue()[dataset], log=log)


def real_pack(root: Path, size: int, dataset: str = DATASET) -> PackPointer:
    """Fetch, split and resize once; later calls with the same root, of one data set, and size read the pointer.

    The archive is looked for in the folder that BRAINMRI_ARCHIVES names.
    """
    job = make_job(root, f"pack-{size}", dataset=dataset)
    kept = root / f"pack-{size}.txt"
    if kept.is_file():
        return read_pointer(job.layout, PackPointer, job.layout.absolute(kept.read_text()))
    archive = Path(os.environ.get(ARCHIVES_VARIABLE, "/nonexistent")) / ARCHIVES[dataset]
    if not archive.is_file():
        raise SystemExit(f"set {ARCHIVES_VARIABLE} to the folder that holds {archive.name}")
    config = load_config()
    fetched = write_pointer(job.layout, fetch(FetchConfig(archive=str(archive)), job))
    split_config, resize_config = config.stage("split"), config.resize.model_copy(update={"size": size})
    assert isinstance(split_config, SplitConfig) and isinstance(resize_config, ResizeConfig)
    mapping = write_pointer(job.layout, split(split_config, fetched, job))
    pack = write_pointer(job.layout, resize(resize_config, mapping, job))
    assert pack.pointer_path is not None
    kept.write_text(pack.pointer_path)
    return pack


def keep_checkpoint(job: Job, pointer: CheckpointPointer) -> CheckpointPointer:
    """Write a checkpoint's pointer, so that other stages can follow it."""
    return write_pointer(job.layout, pointer)
