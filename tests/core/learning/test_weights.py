from __future__ import annotations

import argparse
import functools
import json
import socket
from collections.abc import Callable, Iterator
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
from brainmri_core.learning.models import build_model, head
from brainmri_core.learning.pretrained import initial_model
from brainmri_core.learning.weights import match, read_weights
from brainmri_core.project.logs import Record, StageLog

State = dict[str, torch.Tensor]


class Start:
    """Begins trainings from a file, and keeps what was said of it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "weights.pth"
        self.logged: list[Record] = []

    def __call__(self, content: Any, name: str = "resnet18", pack_channels: int = 1) -> tuple[nn.Module, int]:
        if content is not None:
            torch.save(content, self.file)
        log = StageLog("train", "r1", "a/b", [self.logged.append])
        config = ModelConfig(name=name, weights_file=str(self.file))
        first = initial_model(config, num_classes=4, pack_channels=pack_channels, image_size=64, log=log)
        assert (first.normalisation is None) == (first.channels == 1), "gray weights were not ImageNet's"
        return first.model, first.channels

    @property
    def text(self) -> str:
        return json.dumps(self.logged)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    yield Start(tmp_path)


def state(name: str = "resnet18", classes: int = 4, channels: int = 3) -> State:
    """Return random weights of a model: a dictionary of one's own, with tensors that all tests share."""
    return dict(_state(name, classes, channels))


@functools.cache
def _state(name: str, classes: int, channels: int) -> State:
    torch.manual_seed(classes)
    return build_model(name, num_classes=classes, in_channels=channels).state_dict()


def under(prefix: str, weights: State) -> State:
    return {prefix + key: value for key, value in weights.items()}


def body(weights: State) -> State:
    return {key: value for key, value in weights.items() if not key.startswith("fc.")}


def has_body(model: nn.Module, weights: State) -> bool:
    own = model.state_dict()
    return all(torch.equal(own[key], value) for key, value in body(weights).items())


PREFIXES = [
    *("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.", "any.name.of_theirs."),
    *("module._orig_mod.", "model.backbone.", "net.module.encoder.", "model._orig_mod.module."),
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_common_prefix_is_seen_through(start: Start, prefix: str) -> None:
    weights = state()
    model, _ = start({"state_dict": under(prefix, weights), "epoch": 3, "lr": [0.1]})
    assert has_body(model, weights)
    assert torch.equal(head(model).weight, weights["fc.weight"]), "the head for the same classes is kept"


ENTRIES = [
    "state_dict",
    "model",
    "model_state_dict",
    "net",
    "ema",
    "ema_state_dict",
    "state_dict_ema",
    "params",
]


@pytest.mark.parametrize("entry", ENTRIES)
def test_any_entry_of_a_training_s_file_is_found(start: Start, entry: str) -> None:
    weights = state()
    moments = {"state": {0: {"exp_avg": torch.zeros(64, 3, 7, 7)}}, "param_groups": [{"lr": 0.1}]}
    model, _ = start({"optimizer": moments, "args": argparse.Namespace(lr=1), entry: weights})
    assert has_body(model, weights)
    assert "left out" not in start.text


def test_averaged_weights_go_first_and_the_log_says_so(start: Start) -> None:
    raw, averaged = state(classes=3), state()
    wrapped = under("module.", averaged) | {"n_averaged": torch.tensor(5)}
    model, _ = start({"model": raw, "model_ema": wrapped})
    assert has_body(model, averaged)
    assert not has_body(model, raw)
    assert '"used": "model_ema."' in start.text and '"others": "model."' in start.text


def test_safetensors_are_read_whatever_they_are_called(start: Start) -> None:
    weights = state()
    safetensors.torch.save_file(under("encoder.", weights), start.file)
    assert has_body(start(None)[0], weights)


HEADS: list[State] = [
    {"head.weight": torch.zeros(4, 512), "head.bias": torch.zeros(4)},
    {"classifier.weight": torch.zeros(7, 512), "classifier.bias": torch.zeros(7)},
    {"fc.0.weight": torch.zeros(64, 512), "fc.3.weight": torch.zeros(4, 64), "fc.3.bias": torch.zeros(4)},
]


@pytest.mark.parametrize("other", HEADS, ids=["head", "classifier", "layers in fc"])
def test_a_head_of_another_name_is_left_out_and_named(start: Start, other: State) -> None:
    weights = state()
    model, _ = start({"state_dict": under("model.", body(weights) | other)})
    assert has_body(model, weights)
    assert head(model).out_features == 4
    (warning,) = [record for record in start.logged if record["level"] == "WARNING"]
    assert "head of another name" in warning["event"]
    assert all(f"model.{key}" in warning["event"] for key in other)


def test_a_head_beside_the_backbone_is_left_out_and_named(start: Start) -> None:
    weights = state()
    model, _ = start(under("backbone.", body(weights)) | {"classifier.weight": torch.zeros(4, 512)})
    assert has_body(model, weights)
    assert "left out: classifier.weight" in start.text


@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "efficientnet_b0", "mobilenet_v3_small", "regnet_x_400mf"]
)
@pytest.mark.parametrize("cut", [-1, None], ids=["without head", "with head"])
def test_numbered_layers_of_a_sequential_are_understood(start: Start, name: str, cut: int | None) -> None:
    source = torchvision.models.get_model(name, weights=None, num_classes=4)
    numbered = nn.Sequential(*list(source.children())[:cut]).state_dict()
    model, _ = start(under("backbone.", numbered), name)
    first, wanted = next(iter(source.state_dict().items()))
    assert torch.equal(model.state_dict()[first], wanted)
    assert torch.equal(head(model).weight, head(source).weight) == (cut is None)


def test_features_alone_are_understood(start: Start) -> None:
    source = torchvision.models.mobilenet_v3_small(num_classes=4)
    model, _ = start(under("encoder.", source.features.state_dict()), "mobilenet_v3_small")
    assert torch.equal(
        model.state_dict()["features.12.0.weight"], source.state_dict()["features.12.0.weight"]
    )


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_imagenet_weights_get_a_fresh_head(start: Start, suffix: str) -> None:
    weights = state(classes=1000)
    start.file = start.file.with_suffix(f".{suffix}")
    save: Callable[[Any, Path], None] = safetensors.torch.save_file if suffix == "safetensors" else torch.save
    save(weights, start.file)
    model, channels = start(None)
    assert channels == 3 and has_body(model, weights)
    assert head(model).out_features == 4
    assert '"head": "fresh"' in start.text


def test_a_gray_model_stays_gray(start: Start) -> None:
    weights = state(channels=1)
    model, channels = start(under("encoder.", weights), pack_channels=3)
    assert channels == 1 and has_body(model, weights)


def test_published_densenet_names_are_understood(start: Start) -> None:
    weights = state("densenet121", 1000)
    old = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in key else key: value
        for key, value in weights.items()
    }
    assert any("norm.1." in key for key in old)
    key = "features.denseblock1.denselayer1.norm1.weight"
    assert torch.equal(start(old, "densenet121")[0].state_dict()[key], weights[key])


def lacking_a_layer() -> State:
    return {key: value for key, value in state().items() if key != "layer4.1.conv2.weight"}


MISFITS: dict[str, tuple[Callable[[], State], str]] = {
    "a longer one": (
        lambda: under("model.", state("resnet34")),
        r"100 of its 100 tensors .*under 'model\.'.*and 96 more .*those of a resnet34: set train\.model\.name",
    ),
    "another": (lambda: state("resnet50"), r"those of a resnet50"),
    "one missing": (lacking_a_layer, r"99 of its 100 tensors .*layer4\.1\.conv2\.weight is not there"),
    "four channels": (
        lambda: {**state(), "conv1.weight": torch.zeros(64, 4, 7, 7)},
        r"99 of its 100 .*conv1\.weight is 64x4x7x7 instead of 64x3x7x7",
    ),
    "foreign": (
        lambda: {f"blocks.{number}.attn.qkv.weight": torch.zeros(12, 4) for number in range(6)},
        r" 0 of its 100 .*6 tensors: blocks\.0\.attn\.qkv\.weight \(12x4\)",
    ),
    "other classes": (
        lambda: state(classes=3),
        r"are for 3 classes and this data has 4.*remove the head",
    ),
}


@pytest.mark.full
@pytest.mark.parametrize(("content", "words"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_explained_by_what_was_found(
    start: Start, content: Callable[[], State], words: str
) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        start(content())
    assert str(start.file) in str(caught.value)


def test_names_in_a_file_cannot_forge_a_line(start: Start) -> None:
    with pytest.raises(ModelError) as caught:
        start({"\x1b[31mfake\nline.weight": torch.zeros(2, 2)})
    assert str(caught.value).isprintable()


def test_objects_in_a_file_are_named_and_never_made(start: Start) -> None:
    with pytest.raises(
        ModelError, match=r"it holds numpy\S+scalar, numpy\.dtype besides tensors.*state_dict"
    ):
        start({"model": state(), "best": np.float64(1)})
    with pytest.raises(ModelError, match=r"it holds torch\.nn\.modules\.linear\.Linear"):
        start(nn.Linear(2, 2))
    for nothing in ({"epoch": 3}, [torch.zeros(2)], torch.zeros(2)):
        with pytest.raises(ModelError, match="holds no tensors"):
            start(nothing)


def test_torch_s_own_names_are_read_as_they_are(tmp_path: Path) -> None:
    weights = state()
    torch.save(weights, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").keys() == weights.keys()
    assert match(read_weights(tmp_path / "w.pth"), "resnet18").prefix == ""


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
    log = StageLog("train", "r1", "a/b", [])
    with pytest.raises(
        ModelError, match=r"resnet18 cannot be downloaded.*weights_file.*weights_package.*pretrained"
    ):
        initial_model(ModelConfig(name="resnet18"), num_classes=4, pack_channels=1, image_size=64, log=log)
