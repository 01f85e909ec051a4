from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from brainmri_core.errors import ModelError
from brainmri_core.learning import device as device_module
from brainmri_core.learning.device import autocast, choose_precision, wrong_in_bf16
from brainmri_core.learning.models import build_model
from brainmri_core.project.job import Job
from brainmri_core.project.logs import Record
from brainmri_core.train import train
from tests.core.learning.training_pack import config, make_pack
from tests.counts import rest

pytestmark = pytest.mark.training

CPU = torch.device("cpu")


def test_precision_follows_the_config_first() -> None:
    assert choose_precision("bf16", False, CPU) == "fp32"
    assert choose_precision("fp32", True, CPU) == "fp32"
    assert choose_precision("bf16", True, CPU) == "bf16"
    assert choose_precision("auto", True, CPU) in ("bf16", "fp32")


@pytest.mark.parametrize(("hardware", "chosen"), [(True, "bf16"), (False, "fp16")])
def test_on_cuda_bf16_must_be_in_hardware(
    monkeypatch: pytest.MonkeyPatch, hardware: bool, chosen: str
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or hardware

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert choose_precision("auto", True, torch.device("cuda")) == chosen


def test_depthwise_convolutions_train_in_fp32_and_predict_in_bf16() -> None:
    depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8, bias=False)
    others = [nn.Conv2d(1, 8, 3), nn.Conv2d(16, 16, 3, groups=4), nn.Conv2d(16, 4, 1)]
    image = torch.randn(2, 1, 12, 12)

    def dtypes() -> list[torch.dtype]:
        image_of = image
        made = []
        with autocast(CPU, "bf16"):
            for layer in (others[0], depthwise, *others[1:]):
                image_of = layer(image_of)
                made.append(image_of.dtype)
        return made

    bf16 = torch.bfloat16
    assert dtypes() == [bf16, torch.float32, bf16, bf16]
    with torch.inference_mode():
        assert dtypes() == [bf16] * 4
    values = torch.randn(2, 8, 12, 12).bfloat16()
    with autocast(CPU, "bf16"):
        depthwise(values).square().sum().backward()
    found = depthwise.weight.grad
    depthwise.weight.grad = None
    depthwise(values.float()).square().sum().backward()
    assert found is not None and depthwise.weight.grad is not None
    assert torch.equal(found, depthwise.weight.grad)


@pytest.mark.parametrize(("channels", "groups", "safe"), [(64, 1, 50), *rest((256, 1, 50)), (64, 64, 56)])
def test_every_convolution_held_to_be_safe_has_the_fp32_gradient_in_bf16(
    channels: int, groups: int, safe: int
) -> None:
    tried = 0
    for kernel, stride, side, batch in itertools.product((1, 3, 5, 7), (1, 2), (1, 2, 3, 4), (1, 13)):
        torch.manual_seed(0)
        layer = nn.Conv2d(channels, channels, kernel, stride, padding=kernel // 2, bias=False, groups=groups)
        if wrong_in_bf16(nn.Sequential(layer), channels, side):
            continue
        tried += 1
        image = torch.randn(batch, channels, side, side)
        exact = _weight_gradient(layer, image, torch.float32)
        rounded = _weight_gradient(layer, image, torch.bfloat16)
        torch.testing.assert_close(rounded, exact, rtol=0, atol=0.03 * float(exact.abs().max()))
    assert tried == safe


def _weight_gradient(layer: nn.Conv2d, image: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    weight = layer.weight.detach().to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    # Freed memory full of NaN shows in what reads memory that nobody wrote.
    for size in (weight.numel(), weight.numel() // 2):
        del [torch.full((size,), float("nan")) for _ in range(8)][:]
    values = image.to(dtype).to(memory_format=torch.channels_last)
    made = nn.functional.conv2d(
        values, weight, stride=layer.stride, padding=layer.padding, groups=layer.groups
    )
    torch.manual_seed(1)
    made.backward(torch.randn_like(made, dtype=torch.float32).to(dtype))
    assert weight.grad is not None
    return weight.grad.float()


@pytest.mark.parametrize(
    ("name", "narrow", "wide", "layer"),
    [
        ("resnet18", 16, 32, "layer4.0.conv1"),
        ("mobilenet_v3_small", 16, 24, "features.9.block.1.0"),
        ("efficientnet_b0", 16, 32, "features.6.0.block.1.0"),
    ],
)
def test_the_layer_whose_map_is_too_small_for_bf16_is_found(
    name: str, narrow: int, wide: int, layer: str
) -> None:
    model = build_model(name, num_classes=4, in_channels=1)
    assert wrong_in_bf16(model, 1, narrow) == layer
    assert wrong_in_bf16(model, 1, wide) is None


@pytest.mark.full
def test_images_too_small_for_bf16_train_in_fp32(
    job: Job, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "cpu_has_bf16", lambda: True)
    pack = make_pack(job, per_class=8)
    for size in (16, 32):
        train(config(model={"name": "resnet18"}, data={"image_size": size}, loop={"epochs": 1}), pack, job)
    assert [record["precision"] for record in records if record["event"] == "training"] == ["fp32", "bf16"]
    (said,) = [record for record in records if "too small for bf16" in record["event"]]
    assert said["level"] == "WARNING" and said["layer"] == "layer4.0.conv1"


def test_bf16_asked_for_where_its_gradients_are_wrong_is_refused(job: Job) -> None:
    pack = make_pack(job, per_class=8)
    with pytest.raises(
        ModelError, match=r"layer4.0.conv1 in resnet18 would be wrong in bf16 on the CPU at 16"
    ):
        train(
            config(model={"name": "resnet18"}, data={"start_size": 16}, loop={"precision": "bf16"}), pack, job
        )


def test_images_a_model_cannot_take_are_one_sentence(job: Job) -> None:
    pack = make_pack(job, per_class=8)
    with pytest.raises(
        ModelError, match=r"Images of 16 pixels are too small for this model .* raise train.data.image_size"
    ):
        train(config(data={"image_size": 16}, model={"name": "densenet121"}), pack, job)
