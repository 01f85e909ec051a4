"""Tuning: search for better training settings by cross-validation on the training images, never by the test split."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from brainmri_core.config.training import TrainConfig
from brainmri_core.config.tuning import TuneConfig
from brainmri_core.cross_validation import fold_pack
from brainmri_core.errors import ConfigError
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointers import PackPointer, TuningPointer
from brainmri_core.project.sample_table import RESIZE_COLUMNS, SPLIT_COLUMNS, read_samples
from brainmri_core.studies.outcome import (
    HISTORY_FILE,
    TABLE_FILE,
    experiment_name,
    settings_around,
    write_outcome,
)
from brainmri_core.studies.record import OUTCOMES_FOLDER, REPORT_FILE, Identity, StudyReport
from brainmri_core.studies.space import find_study, read_space
from brainmri_core.system.checksums import sha256_json
from brainmri_core.system.clock import timestamp, utc_now
from brainmri_core.system.storage import staging_folder
from brainmri_core.train import train as train_here

if TYPE_CHECKING:
    from brainmri_core.studies.trials import Fit


def tune(
    config: TuneConfig,
    train: TrainConfig,
    pack: PackPointer,
    job: Job,
    *,
    usual: TrainConfig | None = None,
    fit: Fit = train_here,
) -> TuningPointer:
    """Run the trials of a study until it has all of them, and write the result.

    Any number of runs may work on one study at the same time, and a run resumes a study that earlier runs began.

    Parameters
    ----------
    config : TuneConfig
        Its ``seed`` must be set.
    train : TrainConfig
        The settings that are not searched.
    pack : PackPointer
        The packed images of a split; only its training images are read.
    job : Job
        The run.
    usual : TrainConfig or None
        The settings that the resulting experiment is to override; the defaults of `TrainConfig` where None.
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
        If Optuna is not installed, the study's space is invalid, or the study was begun on other data or with other
        settings.
    DataError
        If a fold has no image of a class.
    ModelError
        If no trial is complete.
    """
    _require_optuna()
    from brainmri_core.studies.journal import open_study, working
    from brainmri_core.studies.trials import Study, make_trials, report_of

    layout, space = job.layout, read_space(find_study(config.study))
    table = read_samples(layout.absolute(pack.samples), {**SPLIT_COLUMNS, **RESIZE_COLUMNS})
    identity = Identity(
        data=pack.content_hash,
        space=space,
        settings=settings_around(train, list(space)),
        pack_run=pack.run_id,
    )
    with working(layout, job.run_id):
        opened = open_study(layout, job.dataset, config, identity)
        folds = [fold_pack(pack, fold, job) for fold in range(int(table["fold"].max()) + 1)]
        study = Study(config, train, identity, opened, folds, job, fit)
        make_trials(study)
        report = report_of(study)
    target = study.folder / OUTCOMES_FOLDER / job.run_id
    with staging_folder(target) as folder:
        write_outcome(folder, report, train, usual or TrainConfig())
    job.log.info("tuned", best=report.best, macro_f1=report.score, optimism=report.optimism)
    return _pointer(report, pack, layout.relative(target), job)


def _pointer(report: StudyReport, pack: PackPointer, folder: str, job: Job) -> TuningPointer:
    states = {state: float(report.count(state)) for state in ("complete", "pruned", "failed")}
    scores = [[trial.record.values, trial.score] for trial in report.trials]
    return TuningPointer(
        dataset=job.dataset,
        run_id=job.run_id,
        content_hash=sha256_json([report.identity.data, scores]),
        written_at_utc=timestamp(utc_now()),
        study=report.study,
        folder=folder,
        metrics=f"{folder}/{REPORT_FILE}",
        table=f"{folder}/{TABLE_FILE}",
        plot=f"{folder}/{HISTORY_FILE}",
        experiment_file=f"{folder}/{experiment_name(report.study)}.yaml",
        pack_pointer=str(pack.pointer_path),
        headline={
            "macro_f1": report.score,
            "optimism": report.optimism,
            "best_trial": float(report.best),
            **states,
        },
        note=report.note,
    )


def lacking_trials(config: TuneConfig, layout: Layout, dataset: str) -> int:
    """Return how many trials a study still lacks.

    Parameters
    ----------
    config : TuneConfig
        Names the study and its number of trials.
    layout : Layout
        The project.
    dataset : str
        ``owner/slug``.

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
