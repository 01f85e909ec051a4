"""Config of a study: a search for better training settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from brainmri_core.config.base import SeededConfig

STUDY_PATTERN = r"^[a-z0-9]+(?:[_-][a-z0-9]+)*$"


class TuneConfig(SeededConfig):
    """Search for training settings with a better macro F1 on the folds; the test split is not used."""

    study: str = Field(
        "fine-tuning",
        pattern=STUDY_PATTERN,
        max_length=60,
        description="Name of the study: its file in configs/studies, without .yaml.",
    )
    trials: int = Field(
        20, ge=1, le=10_000, description="Trials after which the study ends, those of all its runs together."
    )
    per_run: int | None = Field(
        None, ge=1, description="Trials that this run makes at most; empty: all that the study still lacks."
    )
    random_trials: int = Field(
        8, ge=1, le=10_000, description="Trials drawn at random before the sampler (TPE) learns from them."
    )
    pruner: Literal["median", "none"] = Field(
        "median",
        description="median stops a trial after a fold when it is below the median of the complete trials at that fold.",
    )
    unpruned: int = Field(4, ge=1, description="Trials that must be complete before one is stopped early.")
    seed: int | None = Field(None, ge=0, description="Seed of the sampler; empty means env.seed.")
