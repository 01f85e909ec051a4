"""Every encoder of the table in docs/training.md is trained, stored, explained, exported and used."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from brainmri_core.evaluation.gradcam import maps_of_rows
from brainmri_core.export import export_checkpoint
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.checkpoint import load_model
from brainmri_core.learning.inference import predict
from brainmri_core.learning.models import build_model, head
from brainmri_core.project.job import Job
from brainmri_core.project.logs import Record
from brainmri_core.train import train
from tests import ROOT
from tests.core.learning.training_pack import config, make_pack
from tests.counts import long, rest

pytestmark = pytest.mark.training

_ROW = re.compile(
    r"^\| `(?P<name>[a-z0-9_/.]+)` \| (?P<millions>[0-9.]+) \| (?P<side>[^|]+) \|", re.MULTILINE
)
_PAGE = (ROOT / "docs/training.md").read_text(encoding="utf-8")
TABLE = {row["name"]: row for row in _ROW.finditer(_PAGE.partition("## Encoders\n")[2].partition("\n## ")[0])}
CHEAP = ["timm/mobilenetv4_conv_small"]
TYPICAL = ["resnet18", "convnext_tiny", "timm/tf_efficientnet_lite0", "timm/vit_small_patch14_dinov2.lvd142m"]
OTHERS = [name for name in TABLE if name not in CHEAP + TYPICAL]
SIDES = {"timm/vit_small_patch14_dinov2.lvd142m": 56}


def test_the_table_holds_the_encoders_that_are_promised() -> None:
    assert {
        *("resnet18", "resnet34", "resnet50", "convnext_tiny", "densenet121", "efficientnet_b0"),
        *("timm/tf_efficientnet_lite0", "timm/tf_efficientnet_lite2", "timm/mobilenetv4_conv_small"),
        *("timm/vit_small_patch16_224", "timm/vit_small_patch14_dinov2.lvd142m"),
    } <= set(TABLE)


@pytest.mark.parametrize("name", [*CHEAP, *rest(*TYPICAL), *long(*OTHERS)])
def test_an_encoder_is_trained_kept_explained_exported_and_used(
    job: Job, tmp_path: Path, records: list[Record], name: str
) -> None:
    torch.set_num_threads(1)
    side = SIDES.get(name, 64)
    pack = make_pack(job, per_class=8, size=side)
    options = config(model={"name": name}, data={"batch_size": 12}, loop={"epochs": 1, "precision": "fp32"})
    made = train(options, pack, job)
    assert next(item["steps_per_epoch"] for item in records if item["event"] == "training") == 2

    weights = job.layout.absolute(made.checkpoint)
    model, meta = load_model(weights, torch.device("cpu"))
    fresh = build_model(name, num_classes=4, in_channels=1, image_size=side)
    body = sum(item.numel() for item in fresh.parameters()) - sum(
        item.numel() for item in head(fresh).parameters()
    )
    assert f"{body / 1e6:.1f}" == TABLE[name]["millions"]
    assert (meta.model_name, meta.preprocessing.image_size, meta.preprocessing.channels) == (name, side, 1)

    pixels, rows = open_pack(job.layout, pack), np.arange(6)
    found = predict(
        model, pixels, rows, meta.preprocessing, device=torch.device("cpu"), batch_size=6, embeddings=True
    )
    assert found.logits.shape == (6, 4) and np.isfinite(found.logits).all()
    assert found.embeddings is not None and found.embeddings.shape == (6, head(model).in_features)
    maps = maps_of_rows(
        model, name, pixels, rows, found.logits.argmax(1), meta.preprocessing,
        device=torch.device("cpu"), batch_size=3,
    )  # fmt: skip
    assert maps.grid > 1 and maps.gradcam.shape == (6, side, side) and np.isfinite(maps.gradcam).all()

    path = export_checkpoint(weights, tmp_path / "model.onnx", "onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = pixels[:6, None].astype(np.float32) / 255
    (logits,) = session.run(["logits"], {"pixels": given})
    np.testing.assert_allclose(logits, found.logits, rtol=2e-3, atol=2e-3)
