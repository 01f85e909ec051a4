"""The trials of a study in Optuna's journal, which any number of processes can use at the same time.

Every process holds a lock of its own while it works, on this machine and among all that share the project. So a trial of a dead
process can be distinguished from a running one, and its values are tried again.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from brainmri_core.config.tuning import TuneConfig
from brainmri_core.errors import ConfigError, IntegrityError
from brainmri_core.project.layout import Layout
from brainmri_core.project.work_locks import is_at_work, work_lock
from brainmri_core.studies.bucket_journal import BucketJournal, bucket_journal
from brainmri_core.studies.file_journal import FileJournal
from brainmri_core.studies.record import JOURNAL, Identity, State, Trial, TrialRecord
from brainmri_core.studies.space import Setting, Space, Value
from brainmri_core.system.checksums import sha256_json
from brainmri_core.system.locks import exclusive
from brainmri_core.system.storage import make_dirs

_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
_DAMAGED = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What Optuna and pydantic raise on a damaged journal."""
_BEGUN = ("complete", "pruned", "failed", "running")
PREDICTIONS = "predictions"
"""Attribute of a study in an object store: name of the folder of its predictions, which no deleted study of its name has used."""
T = TypeVar("T")


def open_study(layout: Layout, dataset: str, config: TuneConfig, identity: Identity) -> optuna.Study:
    """Open a study, or create it.

    Raises
    ------
    ConfigError
        If the study was begun on other data, with another search space or with other fixed settings.
    IntegrityError
        If its journal is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    shared = bucket_journal(layout, dataset, config.study)
    where = _where(layout, dataset, config.study)
    with exclusive(_lock_of(layout, dataset, config.study)), _readable(where):
        if shared is None:
            file = make_dirs(layout.study_dir(dataset, config.study)) / JOURNAL
            lock = layout.lock("journal", dataset, config.study)
            study = _created(JournalStorage(FileJournal(file, lock)), config.study, identity)
        else:
            _create_shared(shared, config.study, identity)
            study = optuna.load_study(study_name=config.study, storage=JournalStorage(shared))
        study.pruner = _pruner(config)
        begun = Identity.model_validate(study.user_attrs.get("identity"))
    _check_same(begun, identity, config.study, where)
    return study


def _created(storage: JournalStorage, name: str, identity: Identity) -> optuna.Study:
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    if study.user_attrs.get("identity") is None and not study.trials:
        study.set_user_attr("identity", identity.model_dump(mode="json"))
    return study


def _create_shared(shared: BucketJournal, name: str, identity: Identity) -> None:
    """Begin a journal in an object store, unless a machine has begun it."""
    while not (draft := shared.draft()).number:
        study = _created(JournalStorage(draft), name, identity)
        study.set_user_attr(PREDICTIONS, secrets.token_hex(6))
        if shared.commit(draft):
            return


def _where(layout: Layout, dataset: str, study: str) -> str:
    """Name the journal of a study for messages: the file, or the objects below a prefix."""
    shared = bucket_journal(layout, dataset, study)
    return str(layout.study_dir(dataset, study) / JOURNAL) if shared is None else shared.where


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
    """Turn the errors of Optuna and pydantic on a damaged journal into an IntegrityError."""
    try:
        yield
    except (*_DAMAGED, optuna.exceptions.OptunaError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise IntegrityError(
            f"The journal {where} of the study is damaged ({reason}); restore it, or delete {_folder(where)} to begin the "
            "study again."
        ) from None


def _pruner(config: TuneConfig) -> optuna.pruners.BasePruner:
    if config.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=config.unpruned)


def _folder(where: str) -> str:
    return where.rpartition("/")[0]


def _check_same(begun: Identity, now: Identity, study: str, where: str) -> None:
    if begun.data != now.data:
        what = f"on other data, the images of run {begun.pack_run} and not those of {now.pack_run}"
    elif begun.space != now.space:
        key = next(key for key in {**begun.space, **now.space} if begun.space.get(key) != now.space.get(key))
        what = f"with another search space ({key!r} was {_shown(begun.space.get(key))} and is {_shown(now.space.get(key))})"
    elif begun.settings != now.settings:
        key = next(
            key
            for key in {**begun.settings, **now.settings}
            if begun.settings.get(key) != now.settings.get(key)
        )
        what = f"with other settings ({key} was {begun.settings.get(key)!r} and is {now.settings.get(key)!r})"
    else:
        return
    raise ConfigError(
        f"The study {study!r} was begun {what}, so its trials cannot be compared; give the new study a name of its own, or "
        f"delete {_folder(where)} to begin it again."
    )


def _shown(setting: Setting | None) -> str:
    return "absent" if setting is None else json.dumps(setting.model_dump(exclude_defaults=True))


def _lock_of(layout: Layout, dataset: str, study: str) -> Path:
    return layout.lock("study", dataset, study)


@contextlib.contextmanager
def working(layout: Layout, run_id: str) -> Iterator[None]:
    """Hold the lock that shows other processes that this run still works on its study.

    Raises
    ------
    BusyError
        If another process works under this run id.
    """
    lock = _lock_of_run(layout, run_id)
    with work_lock(layout, lock, wait=False, busy="another process works on the study under this run id"):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _lock_of_run(layout: Layout, run_id: str) -> Path:
    return layout.lock("study-run", run_id)


def lacking(layout: Layout, dataset: str, config: TuneConfig) -> int:
    """Return how many trials a study still lacks; all of them if it was not begun."""
    shared = bucket_journal(layout, dataset, config.study)
    path = layout.study_dir(dataset, config.study) / JOURNAL
    with _readable(_where(layout, dataset, config.study)):
        is_begun = path.is_file() if shared is None else shared.draft().number > 0
        if not is_begun:
            return config.trials
        storage = JournalStorage(shared or JournalFileBackend(str(path)))
        return max(0, config.trials - _begun(optuna.load_study(study_name=config.study, storage=storage)))


def _begun(study: optuna.Study) -> int:
    return sum(state_of(trial) in _BEGUN for trial in study.get_trials(deepcopy=False))


def next_trial(
    study: optuna.Study, config: TuneConfig, space: Space, layout: Layout, dataset: str, run_id: str
) -> optuna.Trial | None:
    """Begin a trial with values from the sampler; None if the study has all its trials.

    The values depend only on the seed, the number of earlier trials and their scores, so that a study that was interrupted
    and continued tries the same values as one without interruption.
    """

    def begin(study: optuna.Study) -> int | None:
        _abandon_dead(study, space, layout, run_id)
        begun = _begun(study)
        if begun >= config.trials:
            return None
        seed = int(sha256_json([config.resolved_seed, begun])[:8], 16)
        study.sampler = TPESampler(n_startup_trials=config.random_trials, seed=seed)
        trial = study.ask()
        trial.set_user_attr("run_id", run_id)
        for key, setting in space.items():
            _suggest(trial, key, setting)
        return trial._trial_id

    found = _alone(layout, dataset, study, begin)
    return None if found is None else optuna.trial.Trial(study, found)


def _alone(layout: Layout, dataset: str, study: optuna.Study, change: Callable[[optuna.Study], T]) -> T:
    """Change a study by what it holds, while no other process changes it in between; `change` may be called several times."""
    name = study.study_name
    with exclusive(_lock_of(layout, dataset, name)):
        shared = bucket_journal(layout, dataset, name)
        if shared is None:
            return change(study)
        while True:
            draft = shared.draft()
            done = change(optuna.load_study(study_name=name, storage=JournalStorage(draft)))
            if shared.commit(draft):
                return done


def _suggest(trial: optuna.Trial, key: str, setting: Setting) -> None:
    low, high, step = setting.low, setting.high, setting.step
    if setting.kind == "choice" or low is None or high is None:
        trial.suggest_categorical(key, setting.choices)
    elif setting.kind == "int":
        trial.suggest_int(key, int(low), int(high), step=int(step or 1), log=setting.log)
    else:
        trial.suggest_float(key, low, high, step=step, log=setting.log)


def _abandon_dead(study: optuna.Study, space: Space, layout: Layout, run_id: str) -> None:
    """Close the trials whose process is dead, and enqueue their values again."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner = trial.user_attrs.get("run_id")
        if owner is None or owner == run_id or not is_at_work(layout, _lock_of_run(layout, owner)):
            study.tell(trial.number, state=TrialState.FAIL)
            try_again(study, space, trial.params)


def try_again(study: optuna.Study, space: Space, values: dict[str, Value]) -> None:
    """Enqueue the values of a trial that was stopped from outside, if all of them were drawn."""
    if set(values) == set(space):
        study.enqueue_trial(values)


def end_trial(study: optuna.Study, trial: optuna.Trial, record: TrialRecord, state: State) -> None:
    """Store the result of a trial; the score of a complete one is the pooled macro F1 of all folds."""
    trial.set_user_attr("record", record.model_dump(mode="json"))
    if state == "complete":
        study.tell(trial, record.folds[-1].pooled_macro_f1)
    else:
        study.tell(trial, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)


def state_of(trial: FrozenTrial) -> State:
    """Return the state of a trial; one that was stopped from outside is abandoned, not failed."""
    record: dict[str, Any] | None = trial.user_attrs.get("record")
    failed: State = "abandoned" if record is None or record.get("interrupted") else "failed"
    return _STATES.get(trial.state, failed)


def trials_of(study: optuna.Study) -> list[Trial]:
    """Return a study's trials in order, without those that have not begun."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        state = state_of(trial)
        if state == "waiting":
            continue
        stored = trial.user_attrs.get("record") or {
            "run_id": trial.user_attrs.get("run_id", "unknown"),
            "values": trial.params,
        }
        score = trial.value if state in ("complete", "pruned") else None
        record = TrialRecord.model_validate(stored)
        found.append(Trial(number=trial.number, state=state, score=score, record=record))
    return found


def importance_of(study: optuna.Study, seed: int) -> dict[str, float]:
    """Return each setting's share of the variance of the scores, by fANOVA (Hutter et al., ICML 2014).

    The result is empty if there are not two complete trials with different scores.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({trial.value for trial in complete}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed % 2**32)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)
