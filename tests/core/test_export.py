from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from brainmri_core.errors import ConfigError, ModelError
from brainmri_core.export import RECORD_NAME, SUFFIXES, Format, export_checkpoint
from brainmri_core.learning.batches import to_input
from brainmri_core.learning.checkpoint import (
    Preprocessing,
    known_hashes,
    load_model,
    save_checkpoint,
)
from brainmri_core.learning.models import build_model
from brainmri_dagster.cli import app
from tests.core.learning.models_case import META
from tests.counts import rest

pytestmark = pytest.mark.training

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[1, *rest(3)], ids=["gray", "colour"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_of("resnet18", request.param, tmp_path_factory.mktemp("model"))


def checkpoint_of(name: str, channels: int, folder: Path) -> Path:
    """Store a model whose batch statistics are not those of a fresh one, so that a mistake in them shows."""
    torch.manual_seed(3)
    model = build_model(name, num_classes=4, in_channels=channels)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, channels, 64, 64) * 2 + 1)
    pixels = Preprocessing(
        pack_size=64,
        image_size=64,
        channels=channels,
        colour=channels == 3,
        fit="letterbox",
        mean=[0.2, 0.3, 0.4][:channels],
        std=[0.2, 0.25, 0.3][:channels],
    )
    classes = ["glioma", "meningioma", "notumor", "pituitary"]
    meta = META.model_copy(update={"model_name": name, "classes": classes, "preprocessing": pixels})
    path = folder / "best.pth"
    save_checkpoint(path, model.state_dict(), meta)
    return path


def pixels_and_logits(checkpoint: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images, and what the source model says of them by this project's own way of inference."""
    model, meta = load_model(checkpoint, CPU)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, meta.preprocessing.channels, 64, 64), dtype=np.uint8)
    batch = torch.from_numpy(images)
    with torch.inference_mode():
        return batch.float() / 255, model(to_input(batch, meta.preprocessing, CPU))


def run_onnx(path: Path, pixels: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    onnxruntime = pytest.importorskip("onnxruntime")
    found = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = found.run(["logits"], {"pixels": pixels.numpy()})
    return torch.from_numpy(logits), json.loads(found.get_modelmeta().custom_metadata_map[RECORD_NAME])


def run_torch_export(path: Path, pixels: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    extra = {RECORD_NAME: ""}
    program = torch.export.load(path, extra_files=extra)
    return program.module()(pixels), json.loads(extra[RECORD_NAME])


@pytest.mark.parametrize(("kind", "run"), [("onnx", run_onnx), ("torch_export", run_torch_export)])
def test_an_export_says_what_its_source_says_for_any_number_of_images(
    checkpoint: Path, tmp_path: Path, kind: Format, run: Any
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    path = export_checkpoint(checkpoint, tmp_path / f"model{SUFFIXES[kind]}", kind)
    for count in (1, 5):
        pixels, wanted = pixels_and_logits(checkpoint, count)
        with torch.no_grad():
            logits, record = run(path, pixels)
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
    assert record["classes"] == ["glioma", "meningioma", "notumor", "pituitary"]
    assert record["preprocessing"]["image_size"] == 64 and record["input"]["normalised_inside"] is True


@pytest.mark.full
@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v3_small",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("efficientnet_b0", "densenet121", "convnext_tiny", "regnet_y_400mf")
        ),
    ],
)
@pytest.mark.parametrize(("kind", "run"), [("onnx", run_onnx), ("torch_export", run_torch_export)])
def test_every_family_of_models_can_be_exported(tmp_path: Path, name: str, kind: Format, run: Any) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    source = checkpoint_of(name, 1, tmp_path)
    path = export_checkpoint(source, tmp_path / f"model{SUFFIXES[kind]}", kind)
    pixels, wanted = pixels_and_logits(source, 2)
    with torch.no_grad():
        logits, _ = run(path, pixels)
    torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.full
def test_the_command_line_exports_beside_the_checkpoint_or_says_why_not(
    checkpoint: Path, tmp_path: Path
) -> None:
    own = tmp_path / "best.pth"
    own.write_bytes(checkpoint.read_bytes())
    done = CliRunner().invoke(app, ["export", "--checkpoint", str(own), "--format", "torch_export"])
    assert done.exit_code == 0, done.output
    assert done.output.strip() == str(tmp_path / "best.pt2")
    assert run_torch_export(tmp_path / "best.pt2", pixels_and_logits(own, 2)[0])[0].shape == (2, 4)
    refused = CliRunner().invoke(app, ["export", "--checkpoint", str(tmp_path / "absent.pth")])
    assert refused.exit_code == ModelError.exit_code
    assert (
        CliRunner().invoke(app, ["export", "--checkpoint", str(own), "--format", "torchscript"]).exit_code
        == 2
    )
    assert "does not exist" in refused.output


def test_safetensors_are_a_checkpoint_again(checkpoint: Path, tmp_path: Path) -> None:
    path = export_checkpoint(checkpoint, tmp_path / "model.safetensors", "safetensors")
    (source, meta), (again, read) = load_model(checkpoint, CPU), load_model(path, CPU)
    assert read == meta
    weights = again.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in source.state_dict().items())
    once_more = export_checkpoint(path, tmp_path / "again.safetensors", "safetensors")
    assert known_hashes(checkpoint) < known_hashes(path)
    assert known_hashes(once_more) > known_hashes(checkpoint), (
        "its evaluation is found through any number of exports"
    )


def test_mistakes_are_one_sentence_and_leave_no_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="'tflite' is not known; choose from onnx"):
        export_checkpoint(checkpoint, tmp_path / "x", "tflite")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="does not exist"):
        export_checkpoint(tmp_path / "absent.pth", tmp_path / "x", "onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"pip install 'brainmri\[export\]'"):
        export_checkpoint(checkpoint, tmp_path / "x", "onnx")
    assert not list(tmp_path.iterdir())
