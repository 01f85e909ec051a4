"""The schemas of a study: its identity, its trials and its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from brainmri_core.studies.space import Space, Value
from brainmri_core.system.json_models import read_model

State = Literal["complete", "pruned", "failed", "running", "abandoned", "waiting"]
JOURNAL, OUTCOMES_FOLDER, REPORT_FILE = "journal.log", "outcomes", "study.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Identity(_Part):
    """What all trials of a study have in common; a study cannot be continued with anything else."""

    data: str = Field(description="content hash of the pack: pixels, split and folds")
    space: Space
    settings: dict[str, Any] = Field(description="settings of the training that are not searched")
    pack_run: str = Field(description="run that made the pack; another pack of the same content will do")


class FoldResult(_Part):
    """One fold of a trial."""

    fold: int
    images: int
    macro_f1: float
    pooled_macro_f1: float = Field(description="of this fold and those before it together")
    best_epoch: int
    seconds: float


class TrialRecord(_Part):
    """The record of a trial besides its score."""

    run_id: str
    values: dict[str, Value]
    folds: list[FoldResult] = []
    seconds: float = 0.0
    reason: str | None = Field(None, description="why it failed")
    interrupted: bool = Field(False, description="it was stopped from outside, and is done again")


class Trial(_Part):
    """One trial as the study's outcome lists it.

    Attributes
    ----------
    score : float or None
        Out-of-fold macro F1 of a complete trial, or of the finished folds of a pruned one.
    """

    number: int
    state: State
    score: float | None
    record: TrialRecord


class StudyReport(_Part):
    """The content of ``study.json``, the outcome of a study."""

    study: str
    dataset: str
    identity: Identity
    note: str
    trials: list[Trial]
    best: int = Field(description="number of the best complete trial")
    score: float = Field(description="its out-of-fold macro F1, the greatest of all complete trials")
    optimism: float | None = Field(description="by how much that is too high, being the greatest")
    importance: dict[str, float] = Field(
        description="key -> share of the scores' variance, by fANOVA; empty where too few trials are complete"
    )

    def count(self, state: State) -> int:
        """Return the number of trials in a state."""
        return sum(trial.state == state for trial in self.trials)


def read_report(path: Path) -> StudyReport:
    """Read the ``study.json`` of a study's outcome.

    Raises
    ------
    IntegrityError
        If it is damaged, or not of this version.
    """
    return read_model(path, StudyReport, "is no outcome of a study", "run `brainmri tune` again")


def data_of(folder: Path) -> str | None:
    """Return the content hash of the data that a study was begun on, from its journal; None if it is not there.

    Optuna writes one operation per line as JSON, so it need not be installed to read this.
    """
    try:
        with (folder / JOURNAL).open(encoding="utf-8") as lines:
            for line in lines:
                operation = json.loads(line)
                attributes = operation.get("user_attr") if isinstance(operation, dict) else None
                if isinstance(attributes, dict) and "identity" in attributes:
                    return Identity.model_validate(attributes["identity"]).data
    except (OSError, ValueError):  # no study, or a damaged one, which `open_study` reports
        return None
    return None
