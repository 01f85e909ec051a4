"""Tuning: a search for better training settings, judged by the folds of the training side and never by the test split."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from brainmri_core.config.training import TrainConfig
from brainmri_core.config.tuning import TuneConfig
from brainmri_core.cross_validation import fold_pack
from brainmri_core.errors import ConfigError, DataError, ModelError
from brainmri_core.evaluation.calibration import probabilities
from brainmri_core.evaluation.metrics import classification_metrics
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.checkpoint import load_model
from brainmri_core.learning.device import choose_device
from brainmri_core.learning.inference import predict
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointers import CheckpointPointer, FoldPackPointer, PackPointer, TuningPointer
from brainmri_core.project.sample_table import (
    RESIZE_COLUMNS,
    SPLIT_COLUMNS,
    known_patients,
    read_samples,
    write_samples,
)
from brainmri_core.studies.outcome import (
    HISTORY_FILE,
    TABLE_FILE,
    best_of,
    calls_file,
    experiment_name,
    note_of,
    optimism_of,
    settings_around,
    write_outcome,
)
from brainmri_core.studies.record import REPORT_FILE, FoldResult, Identity, State, StudyReport, TrialRecord
from brainmri_core.studies.space import find_study, read_space, with_values
from brainmri_core.system.clock import timestamp, utc_now
from brainmri_core.system.locks import exclusive
from brainmri_core.system.storage import scratch_folder, sha256_json, staging_folder
from brainmri_core.train import train as train_here

if TYPE_CHECKING:
    import optuna

Fit = Callable[[TrainConfig, PackPointer, Job], CheckpointPointer]
_HOPELESS = 3
"""So many failures before the first success end a run: what is wrong with them is wrong with all."""


@dataclass(frozen=True)
class _Study:
    """An open study and what its trials work with."""

    config: TuneConfig
    train: TrainConfig
    identity: Identity
    optuna: optuna.Study
    folds: list[FoldPackPointer]
    folder: Path
    job: Job
    fit: Fit


def tune(
    config: TuneConfig,
    train: TrainConfig,
    pack: PackPointer,
    job: Job,
    *,
    usual: TrainConfig | None = None,
    fit: Fit = train_here,
) -> TuningPointer:
    """Make trials of a study until it has all of them, and write what it has found.

    Any number of runs may work on one study at the same time, and a run continues what earlier ones have begun.

    Parameters
    ----------
    config : TuneConfig
        Its ``seed`` must be set.
    train : TrainConfig
        The settings around those that are searched.
    pack : PackPointer
        The packed images of a split; only the folds of its training side are read.
    job : Job
        The run.
    usual : TrainConfig or None
        What the experiment that comes out is to be laid over; None takes the defaults of `TrainConfig`.
    fit : callable
        Trains one model, as `train.train` does.

    Returns
    -------
    TuningPointer
        Its folder holds the best trial as an experiment, ``study.json``, ``trials.csv``, ``history.png`` and, where scores
        differ, ``importance.png``.

    Raises
    ------
    ConfigError
        If Optuna is not installed, the study's space is wrong, or the study was begun on other data or with other settings.
    DataError
        If a fold has no image of a class.
    ModelError
        If no trial is complete.
    """
    _require_optuna()
    from brainmri_core.studies import journal

    space = read_space(find_study(config.study))
    table = read_samples(job.layout.absolute(pack.samples), {**SPLIT_COLUMNS, **RESIZE_COLUMNS})
    mine = journal.lock_of_run(job.layout, job.run_id)
    with exclusive(mine, wait=False, busy="another process works on the study under this run id"):
        identity = Identity(
            data=pack.content_hash,
            space=space,
            settings=settings_around(train, list(space)),
            pack_run=pack.run_id,
        )
        opened = journal.open_study(job.layout, job.dataset, config, identity)
        folds = [fold_pack(pack, fold, job) for fold in range(int(table["fold"].max()) + 1)]
        folder = job.layout.study_dir(job.dataset, config.study)
        study = _Study(config, train, identity, opened, folds, folder, job, fit)
        _work(study)
        pointer = _outcome(study, pack, usual or TrainConfig())
        mine.unlink(missing_ok=True)
    return pointer


def lacking_trials(config: TuneConfig, layout: Layout, dataset: str) -> int:
    """Return how many trials a study still lacks.

    Raises
    ------
    ConfigError
        If Optuna is not installed.
    IntegrityError
        If the study's journal is damaged.
    """
    _require_optuna()
    from brainmri_core.studies.journal import lacking

    return lacking(layout, dataset, config)


def _require_optuna() -> None:
    if find_spec("optuna") is None:
        raise ConfigError(
            "Tuning needs Optuna, which is not installed; install it with `pip install 'brainmri[tune]'`."
        )


def _work(study: _Study) -> None:
    """Make trials until the study, or this run, has enough."""
    from brainmri_core.studies.journal import next_trial, trials_of

    made = 0
    while study.config.per_run is None or made < study.config.per_run:
        trial = next_trial(
            study.optuna,
            study.config,
            study.identity.space,
            study.job.layout,
            study.job.dataset,
            study.job.run_id,
        )
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


def _make(study: _Study, trial: optuna.Trial) -> str | None:
    """Make one trial and store what became of it; return why it failed, None where it did not."""
    from brainmri_core.studies.journal import end_trial, try_again

    started = time.monotonic()
    folds: list[FoldResult] = []
    values, reason = dict(trial.params), None

    def end(state: State, *, interrupted: bool = False) -> None:
        record = TrialRecord(
            run_id=study.job.run_id,
            values=values,
            folds=folds,
            seconds=round(time.monotonic() - started, 1),
            reason=reason,
            interrupted=interrupted,
        )
        end_trial(study.optuna, trial, record, state)
        score = folds[-1].pooled_macro_f1 if folds else None
        study.job.log.info("trial", number=trial.number, state=state, macro_f1=score, seconds=record.seconds)

    try:
        end(_folds(study, trial, values, folds))
    except (ConfigError, DataError, ModelError) as error:
        reason = str(error)
        study.job.log.warning("trial failed", number=trial.number, reason=reason)
        end("failed")
    except BaseException:
        reason = "it was stopped from outside"
        end("failed", interrupted=True)
        try_again(study.optuna, study.identity.space, values)
        raise
    return reason


def _folds(study: _Study, trial: optuna.Trial, values: dict[str, Any], results: list[FoldResult]) -> State:
    """Train and score fold after fold, and stop where the trial falls behind the others."""
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
    write_samples(calls_file(study.folder, trial.number), kept)
    return "complete"


def _job_of(job: Job, trial: int, fold: int) -> Job:
    """Return the job of one training of a run that makes many."""
    return replace(job, run_id=f"{job.run_id}-{trial}-{fold}")


def _out_of_fold(
    config: TrainConfig, seen: FoldPackPointer, job: Job, study: _Study
) -> tuple[pd.DataFrame, int]:
    """Train without a fold and predict it; the checkpoint is not kept, since its settings are."""
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


def _outcome(study: _Study, pack: PackPointer, usual: TrainConfig) -> TuningPointer:
    """Write what the study has found so far."""
    from brainmri_core.studies.journal import importance_of, trials_of

    job, name, trials = study.job, study.config.study, trials_of(study.optuna)
    best = best_of(trials)
    if best is None or best.score is None:
        reasons = [trial.record.reason for trial in trials if trial.record.reason]
        told = f", the last because: {reasons[-1]}" if reasons else "."
        raise ModelError(f"No trial of the study {name!r} is complete{told}")
    optimism = optimism_of(trials, study.folder, pack.classes, study.config.resolved_seed)
    report = StudyReport(
        study=name,
        dataset=job.dataset,
        identity=study.identity,
        note=note_of(trials, best, optimism),
        trials=trials,
        best=best.number,
        score=best.score,
        optimism=optimism,
        importance=importance_of(study.optuna, study.config.resolved_seed),
    )
    target = study.folder / "outcomes" / job.run_id
    with staging_folder(target) as folder:
        write_outcome(folder, report, study.train, usual)
    job.log.info("tuned", best=best.number, macro_f1=best.score, optimism=optimism, trials=len(trials))
    states = {state: float(report.count(state)) for state in ("complete", "pruned", "failed")}
    return TuningPointer(
        dataset=job.dataset,
        run_id=job.run_id,
        content_hash=sha256_json([study.identity.data, [[t.record.values, t.score] for t in trials]]),
        written_at_utc=timestamp(utc_now()),
        study=name,
        folder=job.layout.relative(target),
        metrics=job.layout.relative(target / REPORT_FILE),
        table=job.layout.relative(target / TABLE_FILE),
        plot=job.layout.relative(target / HISTORY_FILE),
        experiment_file=job.layout.relative(target / f"{experiment_name(name)}.yaml"),
        pack_pointer=str(pack.pointer_path),
        headline={"macro_f1": best.score, "optimism": optimism, "best_trial": float(best.number), **states},
        note=report.note,
    )
