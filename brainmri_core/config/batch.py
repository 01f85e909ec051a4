"""Config of batch prediction: all images of a data set."""

from __future__ import annotations

from pydantic import Field

from brainmri_core.config.base import SeededConfig


class BatchPredictConfig(SeededConfig):
    """Predict all images of a data set, labelled or not, and measure their drift from the model's validation images."""

    checkpoint: str | None = Field(
        None,
        description="Checkpoint file or folder of an evaluation; empty: the champion of model_of, else its newest checkpoint.",
    )
    model_of: str | None = Field(
        None,
        description="Data set whose model predicts; empty: the data set's own, else the only one that has a model.",
    )
    out_dir: str = Field("outputs/batch_predictions", min_length=1, description="Folder of predictions.")
    drift_images: int = Field(
        50,
        ge=2,
        description="Drift is measured on all images that a run adds, and at least on this many of the newest.",
    )
    false_alarms: float = Field(
        0.01,
        gt=0,
        le=0.5,
        description="Share of batches like the validation images that the drift check may flag.",
    )
    seed: int | None = Field(None, ge=0, description="Seed of the drift measures; empty means env.seed.")
