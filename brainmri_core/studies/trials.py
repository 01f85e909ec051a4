"""The trials of a study, one after the other: each trains and predicts fold after fold, and is pruned if it falls behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
import pandas as pd
from optuna.exceptions import UpdateFinishedTrialError

from brainmri_core.config.training import TrainConfig
from brainmri_core.config.tuning import TuneConfig
from brainmri_core.errors import BrainMRIError, ConfigError, DataError, ModelError
from brainmri_core.evaluation.calibration import probabilities
from brainmri_core.evaluation.metrics import classification_metrics
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.checkpoint import load_model
from brainmri_core.learning.device import choose_device
from brainmri_core.learning.inference import predict
from brainmri_core.project.job import Job
from brainmri_core.project.pointers import CheckpointPointer, FoldPackPointer, PackPointer
from brainmri_core.project.sample_table import known_patients, read_samples, write_samples
from brainmri_core.studies.journal import (
    PREDICTIONS,
    end_trial,
    importance_of,
    next_trial,
    trials_of,
    try_again,
)
from brainmri_core.studies.outcome import best_of, calls_file, note_of, optimism_of
from brainmri_core.studies.record import FoldResult, Identity, State, StudyReport, TrialRecord
from brainmri_core.studies.space import with_values
from brainmri_core.system.storage import scratch_folder

Fit = Callable[[TrainConfig, PackPointer, Job], CheckpointPointer]
_HOPELESS = 3
"""This many failed trials without a complete one end a run, since all trials would probably fail."""


@dataclass(frozen=True)
class Study:
    """An open study and the input of its trials.

    Attributes
    ----------
    config : TuneConfig
        Settings of the study.
    train : TrainConfig
        Settings of the training that are not searched.
    folds : list of FoldPackPointer
        The pack of each fold.
    fit : callable
        Trains a model on a pack.
    """

    config: TuneConfig
    train: TrainConfig
    identity: Identity
    optuna: optuna.Study
    folds: list[FoldPackPointer]
    job: Job
    fit: Fit

    @property
    def folder(self) -> Path:
        """Folder of the study's files, which all its runs share."""
        return self.job.layout.study_dir(self.job.dataset, self.config.study)

    def calls(self, number: int) -> Path:
        """Return the file of a trial's predictions."""
        return calls_file(self.folder / self.optuna.user_attrs.get(PREDICTIONS, ""), number)


def make_trials(study: Study) -> None:
    """Run trials until the study is complete, or this run has made its number of trials.

    Raises
    ------
    ModelError
        If the first trials all fail.
    """
    made, config, job = 0, study.config, study.job
    while config.per_run is None or made < config.per_run:
        trial = next_trial(study.optuna, config, study.identity.space, job.layout, job.dataset, job.run_id)
        if trial is None:
            return
        made += 1
        failure = _make(study, trial)
        found = [item.state for item in trials_of(study.optuna)]
        if failure is not None and "complete" not in found and found.count("failed") >= _HOPELESS:
            raise ModelError(
                f"{found.count('failed')} trials of the study {study.config.study!r} failed and none is complete, the last "
                f"because: {failure}"
            )


def _make(study: Study, trial: optuna.Trial) -> str | None:
    """Run one trial and store its result; return why it failed, or None."""
    started = time.monotonic()
    folds: list[FoldResult] = []
    values, reason = dict(trial.params), None

    def end(state: State, *, interrupted: bool = False) -> bool:
        """Store the result; return False if another machine has taken this one for dead, and makes the trial again."""
        record = TrialRecord(
            run_id=study.job.run_id,
            values=values,
            folds=folds,
            seconds=round(time.monotonic() - started, 1),
            reason=reason,
            interrupted=interrupted,
        )
        try:
            end_trial(study.optuna, trial, record, state)
        except UpdateFinishedTrialError:
            _say_lost(study, trial)
            return False
        score = folds[-1].pooled_macro_f1 if folds else None
        study.job.log.info("trial", number=trial.number, state=state, macro_f1=score, seconds=record.seconds)
        return True

    try:
        end(_folds(study, trial, values, folds))
    except UpdateFinishedTrialError:
        _say_lost(study, trial)
    except (ConfigError, DataError, ModelError) as error:
        reason = str(error)
        study.job.log.warning("trial failed", number=trial.number, reason=reason)
        end("failed")
    except BaseException as error:
        # A signal, a full disk, a damaged pack: not caused by the values of this trial.
        outside = isinstance(error, BrainMRIError) or not isinstance(error, Exception)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if end("failed", interrupted=outside) and outside:
            try_again(study.optuna, study.identity.space, values)
        raise
    return reason


def _say_lost(study: Study, trial: optuna.Trial) -> None:
    study.job.log.warning(
        "the trial is given up: this process was taken for dead, and its values are tried again",
        number=trial.number,
    )


def _folds(study: Study, trial: optuna.Trial, values: dict[str, Any], results: list[FoldResult]) -> State:
    """Train and score fold after fold; stop early if the pruner says so."""
    config = with_values(study.train, values, f"study {study.config.study!r}, trial {trial.number}")
    parts: list[pd.DataFrame] = []
    for number, seen in enumerate(study.folds):
        started = time.monotonic()
        part, best_epoch = _out_of_fold(config, seen, _job_of(study.job, trial.number, number), study)
        parts.append(part.assign(fold=number))
        pooled = _score(pd.concat(parts, ignore_index=True), seen.classes)
        results.append(
            FoldResult(
                fold=number,
                images=len(part),
                macro_f1=_score(part, seen.classes),
                pooled_macro_f1=pooled,
                best_epoch=best_epoch,
                seconds=round(time.monotonic() - started, 1),
            )
        )
        study.job.log.info("fold", trial=trial.number, fold=number, pooled_macro_f1=pooled)
        trial.report(pooled, number)
        if number + 1 < len(study.folds) and trial.should_prune():
            return "pruned"
    calls = pd.concat(parts, ignore_index=True)
    called = calls[[f"prob_{name}" for name in study.folds[0].classes]].to_numpy().argmax(axis=1)
    kept = calls[["path", "group", "patient", "class_index", "fold"]].assign(called=called)
    file, layout = study.calls(trial.number), study.job.layout
    write_samples(file, kept)
    layout.store.publish_folder(layout.relative(file.parent))
    return "complete"


def _job_of(job: Job, trial: int, fold: int) -> Job:
    """Return the job of one training, with a run id of its own."""
    return replace(job, run_id=f"{job.run_id}-{trial}-{fold}")


def _out_of_fold(
    config: TrainConfig, seen: FoldPackPointer, job: Job, study: Study
) -> tuple[pd.DataFrame, int]:
    """Train without a fold and predict that fold; the checkpoint is not kept, as its settings are enough."""
    layout = job.layout
    with scratch_folder(study.folder) as folder:
        where = layout.relative(folder)
        io = config.io.model_copy(update={"out_models": where, "out_summary": f"{where}/training"})
        checkpoint = study.fit(config.model_copy(update={"io": io}), seen, job)
        device = choose_device(job.env)
        model, meta = load_model(layout.absolute(checkpoint.checkpoint), device)
    table = read_samples(layout.absolute(seen.samples))
    held = table[(table["split"] == "test") & (table["row"] >= 0)].sort_values("row", ignore_index=True)
    logits = predict(
        model,
        open_pack(layout, seen),
        held["row"].to_numpy(np.int64),
        meta.preprocessing,
        device=device,
        batch_size=config.data.batch_size,
        progress=False,
    ).logits
    shares = probabilities(logits)
    columns = {f"prob_{name}": shares[:, index] for index, name in enumerate(seen.classes)}
    known = held[["path", "group", "class_index"]].assign(patient=known_patients(held), **columns)
    return known, checkpoint.best_epoch


def _score(table: pd.DataFrame, classes: list[str]) -> float:
    shares: npt.NDArray[np.float64] = table[[f"prob_{name}" for name in classes]].to_numpy(np.float64)
    return float(classification_metrics(table["class_index"].to_numpy(np.int64), shares, classes)["macro_f1"])


def report_of(study: Study) -> StudyReport:
    """Return the outcome of a study so far.

    Raises
    ------
    ModelError
        If no trial is complete.
    """
    name, trials, seed = study.config.study, trials_of(study.optuna), study.config.resolved_seed
    best = best_of(trials)
    if best is None or best.score is None:
        reasons = [trial.record.reason for trial in trials if trial.record.reason]
        told = f", the last because: {reasons[-1]}" if reasons else "."
        raise ModelError(f"No trial of the study {name!r} is complete{told}")
    layout = study.job.layout
    calls = [study.calls(trial.number) for trial in trials if trial.state == "complete"]
    files = [layout.absolute(layout.relative(file)) for file in calls]
    optimism = optimism_of(files, study.folds[0].classes, seed)
    return StudyReport(
        study=name,
        dataset=study.job.dataset,
        identity=study.identity,
        note=note_of(trials, best, optimism),
        trials=trials,
        best=best.number,
        score=best.score,
        optimism=optimism,
        importance=importance_of(study.optuna, seed),
    )
