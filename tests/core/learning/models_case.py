"""The record of a model that nobody trained."""

from __future__ import annotations

from brainmri_core.learning.checkpoint import (
    CheckpointMeta,
    Preprocessing,
)

META = CheckpointMeta(
    model_name="resnet18",
    classes=["a", "b", "c"],
    preprocessing=Preprocessing(
        pack_size=32, image_size=32, channels=1, colour=False, fit="letterbox", mean=[0.2], std=[0.3]
    ),
    train_config={},
    env_config={},
    data_hash="0" * 64,
    pack_pointer=None,
    dataset="brainmri/phantom",
    run_id="r1",
    epoch=1,
    val_macro_f1=0.5,
)
