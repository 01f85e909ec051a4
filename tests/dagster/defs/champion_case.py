"""Trainings with known predictions, stored as the stages store them, for tests of the champion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from brainmri_core.cross_validation import fold_pack
from brainmri_core.evaluation.prediction_table import prediction_table
from brainmri_core.evaluation.tested_model import validation_of
from brainmri_core.images.fit import decode_fitted
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.checkpoint import (
    CheckpointMeta,
    Preprocessing,
    save_checkpoint,
)
from brainmri_core.learning.inference import predict
from brainmri_core.learning.models import build_model, head
from brainmri_core.project.pointer_store import follow, write_pointer
from brainmri_core.project.pointers import (
    CheckpointPointer,
    CrossValidationPointer,
    EvaluationPointer,
    MappingPointer,
    PackPointer,
)
from brainmri_core.project.sample_table import read_samples, write_samples
from brainmri_core.system.checksums import sha256_file
from tests.dagster.conftest import PHANTOM, Workbench

MODEL = "mobilenet_v3_small"


def pack_of(bench: Workbench) -> PackPointer:
    pack = bench.pointer("resized_images")
    assert isinstance(pack, PackPointer)
    return pack


def teach(model: nn.Module, pixels: np.ndarray, how: Preprocessing, calls: np.ndarray) -> None:
    """Set the last layer so that the model predicts the given classes; with more features than images that is possible."""
    device = torch.device("cpu")
    found = predict(
        model,
        pixels,
        np.arange(len(pixels)),
        how,
        device=device,
        batch_size=64,
        embeddings=True,
        progress=False,
    ).embeddings
    assert found is not None
    features = np.c_[found.astype(np.float64), np.ones(len(found))]
    last = head(model)
    weights, *_ = np.linalg.lstsq(features, np.eye(last.out_features)[calls], rcond=1e-12)
    with torch.no_grad():
        last.weight.copy_(torch.from_numpy(weights[:-1].T))
        last.bias.copy_(torch.from_numpy(weights[-1]))


def contender(
    bench: Workbench,
    run_id: str,
    seed: int,
    *,
    knows: bool,
    pack: PackPointer,
    classes: list[str] | None = None,
    wrong_on: str | None = None,
    inference: str | None = "fp32",
    training: dict[str, object] | None = None,
    model_name: str = MODEL,
    **how: object,
) -> tuple[CheckpointPointer, EvaluationPointer]:
    """Store a model's checkpoint and its evaluation.

    If it `knows`, it predicts all images right except those of the side `wrong_on`; else it is untrained. `how` says how
    its images are prepared if not like the pack's, `training` how its validation images were chosen.
    """
    layout, names = bench.layout, classes or pack.classes
    torch.manual_seed(seed)
    seen: dict[str, object] = {"pack_size": pack.size, "fit": pack.fit, "colour": False, **how}
    preprocessing = Preprocessing.model_validate(
        {"image_size": seen["pack_size"], "channels": 1, "mean": [0.2], "std": [0.2], **seen}
    )
    model = build_model(model_name, num_classes=len(names), in_channels=preprocessing.channels).eval()
    meta = CheckpointMeta(
        model_name=model_name,
        classes=names,
        preprocessing=preprocessing,
        train_config={"data": {"val_frac": 0.3, "seed": 42, **(training or {})}},
        env_config={},
        data_hash=pack.content_hash,
        pack_pointer=pack.pointer_path,
        dataset=PHANTOM,
        run_id=run_id,
        epoch=1,
        val_macro_f1=0.5,
    )
    samples = read_samples(layout.absolute(pack.samples))
    packed = samples[samples["row"] >= 0].sort_values("row", ignore_index=True)
    packed["split"] = np.where(validation_of(packed, meta), "validation", packed["split"])
    pixels = images_of(bench, pack, packed, preprocessing)
    if knows:
        truth = np.array([names.index(name) if name in names else 0 for name in packed["label"]])
        teach(model, pixels, preprocessing, (truth + (packed["split"] == wrong_on).to_numpy()) % len(names))
    folder = layout.root / "models" / run_id
    folder.mkdir(parents=True)
    save_checkpoint(folder / "best.pth", model.state_dict(), meta)
    checkpoint = write_pointer(
        layout,
        CheckpointPointer(
            dataset=PHANTOM,
            run_id=run_id,
            content_hash=run_id,
            written_at_utc="2026-01-01T00:00:00Z",
            checkpoint=f"models/{run_id}/best.pth",
            checkpoint_sha256=sha256_file(folder / "best.pth"),
            history=f"models/{run_id}/history.csv",
            curves=None,
            model_name=model_name,
            best_epoch=1,
            epochs_run=1,
            val_macro_f1=0.5,
            pack_pointer=str(pack.pointer_path),
        ),
    )
    held = packed["split"].isin(["test", "validation"]).to_numpy()
    device = torch.device("cpu")
    logits = predict(
        model, pixels, np.flatnonzero(held), preprocessing, device=device, batch_size=64, progress=False
    ).logits
    kept = packed[held].reset_index(drop=True)
    write_samples(
        folder / "predictions.parquet", prediction_table(kept, logits, names, np.full(len(kept), np.nan))
    )
    right = logits.argmax(axis=1) == kept["class_index"].to_numpy()
    tested = (kept["split"] == "test").to_numpy()
    evaluation = EvaluationPointer(
        dataset=PHANTOM,
        run_id=run_id,
        content_hash=f"{run_id}-evaluation",
        written_at_utc="2026-01-01T00:00:00Z",
        folder=f"models/{run_id}",
        metrics=f"models/{run_id}/metrics.json",
        predictions=f"models/{run_id}/predictions.parquet",
        report=f"models/{run_id}/report.html",
        headline={"macro_f1": float(right[tested].mean())},
        checkpoint_pointer=checkpoint.pointer_path,
        pack_pointer=pack.pointer_path,
        inference=inference,
    )
    return checkpoint, evaluation


def images_of(bench: Workbench, pack: PackPointer, packed: pd.DataFrame, how: Preprocessing) -> np.ndarray:
    """Return the pack's images as a model takes them, row by row."""
    if (how.pack_size, how.fit, how.colour) == (pack.size, pack.fit, pack.channels == 3):
        return open_pack(bench.layout, pack)
    root = bench.layout.absolute(follow(bench.layout, MappingPointer, pack.mapping_pointer).dataset_root)
    found = [
        decode_fitted(
            (root / path).read_bytes(), name=path, size=how.pack_size, fit=how.fit, gray=not how.colour
        )[1]
        for path in packed["path"]
    ]
    return np.stack(found)


def cross_validated(
    bench: Workbench, pack: PackPointer, recipe: str, *, right: bool, inference: str = "fp32"
) -> CrossValidationPointer:
    """Store a cross-validation whose out-of-fold predictions are all right, or all wrong."""
    layout = bench.layout
    samples = read_samples(layout.absolute(pack.samples))
    train = samples[(samples["split"] == "train") & (samples["row"] >= 0)].reset_index(drop=True)
    called = (train["class_index"].to_numpy() + (not right)) % len(pack.classes)
    logits = np.eye(len(pack.classes), dtype=np.float32)[called] * 9
    folder = layout.root / "outputs" / "cross_validation" / PHANTOM / f"cv-{recipe[:4]}-{right}-{inference}"
    folder.mkdir(parents=True)
    write_samples(
        folder / "predictions.parquet",
        prediction_table(train, logits, pack.classes, np.full(len(train), np.nan)),
    )
    return write_pointer(
        layout,
        CrossValidationPointer(
            dataset=PHANTOM,
            run_id=folder.name,
            content_hash=folder.name,
            written_at_utc="2026-01-01T00:00:00Z",
            folder=layout.relative(folder),
            metrics=layout.relative(folder / "metrics.json"),
            predictions=layout.relative(folder / "predictions.parquet"),
            headline={},
            fold_checkpoints=[],
            pack_pointer=str(pack.pointer_path),
            recipe=recipe,
            inference=inference,
        ),
    )


def store_fold(
    bench: Workbench, number: int, wrong: int, **how: Any
) -> tuple[CheckpointPointer, EvaluationPointer]:
    """Store a fold's checkpoint, and an evaluation whose first `wrong` predictions are wrong; `how` as in `contender`."""
    pack = pack_of(bench)
    seen = fold_pack(pack, number, bench.job(f"cv-{wrong}-{number}"))
    checkpoint, evaluation = contender(bench, f"cv-{wrong}-{number}", number, knows=True, pack=seen, **how)
    table = read_samples(bench.layout.absolute(seen.samples))
    held = table[table["split"] == "test"].reset_index(drop=True)
    called = held["class_index"].to_numpy().copy()
    called[:wrong] = (called[:wrong] + 1) % len(pack.classes)
    logits = np.eye(len(pack.classes), dtype=np.float32)[called] * 9
    stored = prediction_table(held, logits, pack.classes, np.full(len(held), np.nan))
    write_samples(bench.layout.absolute(evaluation.predictions), stored)
    return checkpoint, evaluation
