"""Config of the external evaluation: a checkpoint on a data set that it was not trained on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from brainmri_core.config.base import SeededConfig
from brainmri_core.config.data import CopySearchConfig


class ExternalConfig(SeededConfig):
    """Measure a checkpoint on a data set that it was not trained on."""

    checkpoint: str | None = Field(
        None, description="Checkpoint to measure; empty takes the champion, else the newest checkpoint."
    )
    copies: CopySearchConfig = Field(
        CopySearchConfig(),
        description="What counts as a copy of an image the model was trained on or selected by, and is taken out.",
    )
    seed: int | None = Field(None, ge=0, description="Seed of all resampling; empty means env.seed.")
    bootstrap_resamples: int = Field(
        2000, ge=100, le=100_000, description="Resamples of patients or groups for 95% intervals."
    )
    recalibration_images: list[Annotated[int, Field(ge=10, le=100_000)]] = Field(
        [50, 200],
        description="Numbers of labelled images for which to estimate what fitting the temperature again would give.",
    )
    recalibration_resamples: int = Field(
        200, ge=20, le=10_000, description="Random choices of those images that the answer is a mean of."
    )
    shift_permutations: int = Field(
        999, ge=99, le=100_000, description="Permutations of the test whether both sets of images are alike."
    )
    max_ece: float = Field(
        0.15, ge=0, le=1, description="Greatest calibration error, with the carried temperature, that passes."
    )
    pairs_shown: int = Field(
        12, ge=0, le=100, description="Pairs of an image taken out and what it was taken out for on the page."
    )
    out: str = Field(
        "outputs/external_evaluation", min_length=1, description="Folder of external evaluations."
    )
