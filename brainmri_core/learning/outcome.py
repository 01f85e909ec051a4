"""The results of a training: checkpoints, history, curves, and the pointer to them."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from brainmri_core.config.training import TrainConfig
from brainmri_core.learning.checkpoint import (
    CheckpointMeta,
    load_checkpoint,
    save_checkpoint,
    save_safetensors,
)
from brainmri_core.learning.device import peak_memory_mib
from brainmri_core.learning.state import Loop, State
from brainmri_core.pictures.curves import draw_curves
from brainmri_core.project.job import Job
from brainmri_core.project.pointers import CheckpointPointer, PackPointer
from brainmri_core.project.provenance import code_version
from brainmri_core.project.sample_table import write_samples
from brainmri_core.system.checksums import sha256_file, sha256_json
from brainmri_core.system.clock import timestamp, utc_now
from brainmri_core.system.storage import atomic_file


def save_best(config: TrainConfig, loop: Loop, state: State, pack: PackPointer, job: Job) -> Path:
    """Write the best weights so far as ``best.pth`` into the run's folder and return its path."""
    best = job.layout.checkpoint_dir(config.io.out_models, job.dataset, job.run_id) / "best.pth"
    meta = _best_meta(config, loop, state, pack, job)
    save_checkpoint(best, state.best_weights, meta)
    return best


def _best_meta(config: TrainConfig, loop: Loop, state: State, pack: PackPointer, job: Job) -> CheckpointMeta:
    meta = _meta(config, pack, job, loop, state.best_epoch + 1, state.best)
    return meta.model_copy(update={"averaged_epochs": state.averaged_epochs})


def write_history(config: TrainConfig, state: State, job: Job) -> Path:
    """Write the epochs so far as ``history.parquet`` into the run's folder and return its path."""
    path = job.layout.training_dir(config.io.out_summary, job.dataset, job.run_id) / "history.parquet"
    write_samples(path, pd.DataFrame(state.history))
    return path


def _meta(
    config: TrainConfig, pack: PackPointer, job: Job, loop: Loop, epoch: int, score: float
) -> CheckpointMeta:
    return CheckpointMeta(
        model_name=config.model.name,
        classes=pack.classes,
        preprocessing=loop.preprocessing,
        train_config=config.model_dump(mode="json"),
        env_config=job.env.model_dump(mode="json"),
        data_hash=pack.content_hash,
        pack_pointer=pack.pointer_path,
        dataset=job.dataset,
        run_id=job.run_id,
        epoch=epoch,
        val_macro_f1=score,
        precision=loop.precision,
        depths=config.probe.depths if config.method != "finetune" else 1,
        code=code_version(),
    )


def write_outcome(
    config: TrainConfig, loop: Loop, state: State, pack: PackPointer, job: Job, tracking: str | None
) -> CheckpointPointer:
    """Write checkpoints, history and curves of a finished training, and return their pointer.

    Parameters
    ----------
    config, loop, state
        The training.
    pack : PackPointer
        The pack that was trained on.
    job : Job
        The run.
    tracking : str or None
        Folder or URL where an experiment tracker shows the training.

    Raises
    ------
    StorageError
        If a file cannot be written.
    """
    layout, history = job.layout, state.history
    folder = layout.checkpoint_dir(config.io.out_models, job.dataset, job.run_id)
    meta = _best_meta(config, loop, state, pack, job)
    last = _meta(config, pack, job, loop, state.epoch, history[-1]["val_macro_f1"])
    save_checkpoint(folder / "last.pth", state.weights(), last)
    best = save_best(config, loop, state, pack, job)
    save_safetensors(folder / "best.safetensors", state.best_weights, meta, sha256_file(best))
    table = write_history(config, state, job)
    curves = table.with_name("curves.png")
    draw_curves(history, curves)
    with (
        best.open("rb") as source,
        atomic_file(layout.configured(config.io.out_models) / "best.pth") as newest,
    ):
        shutil.copyfileobj(source, newest)
    job.log.info(
        "trained",
        best_epoch=meta.epoch,
        val_macro_f1=meta.val_macro_f1,
        checkpoint=layout.relative(best),
        peak_memory_mib=peak_memory_mib(loop.device),
    )
    return CheckpointPointer(
        dataset=job.dataset,
        run_id=job.run_id,
        content_hash=weights_hash(best),
        written_at_utc=timestamp(utc_now()),
        checkpoint=layout.relative(best),
        checkpoint_sha256=sha256_file(best),
        history=layout.relative(table),
        curves=layout.relative(curves),
        model_name=meta.model_name,
        best_epoch=meta.epoch,
        epochs_run=len(history),
        val_macro_f1=meta.val_macro_f1,
        precision=meta.precision,
        pack_pointer=pack.pointer_path or "",
        tracking=tracking,
    )


def weights_hash(path: Path) -> str:
    """Return a hash of a checkpoint's weights and preprocessing that does not depend on the run."""
    meta, weights = load_checkpoint(path)
    digest = hashlib.sha256(
        sha256_json(
            [meta.model_name, meta.classes, meta.preprocessing.model_dump(exclude_defaults=True)]
        ).encode()
    )
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()
