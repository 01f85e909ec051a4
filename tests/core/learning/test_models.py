from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from brainmri_core.errors import ModelError
from brainmri_core.learning.checkpoint import (
    load_checkpoint,
    load_model,
    save_checkpoint,
    save_safetensors,
)
from brainmri_core.learning.inference import predict_evenly
from brainmri_core.learning.models import (
    MODEL_NAMES,
    blocks,
    build_model,
    gradcam_layer,
    head,
)
from brainmri_core.learning.weights import read_weights
from tests.core.learning.models_case import META

CPU = torch.device("cpu")


class Payload:
    """Unpickling this creates a file: what a hostile checkpoint would do."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "convnext_tiny", "densenet121"])
@pytest.mark.parametrize("channels", [1, 3])
def test_models_take_gray_and_colour_and_show_their_last_feature_map(name: str, channels: int) -> None:
    model = build_model(name, num_classes=4, in_channels=channels).eval()
    seen: dict[str, torch.Tensor] = {}
    gradcam_layer(name, model).register_forward_hook(lambda _, __, out: seen.update(map=out))
    head(model).register_forward_pre_hook(lambda _, inputs: seen.update(embedding=inputs[0]))
    with torch.inference_mode():
        logits = model(torch.zeros(2, channels, 64, 64))
    assert logits.shape == (2, 4)
    assert seen["map"].shape[2:] == (2, 2)
    assert seen["embedding"].shape == (2, head(model).in_features)


def test_the_named_models_are_there() -> None:
    assert {"resnet18", "resnet34", "resnet50", "efficientnet_b0", "convnext_tiny", "densenet121"} <= set(
        MODEL_NAMES
    )


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "densenet121"])
def test_blocks_hold_every_parameter_once_and_end_with_the_head(name: str) -> None:
    model = build_model(name, num_classes=4, in_channels=1)
    parts = blocks(model)
    assert sorted(id(p) for part in parts for p in part) == sorted(id(p) for p in model.parameters())
    assert parts[-1] == list(head(model).parameters())
    assert len(parts) > 4


@pytest.mark.parametrize(
    ("name", "near"), [("resnet81", "resnet18"), ("ResNet50", "resnet50"), ("eficientnet_b0", "efficientnet")]
)
def test_an_unknown_model_gets_its_nearest_names(name: str, near: str) -> None:
    with pytest.raises(ModelError, match=near):
        build_model(name, num_classes=4, in_channels=1)


def test_checkpoints_come_back_as_they_were(tmp_path: Path) -> None:
    model = build_model("resnet18", num_classes=3, in_channels=1).eval()
    save_checkpoint(tmp_path / "c.pth", model.state_dict(), META)
    loaded, meta = load_model(tmp_path / "c.pth", CPU)
    assert meta == META and not loaded.training
    batch = torch.randn(2, 1, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = model.to(memory_format=torch.channels_last)(batch)  # type: ignore[call-overload]
        assert torch.equal(loaded(batch), expected)
    save_safetensors(tmp_path / "c.safetensors", model.state_dict(), META, "0" * 64)
    again, meta = load_model(tmp_path / "c.safetensors", CPU)
    assert meta == META
    with torch.inference_mode():
        assert torch.equal(again(batch), expected)
    (tmp_path / "renamed.pth").write_bytes((tmp_path / "c.safetensors").read_bytes())
    assert load_checkpoint(tmp_path / "renamed.pth")[0] == META, "the content counts, not the ending"
    safetensors.torch.save_file({"fc.weight": torch.zeros(3, 4)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ModelError, match="no record of its model"):
        load_checkpoint(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("load", [load_checkpoint, read_weights])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(
    tmp_path: Path, load: Any, legacy: bool
) -> None:
    target, path = tmp_path / "pwned", tmp_path / "evil.pth"
    content = {"meta": META.model_dump(), "model": {"fc.weight": Payload(target)}}
    if legacy:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(ModelError, match="cannot be read safely"):
        load(path)
    assert not target.exists()
    torch.load(path, weights_only=False) if not legacy else pickle.loads(path.read_bytes())
    assert target.exists(), "the payload is harmless, so this test would prove nothing"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"not a checkpoint", "cannot be read safely"),
        (b"", "cannot be read safely"),
        (None, "does not exist"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "c.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=sentence):
        load_checkpoint(path)


def test_mirrored_prediction_is_the_mean_of_both_and_blind_to_the_side() -> None:
    torch.manual_seed(0)
    model = build_model("resnet18", num_classes=3, in_channels=1).eval()
    pack = np.random.default_rng(0).integers(0, 256, (5, 32, 32), dtype=np.uint8)

    def logits(images: np.ndarray, *, tta: bool) -> np.ndarray:
        found = predict_evenly(
            model,
            images,
            np.arange(5),
            META.preprocessing,
            device=CPU,
            batch_size=3,
            precision="fp32",
            tta=tta,
        )
        assert found.embeddings is not None and len(found.embeddings) == 5
        return found.logits

    mirrored = np.ascontiguousarray(pack[:, :, ::-1])
    both = (logits(pack, tta=False) + logits(mirrored, tta=False)) / 2
    np.testing.assert_allclose(logits(pack, tta=True), both, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits(mirrored, tta=True), both, rtol=1e-5, atol=1e-6)
    assert np.abs(logits(pack, tta=False) - both).max() > 1e-3


def test_a_foreign_checkpoint_or_one_with_other_weights_is_named(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "foreign.pth")
    with pytest.raises(ModelError, match="no record of its model"):
        load_checkpoint(tmp_path / "foreign.pth")
    wrong = torchvision.models.resnet34(num_classes=3).state_dict()
    save_checkpoint(tmp_path / "wrong.pth", wrong, META)
    with pytest.raises(ModelError, match="do not fit resnet18 with 3 classes"):
        load_model(tmp_path / "wrong.pth", CPU)
