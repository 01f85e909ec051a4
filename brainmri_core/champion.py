"""Champion: the checkpoint in use, replaced only by one that is better beyond noise on images neither has learnt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from brainmri_core.config.evaluation import EvaluateConfig
from brainmri_core.grouping import independent_units
from brainmri_core.images.pack import open_pack
from brainmri_core.job import Job
from brainmri_core.layout import CHAMPION_FILE, timestamp, utc_now
from brainmri_core.learning.checkpoint import load_model
from brainmri_core.learning.device import choose_device
from brainmri_core.learning.inference import predict
from brainmri_core.locks import exclusive
from brainmri_core.pointers import (
    ChampionPointer,
    CheckpointPointer,
    EvaluationPointer,
    PackPointer,
    follow,
    latest_pointer,
)
from brainmri_core.reporting.paired import paired_macro_f1
from brainmri_core.reporting.predictions import read_predictions
from brainmri_core.samples import read_samples
from brainmri_core.storage import atomic_file, check_sha256, sha256_file, sha256_json, write_json

I64 = npt.NDArray[np.int64]
MARGIN = 0.0


@dataclass(frozen=True)
class _Comparison:
    """Macro F1 of both models on the same images, and the interval of the difference over resampled groups."""

    images: int
    challenger: float | None = None
    champion: float | None = None
    interval: list[float] | None = None
    obstacle: str | None = None


def crown(
    config: EvaluateConfig,
    out_models: str,
    checkpoint: CheckpointPointer,
    evaluation: EvaluationPointer,
    job: Job,
) -> ChampionPointer:
    """Decide whether a checkpoint becomes the champion of its data set.

    Parameters
    ----------
    config : EvaluateConfig
        Batch size, resamples and seed of the comparison.
    out_models : str
        Folder of models; the champion is ``<out_models>/<owner>/<slug>/champion.pth``.
    checkpoint, evaluation : pointers
        The challenger and its evaluation on the newest test split.
    job : Job
        The run.

    Returns
    -------
    ChampionPointer
        ``crowned`` and ``reason`` say what was decided. A champion is replaced where the whole 95% interval of the
        difference in macro F1 (paired bootstrap over test groups) lies above zero; only images whose group the
        champion did not train on count.
    """
    layout = job.layout
    folder = layout.checkpoint_dir(out_models, job.dataset, CHAMPION_FILE).parent
    with exclusive(layout.lock("champion", job.dataset)):
        current = latest_pointer(layout, ChampionPointer, job.dataset)
        crowned, reason, comparison = _decide(config, current, checkpoint, evaluation, job)
        holder = checkpoint.pointer_path if crowned or current is None else current.champion_checkpoint
        owner = checkpoint if crowned or current is None else follow(layout, CheckpointPointer, str(holder))
        weights = folder / CHAMPION_FILE
        # Also where nobody was crowned: a run that ended between the weights and its pointer leaves others' weights.
        if not weights.is_file() or sha256_file(weights) != owner.checkpoint_sha256:
            _install(layout.absolute(owner.checkpoint), owner.checkpoint_sha256, weights)
        record: dict[str, Any] = {
            "champion_checkpoint": holder,
            "challenger_checkpoint": checkpoint.pointer_path,
            "crowned": crowned,
            "reason": reason,
            "comparison": None if comparison is None else comparison.__dict__,
            "decided_at_utc": timestamp(utc_now()),
        }
        write_json(folder / job.run_id / "champion_decision.json", record)
    job.log.info("crowned" if crowned else "kept as a candidate", reason=reason)
    return ChampionPointer(
        dataset=job.dataset,
        run_id=job.run_id,
        content_hash=sha256_json([holder, evaluation.content_hash, crowned]),
        written_at_utc=record["decided_at_utc"],
        champion_checkpoint=str(holder),
        challenger_checkpoint=str(checkpoint.pointer_path),
        weights=layout.relative(weights),
        crowned=crowned,
        reason=reason,
        decision=layout.relative(folder / job.run_id / "champion_decision.json"),
    )


def _decide(
    config: EvaluateConfig,
    current: ChampionPointer | None,
    checkpoint: CheckpointPointer,
    evaluation: EvaluationPointer,
    job: Job,
) -> tuple[bool, str, _Comparison | None]:
    if current is None or not job.layout.absolute(current.champion_checkpoint).is_file():
        return True, "There was no champion yet.", None
    champion = follow(job.layout, CheckpointPointer, current.champion_checkpoint)
    if champion.checkpoint_sha256 == checkpoint.checkpoint_sha256:
        return False, "It is the champion already.", None
    found = _compare(config, champion, checkpoint, evaluation, job)
    if found.interval is None:
        obstacle = found.obstacle or f"{found.images} test images new to both models are too few"
        return False, f"It was not compared with the champion: {obstacle}.", found
    low, high = found.interval
    figures = (
        f"macro F1 {found.challenger:.3f} against {found.champion:.3f} on {found.images} test images; 95% interval of the "
        f"difference {low:+.3f} to {high:+.3f}"
    )
    if low > MARGIN:
        return True, f"It is better beyond noise: {figures}.", found
    return False, f"It is not better beyond noise: {figures}.", found


def _compare(
    config: EvaluateConfig,
    champion: CheckpointPointer,
    checkpoint: CheckpointPointer,
    evaluation: EvaluationPointer,
    job: Job,
) -> _Comparison:
    table, classes = read_predictions(job.layout.absolute(evaluation.predictions))
    table = table[table["split"] == "test"].reset_index(drop=True)
    table = table[~_learnt(table, champion, checkpoint, job)].reset_index(drop=True)
    if not len(table):
        return _Comparison(0, obstacle="the champion has learnt every test image or a copy of it")
    if not config.bootstrap_resamples:
        return _Comparison(len(table), obstacle="evaluate.bootstrap_resamples is 0")
    theirs = _called_by(champion, checkpoint, table, config, classes, job)
    if theirs is None:
        return _Comparison(
            len(table), obstacle="the champion knows other classes or takes images of another size"
        )
    challenger, champion_f1, difference = paired_macro_f1(
        table["class_index"].to_numpy(np.int64),
        table["predicted_index"].to_numpy(np.int64),
        theirs,
        independent_units(table),
        classes,
        resamples=config.bootstrap_resamples,
        seed=int(config.data.seed or 0),
    )
    return _Comparison(len(table), challenger, champion_f1, difference)


def _learnt(
    table: pd.DataFrame, champion: CheckpointPointer, checkpoint: CheckpointPointer, job: Job
) -> npt.NDArray[np.bool_]:
    """Mark test images that the champion trained on, or a group member of which it did: the split may have changed."""
    if champion.pack_pointer == checkpoint.pack_pointer:
        return np.zeros(len(table), np.bool_)
    old = _samples(champion, job)
    seen = set(old.loc[old["split"] == "train", "pixel_sha256"])
    new = _samples(checkpoint, job)
    groups = set(new.loc[new["pixel_sha256"].isin(seen), "group"])
    return np.asarray(table["group"].isin(groups), np.bool_)


def _samples(checkpoint: CheckpointPointer, job: Job) -> pd.DataFrame:
    pack = follow(job.layout, PackPointer, checkpoint.pack_pointer)
    return read_samples(
        job.layout.absolute(pack.samples), {"split": "str", "group": "str", "pixel_sha256": "str"}
    )


def _called_by(
    champion: CheckpointPointer,
    checkpoint: CheckpointPointer,
    table: pd.DataFrame,
    config: EvaluateConfig,
    classes: list[str],
    job: Job,
) -> I64 | None:
    """Return the champion's class of each row, or None where it knows other classes or takes images of another size."""
    pack = follow(job.layout, PackPointer, checkpoint.pack_pointer)
    path = job.layout.absolute(champion.checkpoint)
    check_sha256(path, champion.checkpoint_sha256, "champion")
    device = choose_device(job.env)
    model, meta = load_model(path, device)
    if meta.classes != classes or meta.preprocessing.pack_size != pack.size:
        return None
    rows = table["row"].to_numpy(np.int64)
    logits = predict(
        model,
        open_pack(job.layout, pack),
        rows,
        meta.preprocessing,
        device=device,
        batch_size=config.data.batch_size,
    ).logits
    return np.asarray(logits.argmax(axis=1), np.int64)


def _install(source: Path, expected: str, target: Path) -> None:
    check_sha256(source, expected, "checkpoint")
    with source.open("rb") as reader, atomic_file(target) as writer:
        while block := reader.read(1 << 20):
            writer.write(block)
