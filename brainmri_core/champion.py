"""Champion: the checkpoint in use, replaced only by one that is better beyond noise on images neither was trained on.

The test split is not used: a model chosen by its score there would have a score that is too good.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainmri_core.arrays import I64
from brainmri_core.config.evaluation import EvaluateConfig
from brainmri_core.errors import IntegrityError, StorageError
from brainmri_core.evaluation.contender import Contender, packed_samples, trained_on
from brainmri_core.evaluation.external_choice import ExternalBasis, compare_elsewhere, external_evaluations
from brainmri_core.evaluation.paired import paired_macro_f1
from brainmri_core.evaluation.selection import BASIS_NAMES, Basis, folds_of_both, predictions_for, same_images
from brainmri_core.evaluation.tested_model import validation_of
from brainmri_core.project.job import Job
from brainmri_core.project.layout import CHAMPION_FILE
from brainmri_core.project.pointer_store import follow, latest_pointer
from brainmri_core.project.pointers import ChampionPointer, CheckpointPointer, EvaluationPointer, PackPointer
from brainmri_core.splitting.assignment import independent_units
from brainmri_core.system.checksums import check_sha256, sha256_file, sha256_json
from brainmri_core.system.clock import timestamp, utc_now
from brainmri_core.system.json_files import write_json
from brainmri_core.system.locks import exclusive
from brainmri_core.system.storage import atomic_file

MARGIN = 0.0


@dataclass(frozen=True)
class _Comparison:
    """Macro F1 of both models on the same images, and the interval of the difference over resampled groups."""

    basis: Basis
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
        Batch size, resamples and seed of the comparison, and the images that it is made on (``choose_by``).
    out_models : str
        Folder of models; the champion is ``<out_models>/<owner>/<slug>/champion.pth``.
    checkpoint, evaluation : pointers
        The challenger, and its evaluation, without which it cannot become the champion.
    job : Job
        The run.

    Returns
    -------
    ChampionPointer
        ``crowned`` and ``reason`` say what was decided. A champion is replaced where the whole 95% interval of the
        difference in macro F1 (paired bootstrap over groups) lies above zero: by out-of-fold predictions where both
        trainings have folds on the same data, else on the challenger's validation images whose group the champion was not
        trained on, or, where ``evaluate.choose_by`` says so, on the other data sets that both were measured on.
        On validation images each model predicts with the preprocessing of its own training, both at the same precision. A
        champion that cannot be compared keeps its title; one whose record or weights are gone loses it.

    Raises
    ------
    IntegrityError
        If the checkpoint that is to be in use is missing or was changed.
    """
    layout = job.layout
    folder = layout.checkpoint_dir(out_models, job.dataset, CHAMPION_FILE).parent
    with exclusive(layout.lock("champion", job.dataset)):
        current = latest_pointer(layout, ChampionPointer, job.dataset)
        weights = folder / CHAMPION_FILE
        crowned, reason, comparison = _decide(config, current, weights, checkpoint, job)
        holder = checkpoint.pointer_path if crowned or current is None else current.champion_checkpoint
        owner = checkpoint if crowned or current is None else follow(layout, CheckpointPointer, str(holder))
        if layout.url is not None:
            # A bucket has no copy: gc keeps the checkpoint of a champion.
            weights = layout.absolute(owner.checkpoint)
        # Also where the champion stays: a run that was killed after it wrote the weights, but before it wrote its
        # pointer, leaves the weights of a checkpoint that is not the champion.
        elif not weights.is_file() or sha256_file(weights) != owner.checkpoint_sha256:
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
    job.log.info("new champion" if crowned else "kept as a candidate", reason=reason)
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
    weights: Path,
    checkpoint: CheckpointPointer,
    job: Job,
) -> tuple[bool, str, _Comparison | None]:
    if current is None:
        return True, "There was no champion yet.", None
    champion = _recorded(current, job)
    file = None if champion is None else _weights_of(champion, weights, job)
    if champion is None or file is None:
        gone = current.champion_checkpoint if champion is None else champion.checkpoint
        text = f"There was a champion, but its checkpoint {gone} is gone or was changed, so that nothing could be compared."
        return True, text, None
    if champion.checkpoint_sha256 == checkpoint.checkpoint_sha256:
        return False, "It is the champion already.", None
    found = _compare(config, champion, file, checkpoint, job)
    images = f"{found.images} {BASIS_NAMES[found.basis]} images"
    if found.interval is None:
        obstacle = found.obstacle or f"{images} are too few"
        return False, f"It was not compared with the champion, which keeps its title: {obstacle}.", found
    low, high = found.interval
    figures = (
        f"macro F1 {found.challenger:.3f} against {found.champion:.3f} on {images} that neither was trained on; 95% interval "
        f"of the difference {low:+.3f} to {high:+.3f}"
    )
    if low > MARGIN:
        return True, f"It is better beyond noise: {figures}.", found
    return False, f"It is not better beyond noise: {figures}.", found


def _recorded(current: ChampionPointer, job: Job) -> CheckpointPointer | None:
    stored = current.champion_checkpoint
    return follow(job.layout, CheckpointPointer, stored) if job.layout.absolute(stored).is_file() else None


def _weights_of(champion: CheckpointPointer, copy: Path, job: Job) -> Path | None:
    """Return the champion's checkpoint; where its file was changed, the copy in use; None where both were changed."""
    for file in (job.layout.absolute(champion.checkpoint), copy):
        if file.is_file() and sha256_file(file) == champion.checkpoint_sha256:
            return file
    return None


def _compare(
    config: EvaluateConfig, champion: CheckpointPointer, file: Path, checkpoint: CheckpointPointer, job: Job
) -> _Comparison:
    if config.choose_by != "own":
        return _elsewhere(config, config.choose_by, champion, checkpoint, job)
    folds = folds_of_both(checkpoint, champion, job.layout)
    if folds is None:
        return _on_validation(config, champion, file, checkpoint, job)
    (ours, classes), (theirs, known) = (predictions_for("out_of_fold", found, job.layout) for found in folds)
    ours, theirs = same_images(ours, theirs)
    if classes != known or not len(ours):
        return _Comparison("out_of_fold", len(ours), obstacle="its folds have other classes or images")
    calls = [table["predicted_index"].to_numpy(np.int64) for table in (ours, theirs)]
    return _paired(config, "out_of_fold", ours, calls, classes)


def _elsewhere(
    config: EvaluateConfig,
    basis: ExternalBasis,
    champion: CheckpointPointer,
    checkpoint: CheckpointPointer,
    job: Job,
) -> _Comparison:
    if not config.bootstrap_resamples:
        return _Comparison(basis, 0, obstacle="evaluate.bootstrap_resamples is 0")
    ours, theirs = (external_evaluations(item, job.layout) for item in (checkpoint, champion))
    resamples, seed = config.bootstrap_resamples, config.data.resolved_seed
    found = compare_elsewhere(ours, theirs, basis, job.layout, resamples=resamples, seed=seed)
    if isinstance(found, str):
        return _Comparison(basis, 0, obstacle=found)
    return _Comparison(basis, found.images, found.ours, found.theirs, found.interval)


def _on_validation(
    config: EvaluateConfig, champion: CheckpointPointer, file: Path, checkpoint: CheckpointPointer, job: Job
) -> _Comparison:
    """Let both models predict the challenger's validation images that the champion was not trained on."""
    pack = follow(job.layout, PackPointer, checkpoint.pack_pointer)
    ours = Contender.load(checkpoint, job.layout.absolute(checkpoint.checkpoint), config, job)
    theirs = Contender.load(champion, file, config, job)
    if set(ours.meta.classes) != set(theirs.meta.classes):
        return _Comparison("validation", 0, obstacle="the champion knows other classes")
    packed = packed_samples(pack, job)
    table = packed[validation_of(packed, ours.meta)].reset_index(drop=True)
    try:
        table = table[~trained_on(table, packed, pack, champion, theirs.meta, job)].reset_index(drop=True)
        if not len(table):
            return _Comparison(
                "validation",
                0,
                obstacle="the champion was trained on every validation image, or a relative of it",
            )
        calls = [contender.predicted_classes(table, pack, ours.meta.classes) for contender in (ours, theirs)]
    except (StorageError, IntegrityError) as error:  # the champion's training data was deleted or changed
        return _Comparison("validation", len(table), obstacle=str(error).rstrip("."))
    readable = (calls[0] >= 0) & (calls[1] >= 0)
    table, calls = table[readable].reset_index(drop=True), [item[readable] for item in calls]
    return _paired(config, "validation", table, calls, ours.meta.classes)


def _paired(
    config: EvaluateConfig, basis: Basis, table: pd.DataFrame, calls: list[I64], classes: list[str]
) -> _Comparison:
    if not len(table) or not config.bootstrap_resamples:
        why = "evaluate.bootstrap_resamples is 0" if len(table) else None
        return _Comparison(basis, len(table), obstacle=why)
    challenger, champion, difference = paired_macro_f1(
        table["class_index"].to_numpy(np.int64),
        calls[0],
        calls[1],
        independent_units(table),
        classes,
        resamples=config.bootstrap_resamples,
        seed=config.data.resolved_seed,
    )
    return _Comparison(basis, len(table), challenger, champion, difference)


def _install(source: Path, expected: str, target: Path) -> None:
    check_sha256(source, expected, "checkpoint")
    with source.open("rb") as reader, atomic_file(target) as writer:
        while block := reader.read(1 << 20):
            writer.write(block)
