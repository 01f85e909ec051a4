"""A study whose trials are scored without a training, and processes that work on it, some of which get killed.

python -m tests.core.studies.study_case ROOT RUN_ID TRIALS FATE [CACHE]
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import optuna

from brainmri_core.config.tuning import TuneConfig
from brainmri_core.project.layout import Layout
from brainmri_core.studies.journal import end_trial, next_trial, open_study, trials_of, working
from brainmri_core.studies.record import JOURNAL, FoldResult, Identity, Trial, TrialRecord
from brainmri_core.studies.space import Setting

DATASET = "owner/set"
SPACE = {
    "train.optim.lr": Setting(kind="float", low=1e-4, high=1.0, log=True),
    "train.loop.epochs": Setting(kind="int", low=1, high=9, step=2),
    "train.optim.schedule": Setting(kind="choice", choices=["step", "cosine"]),
}
HERE = Identity(data="d" * 8, space=SPACE, settings={"train.model.name": "resnet18"}, pack_run="p1")


def settings(trials: int) -> TuneConfig:
    return TuneConfig(study="s", trials=trials, seed=3, random_trials=3)


def opened(layout: Layout, trials: int, identity: Identity = HERE) -> optuna.Study:
    return open_study(layout, DATASET, settings(trials), identity)


def begun(study: optuna.Study, trials: int, layout: Layout, run_id: str) -> optuna.Trial | None:
    return next_trial(study, settings(trials), SPACE, layout, DATASET, run_id)


def finish(study: optuna.Study, trial: optuna.Trial, run_id: str) -> None:
    """Score a trial by its values."""
    score = trial.params["train.optim.lr"] / 2 + trial.params["train.loop.epochs"] / 20
    fold = FoldResult(fold=0, images=1, macro_f1=score, pooled_macro_f1=score, best_epoch=1, seconds=0.0)
    end_trial(study, trial, TrialRecord(run_id=run_id, values=trial.params, folds=[fold]), "complete")


def work(
    layout: Layout, run_id: str, trials: int, fate: str = "lives", identity: Identity = HERE
) -> list[Trial]:
    """Make trials until the study has all of them, or until the second one kills this process."""
    study = opened(layout, trials, identity)
    with working(layout, run_id):
        made = 0
        while (trial := begun(study, trials, layout, run_id)) is not None:
            made += 1
            if made == 2 and fate == "dies in a trial":
                os.kill(os.getpid(), signal.SIGKILL)
            if made == 2 and fate == "dies in a line":
                study._storage._backend._lock.acquire()  # type: ignore[attr-defined]
                with (layout.study_dir(DATASET, "s") / JOURNAL).open("ab") as handle:
                    handle.write(b'{"op_code":8,"half a li')
                    handle.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.02)  # so that several processes come to their turn
            finish(study, trial, run_id)
    return trials_of(study)


if __name__ == "__main__":
    place, name, number, end, *cache = sys.argv[1:]
    work(Layout.at(place, *cache) if cache else Layout(root=Path(place)), name, int(number), end)
