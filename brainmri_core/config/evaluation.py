"""Config of the evaluation stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from brainmri_core.config.base import Precision, SeededConfig, StageConfig


class EvalDataConfig(SeededConfig):
    """What is evaluated."""

    image_size: int | None = Field(
        None, ge=16, le=1024, description="Must be the checkpoint's; empty takes it from there."
    )
    eval_in: str | None = Field(None, description="Class-folder tree to use where no pack pointer exists.")
    mapping_pointer: str | None = Field(
        None, description="Mapping pointer (file or folder) to use instead of the checkpoint's."
    )
    batch_size: int = Field(32, ge=1, le=65536, description="Images per forward pass.")
    num_workers: int = Field(
        0, ge=0, le=64, description="Threads that read batches ahead; 0 reads them in line."
    )
    seed: int | None = Field(None, ge=0, description="Seed of the bootstrap; empty means env.seed.")


class EvalModelConfig(StageConfig):
    """Which model is evaluated."""

    name: str | None = Field(
        None, description="Must be the checkpoint's architecture; empty takes it from there."
    )
    weights_path: str | None = Field(
        None, description="Checkpoint to use where no checkpoint pointer exists."
    )


class EvalIOConfig(StageConfig):
    """What is written and where."""

    eval_out: str = Field("outputs/evaluation", min_length=1, description="Folder of evaluations.")
    make_galleries: bool = Field(
        True, description="Draw galleries of right, wrong and uncertain predictions."
    )
    make_gradcam: bool = Field(True, description="Draw Grad-CAM overlays.")
    top_per_class: int = Field(6, ge=1, le=50, description="Images per class in each gallery.")


class EvaluateConfig(StageConfig):
    """Measure a checkpoint on the test split."""

    data: EvalDataConfig = EvalDataConfig()
    model: EvalModelConfig = EvalModelConfig()
    io: EvalIOConfig = EvalIOConfig()
    bootstrap_resamples: int = Field(
        2000, ge=0, le=100_000, description="Resamples of groups for 95% intervals; 0: none."
    )
    max_ece: float = Field(
        0.15,
        ge=0,
        le=1,
        description="Greatest calibration error (ECE, after temperature scaling where one was fitted) that passes the check.",
    )
    mirror: bool = Field(
        False,
        description="Average each image's logits with those of its mirror image (test-time augmentation).",
    )
    precision: Literal["auto", Precision] = Field(
        "fp32",
        description="Arithmetic of the forward pass; fp32 gives the same figures on other hardware, auto is faster.",
    )
    choose_by: Literal["own", "external_worst", "external_mean"] = Field(
        "own",
        description="What leaderboard and champion choose models by: held-out images of their own data set, or the worst or "
        "mean macro F1 of their external evaluations on other data sets.",
    )
    challenger: Literal["model_checkpoint", "fold_ensemble"] = Field(
        "model_checkpoint",
        description="Who challenges the champion: the newest trained model, or the newest ensemble of folds.",
    )
