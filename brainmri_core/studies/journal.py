"""The trials of a study in Optuna's journal file, which any number of processes can use at the same time.

Every process holds a lock of its own while it works, which the kernel releases however the process ends. So a trial of a dead
process can be distinguished from a running one, and its values are tried again. Optuna's own file locks remain when their
process is killed, and all others then wait; so the journal is locked by the kernel, too.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from brainmri_core.config.tuning import TuneConfig
from brainmri_core.errors import BusyError, ConfigError, IntegrityError
from brainmri_core.project.layout import Layout
from brainmri_core.studies.record import JOURNAL, Identity, State, Trial, TrialRecord
from brainmri_core.studies.space import Setting, Space, Value
from brainmri_core.system.checksums import sha256_json
from brainmri_core.system.locks import exclusive
from brainmri_core.system.storage import make_dirs, storage_error

_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
_DAMAGED = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What Optuna and pydantic raise on a damaged journal."""
_BEGUN = ("complete", "pruned", "failed", "running")


class _KernelLock(JournalFileOpenLock):
    """Lock of a journal that a dead process cannot keep; an incomplete line that it left at the end is removed."""

    def __init__(self, lock: Path, journal: Path) -> None:
        self._lock, self._journal = lock, journal
        self._held = contextlib.ExitStack()

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._held.enter_context(exclusive(self._lock))
        _cut_half_line(self._journal)
        return True

    def release(self) -> None:
        """Release the lock."""
        self._held.close()


class _Journal(JournalFileBackend):
    """The journal, with this package's errors for failed writes."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations, one per line."""
        try:
            super().append_logs(logs)
        except OSError as error:
            raise storage_error(error, Path(self._file_path)) from error


def _cut_half_line(path: Path) -> None:
    with path.open("r+b") as handle:
        size = handle.seek(0, os.SEEK_END)
        if not size:
            return
        handle.seek(size - 1)
        if handle.read(1) != b"\n":
            handle.seek(0)
            handle.truncate(handle.read().rfind(b"\n") + 1)


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
    path = make_dirs(layout.study_dir(dataset, config.study)) / JOURNAL
    lock = _KernelLock(layout.lock("journal", dataset, config.study), path)
    with exclusive(_lock_of(layout, dataset, config.study)), _readable(path):
        storage = JournalStorage(_Journal(str(path), lock_obj=lock))
        study = optuna.create_study(
            storage=storage,
            study_name=config.study,
            direction="maximize",
            load_if_exists=True,
            pruner=_pruner(config),
        )
        stored = study.user_attrs.get("identity")
        if stored is None and not study.trials:
            study.set_user_attr("identity", identity.model_dump(mode="json"))
            return study
        begun = Identity.model_validate(stored)
    _check_same(begun, identity, config.study, path.parent)
    return study


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn the errors of Optuna and pydantic on a damaged journal into an IntegrityError."""
    try:
        yield
    except (*_DAMAGED, optuna.exceptions.OptunaError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise IntegrityError(
            f"The journal {path} of the study is damaged ({reason}); restore it, or delete {path.parent} to begin the study "
            "again."
        ) from None


def _pruner(config: TuneConfig) -> optuna.pruners.BasePruner:
    if config.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=config.unpruned)


def _check_same(begun: Identity, now: Identity, study: str, folder: Path) -> None:
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
        f"delete {folder} to begin it again."
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
    with exclusive(lock, wait=False, busy="another process works on the study under this run id"):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _lock_of_run(layout: Layout, run_id: str) -> Path:
    return layout.lock("study-run", run_id)


def lacking(layout: Layout, dataset: str, config: TuneConfig) -> int:
    """Return how many trials a study still lacks; all of them if it was not begun."""
    path = layout.study_dir(dataset, config.study) / JOURNAL
    if not path.is_file():
        return config.trials
    with _readable(path):
        storage = JournalStorage(JournalFileBackend(str(path)))
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
    with exclusive(_lock_of(layout, dataset, config.study)):
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
    return trial


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
        if owner is None or owner == run_id or not _works(layout, owner):
            study.tell(trial.number, state=TrialState.FAIL)
            try_again(study, space, trial.params)


def try_again(study: optuna.Study, space: Space, values: dict[str, Value]) -> None:
    """Enqueue the values of a trial that was stopped from outside, if all of them were drawn."""
    if set(values) == set(space):
        study.enqueue_trial(values)


def _works(layout: Layout, run_id: str) -> bool:
    lock = _lock_of_run(layout, run_id)
    try:
        with exclusive(lock, wait=False):
            lock.unlink(missing_ok=True)
            return False
    except BusyError:
        return True


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
