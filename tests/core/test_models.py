from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from brainmri_core.config.training import ModelConfig
from brainmri_core.errors import ModelError
from brainmri_core.learning.checkpoint import (
    CheckpointMeta,
    Preprocessing,
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
    initial_model,
    load_backbone,
    read_weights,
)

CPU = torch.device("cpu")
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


def test_weights_that_cannot_be_downloaded_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{closed.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        ModelError, match=r"resnet18 cannot be downloaded.*train\.model\.weights_file.*pretrained"
    ):
        initial_model(ModelConfig(name="resnet18"), num_classes=4, pack_channels=1)


def weights_file(path: Path, name: str, classes: int, channels: int = 3) -> dict[str, torch.Tensor]:
    weights = build_model(name, num_classes=classes, in_channels=channels).state_dict()
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path)
    return weights


@pytest.mark.parametrize("file", ["w.pth", "w.safetensors"])
def test_imagenet_weights_from_a_file_get_a_fresh_head(tmp_path: Path, file: str) -> None:
    weights = weights_file(tmp_path / file, "resnet18", 1000)
    config = ModelConfig(name="resnet18", weights_file=str(tmp_path / file))
    model, channels, pretrained = initial_model(config, num_classes=4, pack_channels=1)
    assert (channels, pretrained) == (3, True)
    assert torch.equal(model.state_dict()["layer3.0.conv1.weight"], weights["layer3.0.conv1.weight"])
    assert head(model).out_features == 4


def test_weights_for_the_same_classes_keep_their_head(tmp_path: Path) -> None:
    weights = weights_file(tmp_path / "w.pth", "resnet18", 4, channels=1)
    config = ModelConfig(name="resnet18", weights_file=str(tmp_path / "w.pth"))
    model, channels, _ = initial_model(config, num_classes=4, pack_channels=1)
    assert channels == 1
    assert torch.equal(head(model).weight, weights["fc.weight"])


def test_weights_of_another_architecture_or_class_count_are_refused(tmp_path: Path) -> None:
    weights_file(tmp_path / "other.pth", "resnet34", 1000)
    weights_file(tmp_path / "three.pth", "resnet18", 3)
    with pytest.raises(ModelError, match=r"do not fit resnet18 \(first difference: layer1\.2"):
        initial_model(
            ModelConfig(name="resnet18", weights_file=str(tmp_path / "other.pth")),
            num_classes=4,
            pack_channels=1,
        )
    with pytest.raises(ModelError, match="are for 3 classes and this data has 4"):
        initial_model(
            ModelConfig(name="resnet18", weights_file=str(tmp_path / "three.pth")),
            num_classes=4,
            pack_channels=1,
        )


def test_published_densenet_names_are_understood() -> None:
    model = build_model("densenet121", num_classes=4, in_channels=3)
    old = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in key else key: value
        for key, value in build_model("densenet121", num_classes=1000, in_channels=3).state_dict().items()
    }
    assert any("norm.1." in key for key in old)
    load_backbone(model, old, "weights", "densenet121")
    key = "features.denseblock1.denselayer1.norm1.weight"
    assert torch.equal(model.state_dict()[key], old[key.replace("norm1.", "norm.1.")])


def test_weights_wrapped_by_other_trainers_are_found(tmp_path: Path) -> None:
    plain = build_model("resnet18", num_classes=4, in_channels=1).state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in plain.items()}}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").keys() == plain.keys()


def test_checkpoints_come_back_as_they_were(tmp_path: Path) -> None:
    model = build_model("resnet18", num_classes=3, in_channels=1).eval()
    save_checkpoint(tmp_path / "c.pth", model.state_dict(), META)
    loaded, meta = load_model(tmp_path / "c.pth", CPU)
    assert meta == META and not loaded.training
    batch = torch.randn(2, 1, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = model.to(memory_format=torch.channels_last)(batch)  # type: ignore[call-overload]
        assert torch.equal(loaded(batch), expected)
    save_safetensors(tmp_path / "c.safetensors", model.state_dict(), META)
    with safetensors.safe_open(tmp_path / "c.safetensors", "pt") as file:
        assert CheckpointMeta.model_validate_json(file.metadata()["meta"]) == META
        assert torch.equal(file.get_tensor("fc.weight"), model.state_dict()["fc.weight"])


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
