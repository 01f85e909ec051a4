"""Train: fit a classifier on the training groups and keep its best checkpoint by validation macro F1."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from brainmri_core.arrays import I64
from brainmri_core.config.base import Precision
from brainmri_core.config.training import TrainConfig
from brainmri_core.copies.leaks import find_leaks, read_copies
from brainmri_core.errors import ConfigError, DataError, ModelError
from brainmri_core.images.pack import check_pack, open_pack
from brainmri_core.learning.batches import resident
from brainmri_core.learning.device import (
    choose_device,
    choose_precision,
    seed_everything,
    wrong_in_bf16,
)
from brainmri_core.learning.encoder import preprocessing_for
from brainmri_core.learning.loop import Reporting, run_epochs, validate_weights
from brainmri_core.learning.models import check_name, with_depths
from brainmri_core.learning.outcome import save_best, write_history, write_outcome
from brainmri_core.learning.pretrained import imagenet_statistics, initial_model
from brainmri_core.learning.probe_head import probe_head
from brainmri_core.learning.resume import continue_from, identity_of, owned, resume_file
from brainmri_core.learning.shared_state import SharedState
from brainmri_core.learning.snapshots import judge_snapshots
from brainmri_core.learning.state import Data, Loop, State, new_state, save_state
from brainmri_core.learning.team import Team, share_statistics
from brainmri_core.learning.timm_models import has_one_size
from brainmri_core.learning.tracking import tracked
from brainmri_core.project.job import Job
from brainmri_core.project.pointer_store import follow
from brainmri_core.project.pointers import CheckpointPointer, MappingPointer, PackPointer
from brainmri_core.project.sample_table import read_samples
from brainmri_core.splitting.assignment import validation_mask
from brainmri_core.system.checksums import sha256_json
from brainmri_core.system.storage import make_dirs, remove_folder, remove_stale, storage_error


@dataclass(frozen=True)
class _Sides:
    """Rows of the pack for training and validation, and the class index of every row (-1 where it is in no split)."""

    train: I64
    val: I64
    labels: I64


def train(config: TrainConfig, pack: PackPointer, job: Job, team: Team | None = None) -> CheckpointPointer:
    """Train a classifier.

    Parameters
    ----------
    config : TrainConfig
        Its ``data.seed`` must be set.
    pack : PackPointer
        The packed images of a split; its test rows are never read.
    job : Job
        The run.
    team : Team, optional
        Rank of this process among those that train together, from `learning.team.torchrun_team`. All of them call this
        function with the same arguments; only the first writes.

    Returns
    -------
    CheckpointPointer
        The best checkpoint by macro F1 on the validation groups. ``best.pth`` and ``best.safetensors`` lie in the run's
        folder; ``<out_models>/best.pth`` is a copy of the checkpoint of the newest training. An interrupted training of the
        same config and data resumes where it stopped, with the same final weights as an uninterrupted one.

    Raises
    ------
    ConfigError
        If the team is not of the configured size, or the experiment tracker is not installed.
    DataError
        If a group is on two sides, or a class is missing from training or validation.
    ModelError
        If the model or its weights are not available, or the loss is not finite.
    """
    check_name(config.model.name)
    team = team or Team()
    _check_team(config, team)
    layout = job.layout
    models = layout.configured(config.io.out_models)
    if team.leads:
        for folder in (models, layout.training_dir(config.io.out_summary, job.dataset, job.run_id)):
            _check_writable(folder)
        check_pack(layout, pack)
        # a run that is retried under the same id may have been killed while it wrote
        remove_stale(layout.checkpoint_dir(config.io.out_models, job.dataset, job.run_id))
    loop, state = _begin(config, pack, job, team)
    identity = identity_of(config, loop, pack, job)
    resume = resume_file(models, job.dataset, identity)
    with owned(resume, identity, team, job):
        if config.method != "probe":
            continue_from(config, resume, state, identity, team, job)
        job.log.info(
            "training",
            model=config.model.name,
            device=str(loop.device),
            precision=loop.precision,
            processes=team.size,
            parameters=sum(parameter.numel() for parameter in state.model.parameters()),
            train_images=len(loop.data.train),
            validation_images=len(loop.data.val),
            steps_per_epoch=loop.steps_per_epoch,
        )
        shared = SharedState(resume, job)

        def save() -> None:
            save_state(resume, state, identity)
            shared.pass_on(state)

        pointer = _run(config, loop, state, pack, job, save)
        if team.leads:
            shared.remove()
            remove_folder(resume.parent)
    return pointer.model_copy(update={"recipe": sha256_json([identity["train"], identity["weights_sha256"]])})


def _run(
    config: TrainConfig, loop: Loop, state: State, pack: PackPointer, job: Job, save: Callable[[], None]
) -> CheckpointPointer:
    """Run the epochs, and report them to the log and the tracker; only the first process writes."""
    if not loop.team.leads:
        run_epochs(loop, state, Reporting(save=_nothing, epoch=_nothing, smaller=_nothing))
        return CheckpointPointer.model_validate_json(loop.team.from_leader(bytes))
    with tracked(config, job, pack.content_hash, loop.precision, state.history) as tracker:

        def epoch(record: dict[str, Any]) -> None:
            job.log.info("epoch", **record)
            tracker.epoch(record)
            write_history(config, state, job)

        reporting = Reporting(
            save=save,
            epoch=epoch,
            smaller=lambda parts: job.log.warning("out of memory", batch_computed_in_parts=parts),
            rescue=lambda: str(save_best(config, loop, state, pack, job)),
        )
        if config.method != "probe":
            run_epochs(loop, state, reporting)
            judge_snapshots(loop, state, job.log)
        pointer = write_outcome(config, loop, state, pack, job, tracker.link)
        if pointer.best_epoch == 0:
            job.log.warning(
                "no epoch of fine-tuning was better than the probe it started from, which is kept; "
                "try a lower train.optim.lr",
                learning_rate=config.optim.lr,
                val_macro_f1=pointer.val_macro_f1,
            )
        loop.team.from_leader(lambda: pointer.model_dump_json().encode())
        numbers = {"val_macro_f1": pointer.val_macro_f1, "best_epoch": pointer.best_epoch}
        tracker.finish(job.layout.absolute(pointer.checkpoint), numbers)
    return pointer


def _nothing(*_: object) -> None:
    """Report nothing: only the first process of a team reports."""


def _check_team(config: TrainConfig, team: Team) -> None:
    wanted = config.distributed.processes
    setting = "train.distributed." + ("nproc" if config.distributed.nodes == 1 else "nodes x nproc")
    if team.size != wanted:
        raise ConfigError(
            f"{setting} is {wanted}, but {team.size} process(es) train; start through `brainmri train` or "
            "Dagster, which start them, or set it to the number of processes."
        )
    if config.data.batch_size < team.size:
        raise ConfigError(
            f"train.data.batch_size {config.data.batch_size} is less than {setting} {team.size}, so that a "
            "process would have no image of a batch; raise the one or lower the other."
        )
    if team.size > 1 and config.optim.snapshots:
        raise ConfigError(
            f"train.optim.snapshots takes the statistics of the averaged weights in one process, but {setting} is "
            f"{team.size}; set one of them to its default."
        )
    if team.size > 1 and config.method != "finetune":
        raise ConfigError(
            f"train.method {config.method} fits its linear classifier in one process, but {setting} is "
            f"{team.size}; set it to 1."
        )


def _check_writable(folder: Path) -> None:
    """Raise StorageError where results cannot be written, before hours of training are lost."""
    make_dirs(folder)
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
        raise storage_error(OSError(errno.EROFS if read_only else errno.EACCES, ""), folder)


def _begin(config: TrainConfig, pack: PackPointer, job: Job, team: Team) -> tuple[Loop, State]:
    """Choose the training and validation images, device and precision, and return the state before the first epoch."""
    sides = _sides(config, pack, job)
    device = choose_device(job.env)
    precision = choose_precision(config.loop.precision, config.optim.amp, device)
    seed_everything(config.data.resolved_seed, job.env)
    loop, model = _loop(config, pack, job, sides, device, precision, team)
    if config.method != "probe":
        loop = _with_true_gradients(loop, model, job)
    if team.size > 1:
        model = share_statistics(model, device)
    if config.method == "finetune":
        return loop, new_state(loop, model)
    record = probe_head(loop, model, pack, job, labels=sides.labels, train=sides.train, val=sides.val)
    state = new_state(loop, model)
    if config.method == "probe":
        state.epoch, state.best, state.best_epoch = 1, record["val_macro_f1"], 0
        state.best_weights = {name: value.detach().cpu().clone() for name, value in state.weights().items()}
        state.history.append(record)
    else:  # epoch 0: the probe itself is kept where no epoch of fine-tuning is better
        _, state.best, _ = validate_weights(loop, state.model, state.weights())
        state.best_weights = {name: value.detach().cpu().clone() for name, value in state.weights().items()}
    return loop, state


def _with_true_gradients(loop: Loop, model: torch.nn.Module, job: Job) -> Loop:
    """Change the precision to fp32 where bf16 would give wrong gradients; refuse where the user set bf16."""
    side = loop.config.data.start_size or loop.preprocessing.image_size
    name = wrong_in_bf16(model, loop.preprocessing.channels, side)
    if name is None or loop.device.type != "cpu" or loop.precision != "bf16":
        return loop
    if loop.config.loop.precision == "bf16":
        raise ModelError(
            f"The gradients of {name} in {loop.config.model.name} would be wrong in bf16 on the CPU at {side} pixels; "
            "train larger images, or leave train.loop.precision at auto, which takes fp32 here."
        )
    job.log.warning("images too small for bf16, training in fp32", layer=name, image_size=side)
    return replace(loop, precision="fp32")


def _refuse_copies(table: pd.DataFrame, side: npt.NDArray[np.str_], pack: PackPointer, job: Job) -> None:
    """Refuse a split where an image of validation or test has a copy, or an image of the same patient, in training.

    Validation and test are compared in the same way.
    """
    mapping = follow(job.layout, MappingPointer, pack.mapping_pointer)
    copies = read_copies(job.layout.absolute(mapping.samples).parent)
    for seen, unseen in (("train", "validation"), ("train", "test"), ("validation", "test")):
        leaks = find_leaks(table, copies, side == seen, side == unseen)
        same_patient = leaks["kind"] == "same patient"
        for found, tie, word in (
            (leaks[~same_patient], "have a copy", "of"),
            (leaks[same_patient], "show a patient who is also", "as"),
        ):
            if len(found):
                image, other = (table["path"].iloc[int(found[name].iloc[0])] for name in ("test", "train"))
                raise DataError(
                    f"{len(found)} {unseen} images {tie} in {seen}, the first {image!r} ({word} {other!r}); this data "
                    "would leak, so nothing is trained. Split with split.group_by: auto."
                )


def _sides(config: TrainConfig, pack: PackPointer, job: Job) -> _Sides:
    """Choose the validation groups, and check again that training, validation and test share no group, copy or patient."""
    table = read_samples(
        job.layout.absolute(pack.samples),
        dict.fromkeys(("path", "row", "split", "group", "class_index", "pixel_sha256"), ""),
    )
    table = table[(table["row"] >= 0) & table["split"].isin(["train", "test"])].sort_values(
        "row", ignore_index=True
    )
    seed = config.data.validation_seed
    val = validation_mask(table, config.data.val_frac, seed)
    side = np.where(val, "validation", table["split"].to_numpy(object).astype(str))
    groups = table["group"].to_numpy(object).astype(str)
    straddling = pd.Series(side).groupby(groups).nunique()
    if (straddling > 1).any():
        group = straddling.index[straddling > 1][0]
        raise DataError(
            f"The group {group} is on two sides of the split ({' and '.join(sorted(set(side[groups == group])))}); "
            "this data would leak, so nothing is trained. Run split again."
        )
    _refuse_copies(table, side, pack, job)
    row = table["row"].to_numpy(np.int64)
    labels = np.full(pack.n_images, -1, np.int64)
    labels[row] = table["class_index"].to_numpy(np.int64)
    train, held_out = row[side == "train"], row[side == "validation"]
    for name, rows in (("training", train), ("validation", held_out)):
        missing = sorted(set(range(len(pack.classes))) - set(labels[rows].tolist()))
        if missing:
            raise DataError(
                f"The class {pack.classes[missing[0]]!r} has no image in {name}; "
                "change train.data.val_frac or add images of it."
            )
    return _Sides(train, held_out, labels)


def _loop(
    config: TrainConfig,
    pack: PackPointer,
    job: Job,
    sides: _Sides,
    device: torch.device,
    precision: Precision,
    team: Team,
) -> tuple[Loop, torch.nn.Module]:
    """Load pixels and labels, and make the initial model."""
    image_size = config.data.image_size or pack.size
    if image_size > pack.size:
        job.log.warning("images are enlarged", image_size=image_size, pack_size=pack.size)
    if config.data.start_size is not None and config.data.start_size > image_size:
        raise ConfigError(
            f"train.data.start_size is {config.data.start_size} but training ends at {image_size} pixels; "
            "choose a smaller start_size, or leave it empty."
        )
    first = initial_model(
        config.model,
        num_classes=len(pack.classes),
        pack_channels=pack.channels,
        image_size=image_size,
        log=job.log,
    )
    model, channels = first.model, first.channels
    if config.data.start_size is not None and has_one_size(model):
        raise ConfigError(
            f"{config.model.name} takes images of one size, so that they cannot grow during the training; leave "
            "train.data.start_size empty."
        )
    if config.method != "finetune":
        model = with_depths(model, config.model.name, config.probe.depths)
    packed = open_pack(job.layout, pack)
    used = np.sort(np.concatenate([sides.train, sides.val]))
    # a probe takes its features from the pack, so its pixels need no resizing
    size = pack.size if config.method == "probe" else image_size
    rows = np.arange(len(packed)) if size == pack.size else used
    pixels = resident(packed, rows, size)
    if device.type == "cuda" and pixels.numel() < torch.cuda.mem_get_info()[0] // 2:
        pixels = pixels.to(device)
    train, val = np.searchsorted(rows, sides.train), np.searchsorted(rows, sides.val)
    labels = sides.labels[rows]
    data = Data(pixels, torch.from_numpy(labels), train, val, len(pack.classes))
    # the input of a frozen network must not depend on the choice of training images
    own = imagenet_statistics if config.method != "finetune" else partial(_statistics, pixels, train)
    mean, std = first.normalisation or own(channels)
    preprocessing = preprocessing_for(pack, job, image_size=image_size, channels=channels, mean=mean, std=std)
    weights = None
    if config.optim.class_weights:
        counts = np.bincount(labels[train], minlength=len(pack.classes))
        weights = torch.tensor(len(train) / (len(counts) * counts), dtype=torch.float32, device=device)
    loop = Loop(config, data, preprocessing, device, precision, config.data.resolved_seed, weights, team)
    return loop, model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _statistics(pixels: torch.Tensor, rows: I64, channels: int) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of the training pixels per channel, scaled to [0, 1]."""
    sums, squares, count = torch.zeros(pixels.shape[1]), torch.zeros(pixels.shape[1]), 0
    for start in range(0, len(rows), 256):
        part = pixels[torch.from_numpy(rows[start : start + 256]).to(pixels.device)].cpu().float() / 255
        sums += part.sum(dim=(0, 2, 3))
        squares += (part**2).sum(dim=(0, 2, 3))
        count += part.shape[0] * part.shape[2] * part.shape[3]
    mean = sums / count
    std = (squares / count - mean**2).clamp_min(1e-6).sqrt()
    repeat = channels if len(mean) == 1 else 1
    return [float(x) for x in mean] * repeat, [float(x) for x in std] * repeat
