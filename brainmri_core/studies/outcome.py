"""The outcome of a study: the best trial as an experiment, two pictures, a table of all trials, and a report."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from brainmri_core.config.base import flat, without_later
from brainmri_core.config.training import TrainConfig
from brainmri_core.learning.resume import decisive
from brainmri_core.pictures.study import draw_history, draw_importance
from brainmri_core.project.sample_table import read_samples
from brainmri_core.splitting.assignment import independent_units
from brainmri_core.studies.optimism import optimism_of_best
from brainmri_core.studies.record import REPORT_FILE, StudyReport, Trial
from brainmri_core.studies.space import with_values
from brainmri_core.system.json_files import write_json
from brainmri_core.system.storage import write_bytes

TABLE_FILE, HISTORY_FILE, IMPORTANCE_FILE = "trials.csv", "history.png", "importance.png"
_RESAMPLES = 1000


def experiment_name(study: str) -> str:
    """Return the name of the experiment that a study writes."""
    return f"tuned-{study}"


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Return the complete trial with the highest score, the earliest of equal ones; None if none is complete."""
    complete = [trial for trial in trials if trial.state == "complete"]
    return max(complete, key=lambda trial: (trial.score or 0.0, -trial.number), default=None)


def optimism_of(files: Sequence[Path], classes: Sequence[str], seed: int) -> float | None:
    """Return by how much the best score is too high, from the predictions of all complete trials; None if some are missing."""
    if not files or not all(file.is_file() for file in files):
        return None
    tables = [read_samples(file).sort_values("path", ignore_index=True) for file in files]
    first: pd.DataFrame = tables[0]
    return optimism_of_best(
        first["class_index"].to_numpy(np.int64),
        [table["called"].to_numpy(np.int64) for table in tables],
        independent_units(first),
        classes,
        resamples=_RESAMPLES,
        seed=seed,
    )


def calls_file(folder: Path, number: int) -> Path:
    """Return the file of a complete trial's out-of-fold predictions in a folder."""
    return folder / "out_of_fold" / f"{number:05}.parquet"


def note_of(trials: Sequence[Trial], best: Trial, optimism: float | None) -> str:
    """Say among how many trials the best was selected, and what that means for its score."""
    states = [trial.state for trial in trials]
    tried = sum(state in ("complete", "pruned", "failed") for state in states)
    score = best.score or 0.0
    text = (
        f"Trial {best.number} is the best of {tried} ({states.count('pruned')} pruned, {states.count('failed')} failed). "
        f"Its out-of-fold macro F1 is {score:.4f}"
    )
    if states.count("complete") > 1:
        text += f", the greatest of {states.count('complete')} on the same images and so optimistic"
        text += (
            f", here by about {optimism:.4f}: expect {score - optimism:.4f}" if optimism is not None else ""
        )
    running = states.count("running")
    return f"{text}. No test image was looked at." + (f" {running} trials are running." if running else "")


def experiment_text(
    report_note: str, study: str, searched: Sequence[str], best: TrainConfig, usual: TrainConfig
) -> str:
    """Return the best trial as the YAML of an experiment, with the searched settings and those that differ from `usual`."""
    ours, theirs = (flat(decisive(config)) for config in (best, usual))
    kept = {
        key: value for key, value in ours.items() if f"train.{key}" in searched or theirs.get(key) != value
    }
    nested: dict[str, Any] = {}
    for key, value in kept.items():
        *blocks, last = key.split(".")
        target = nested
        for block in blocks:
            target = target.setdefault(block, {})
        target[last] = value
    head = "".join(f"# {line}\n" for line in (f"Found by the study {study!r}.", report_note))
    return head + yaml.safe_dump({"train": nested}, sort_keys=False, allow_unicode=True, width=1000)


def settings_around(config: TrainConfig, searched: Sequence[str]) -> dict[str, Any]:
    """Return the settings that the result depends on and that are not searched, by dotted key."""
    found = flat(without_later(TrainConfig, decisive(config)), "train.")
    return {key: value for key, value in found.items() if key not in searched}


def write_outcome(folder: Path, report: StudyReport, config: TrainConfig, usual: TrainConfig) -> None:
    """Write a study's outcome into a folder; `config` has the settings that the trials' values replace."""
    best = next(trial for trial in report.trials if trial.number == report.best)
    found = with_values(config, best.record.values, f"trial {best.number}")
    text = experiment_text(report.note, report.study, list(report.identity.space), found, usual)
    write_bytes(folder / f"{experiment_name(report.study)}.yaml", text.encode())
    write_json(folder / REPORT_FILE, report.model_dump(mode="json"))
    write_bytes(folder / TABLE_FILE, _table(report.trials).encode())
    draw_history([(trial.number, trial.state, trial.score) for trial in report.trials], folder / HISTORY_FILE)
    if report.importance:
        draw_importance(report.importance, folder / IMPORTANCE_FILE)


def _table(trials: Sequence[Trial]) -> str:
    rows = [
        {
            "trial": trial.number,
            "state": trial.state,
            "macro_f1": trial.score,
            "folds": len(trial.record.folds),
            "seconds": trial.record.seconds,
            "run_id": trial.record.run_id,
            **trial.record.values,
            "reason": trial.record.reason,
        }
        for trial in trials
    ]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
