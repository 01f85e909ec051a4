"""Config of the embeddings of a data set."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from brainmri_core.config.base import Precision, SeededConfig
from brainmri_core.config.training import ModelConfig, ProbeConfig


class EmbeddingsConfig(SeededConfig):
    """Compute the features of all images with a frozen network, and score a linear classifier on them over the folds."""

    model: ModelConfig = ModelConfig()
    probe: ProbeConfig = ProbeConfig()
    image_size: int | None = Field(
        None, ge=16, le=1024, description="Side in pixels the network sees; empty means the pack's."
    )
    batch_size: int = Field(32, ge=1, le=65536, description="Images per forward pass.")
    precision: Literal["auto", Precision] = Field(
        "auto", description="Arithmetic; auto takes bf16 where the hardware has it."
    )
    class_weights: bool = Field(True, description="Weigh images by inverse class frequency in the probe.")
    val_frac: float = Field(
        0.2, gt=0, lt=1, description="Share of the training groups that choose the probe's penalty."
    )
    bootstrap_resamples: int = Field(
        2000, ge=0, le=100_000, description="Resamples of groups for 95% intervals of the probe; 0: none."
    )
    false_alarms: float = Field(
        0.01,
        gt=0,
        le=0.5,
        description="Share of test sides like the training images that their comparison may flag.",
    )
    seed: int | None = Field(
        None, ge=0, description="Seed of random weights, validation groups and bootstrap; empty: env.seed."
    )
