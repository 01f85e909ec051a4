"""Grad-CAM of vision transformers: tokens in rows, some of which stand for no place of the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from brainmri_core.evaluation.explanation_checks import (
    localisation_scores,
    randomisation_check,
    randomised,
)
from brainmri_core.evaluation.gradcam import MapError, activation_maps, maps_of_rows
from brainmri_core.learning.checkpoint import Preprocessing
from brainmri_core.learning.models import build_model
from tests.counts import rest

pytestmark = pytest.mark.training

CPU = torch.device("cpu")
SIDE = 48
GRAY = Preprocessing(
    pack_size=SIDE, image_size=SIDE, channels=1, colour=False, fit="letterbox", mean=[0.4], std=[0.2]
)
ANY_VIT = "timm/vit_tiny_patch16_224"
Pixels, Labels, Masks = np.ndarray, np.ndarray, np.ndarray


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def disks(count: int, seed: int) -> tuple[Pixels, Labels, Masks]:
    """Noise, every second time with a brighter disk in it; the disks are the masks."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(60, 140, (count, SIDE, SIDE)).astype(np.uint8)
    masks, labels = np.zeros(pixels.shape, bool), np.arange(count) % 2
    y, x = np.mgrid[:SIDE, :SIDE]
    for number in np.flatnonzero(labels):
        top, left = rng.integers(8, SIDE - 8, 2)
        masks[number] = (y - top) ** 2 + (x - left) ** 2 < 36
        pixels[number][masks[number]] += 60
    return pixels, labels, masks


def as_input(pixels: Pixels) -> torch.Tensor:
    return (torch.from_numpy(pixels).unsqueeze(1).float() / 255 - 0.4) / 0.2


@pytest.fixture(scope="module", params=["token", *rest("avg", "map")])
def trained(request: pytest.FixtureRequest) -> nn.Module:
    """A transformer with a class token and two registers that finds the disks."""
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=SIDE, patch_size=6, in_chans=1, num_classes=2, embed_dim=32, depth=2, num_heads=2,
        global_pool=request.param, reg_tokens=2,
    )  # fmt: skip
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(100):
        pixels, labels, _ = disks(64, step)
        loss = F.cross_entropy(model(as_input(pixels)), torch.from_numpy(labels))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1
    return model.eval()


def test_maps_of_a_trained_transformer_find_what_decides(trained: nn.Module) -> None:
    pixels, labels, masks = disks(64, 10**6)
    pixels, masks = pixels[labels == 1], masks[labels == 1]
    rows = np.arange(len(pixels))
    maps = maps_of_rows(trained, ANY_VIT, pixels, rows, np.ones_like(rows), GRAY, device=CPU, batch_size=8)
    assert maps.grid == SIDE // 6
    for found in (maps.gradcam, maps.gradcam_plus_plus):
        own, elsewhere = localisation_scores(found, masks), localisation_scores(found[rows - 9], masks)
        assert own["pointing_game"] > 0.4 > 3 * elsewhere["pointing_game"]
        assert own["iou"] > 5 * elsewhere["iou"]


def test_maps_of_a_transformer_change_with_its_parameters(trained: nn.Module) -> None:
    pixels, labels, _ = disks(24, 10**6)
    rows = np.arange(12)
    found, _ = randomisation_check(
        trained, ANY_VIT, pixels[labels == 1], rows, np.ones_like(rows), GRAY,
        device=CPU, batch_size=8, seed=1,
    )  # fmt: skip
    assert found["passed"] is True


def test_randomising_reaches_positions_and_class_token(trained: nn.Module) -> None:
    own = trained.state_dict()

    def changed(stage: str) -> set[str]:
        other = randomised(trained, ANY_VIT, stage, seed=1).state_dict()
        return {name for name in own if not torch.equal(own[name], other[name])}

    assert {name.split(".")[0] for name in changed("head")} == {"head"}
    assert {".".join(name.split(".")[:2]) for name in changed("last block")} == {
        *("head.weight", "head.bias", "blocks.1")
    }
    assert changed("all") >= {"pos_embed", "cls_token", "reg_token", "patch_embed.proj.weight"}


def test_the_map_of_tokens_is_that_of_the_paper() -> None:
    torch.manual_seed(3)
    model = build_model(ANY_VIT, num_classes=3, in_channels=1, image_size=64).eval()
    batch, target = torch.randn(1, 1, 64, 64), 2
    kept: list[torch.Tensor] = []
    handle = model.blocks[-1].norm1.register_forward_hook(  # type: ignore[union-attr, index]
        lambda _, __, output: kept.append(output)
    )
    logits = model(batch)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[0, target], kept[0])
    tokens, gradient = kept[0][0, 1:].detach(), gradient[0, 1:]
    coarse = (tokens * gradient.mean(0)).sum(1).clamp_min(0)
    large = F.interpolate(coarse.view(1, 1, 4, 4), (64, 64), mode="bilinear")[0, 0].numpy()
    found = activation_maps(model, ANY_VIT, batch, torch.tensor([target]))
    assert found.grid == 4
    assert found.gradcam[0] == pytest.approx(large / large.max(), abs=1e-3)


@pytest.mark.parametrize(
    ("name", "side", "grid"),
    [
        ("timm/swin_tiny_patch4_window7_224", 64, 2),
        *rest(
            ("timm/vit_small_patch14_dinov2.lvd142m", 56, 4),
            ("timm/eva02_tiny_patch14_224", 56, 4),
            ("timm/xcit_nano_12_p8_224", 64, 8),
            ("timm/mixer_s32_224", 64, 2),
            ("timm/vit_base_patch16_siglip_224", 64, 4),
        ),
    ],
)
def test_other_kinds_of_tokens_have_maps_too(name: str, side: int, grid: int) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=3, in_channels=1, image_size=side).eval()
    nn.init.normal_(model.get_classifier().weight)  # type: ignore[operator]
    maps = activation_maps(model, name, torch.randn(2, 1, side, side), torch.tensor([0, 2]))
    assert maps.grid == grid
    assert maps.gradcam.shape == (2, side, side)
    assert maps.gradcam.max() == 1 and maps.gradcam.std() > 0


def test_a_grid_of_one_token_is_refused() -> None:
    model = build_model(ANY_VIT, num_classes=3, in_channels=1, image_size=16).eval()
    with pytest.raises(MapError, match=rf"last feature map of {ANY_VIT} is 1 x 1 for images of 16 px"):
        activation_maps(model, ANY_VIT, torch.randn(1, 1, 16, 16), torch.tensor([0]))
