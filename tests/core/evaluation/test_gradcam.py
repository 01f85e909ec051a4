from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from brainmri_core.config.data import PhantomConfig
from brainmri_core.evaluation.explanation_checks import (
    localisation_scores,
    randomisation_check,
    randomised,
    shrink_mask,
)
from brainmri_core.evaluation.explanations import _others
from brainmri_core.evaluation.gradcam import MapError, activation_maps, maps_of_rows
from brainmri_core.images.fit import fit_image
from brainmri_core.learning.checkpoint import Preprocessing
from brainmri_core.learning.models import build_model, gradcam_layer
from brainmri_core.sources.phantom import write_phantom

pytestmark = pytest.mark.training

ARCHITECTURES = [
    "resnet18",
    "densenet121",
    "efficientnet_b0",
    "convnext_tiny",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "timm/tf_efficientnet_lite0",
]
CPU = torch.device("cpu")
GRAY = Preprocessing(
    pack_size=64, image_size=64, channels=1, colour=False, fit="letterbox", mean=[0.2], std=[0.2]
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def ready(name: str, size: int = 64) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(3)
    model = build_model(name, num_classes=3, in_channels=1).eval()
    return model, torch.randn(2, 1, size, size)


def by_the_book(
    model: nn.Module, layer: nn.Module, batch: torch.Tensor, target: int
) -> tuple[np.ndarray, np.ndarray]:
    """Both maps of one image at the feature map's own size, by a full backward pass and the papers' formulas."""
    kept: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, output: kept.append(output) or output.clone())
    logits = model(batch)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[0, target], kept[0])
    features, gradient = kept[0][0].detach().numpy(), gradient[0].numpy()
    maps = []
    alpha = np.zeros_like(gradient)
    for k in range(len(features)):
        for i, j in np.ndindex(features[k].shape):
            g = gradient[k, i, j]
            below = 2 * g**2 + features[k].sum() * g**3
            alpha[k, i, j] = g**2 / below if below else 0.0
    for weights in (gradient.mean(axis=(1, 2)), (alpha * np.maximum(gradient, 0)).sum(axis=(1, 2))):
        total = np.maximum(sum(w * a for w, a in zip(weights, features, strict=True)), 0)
        maps.append(total)
    return maps[0], maps[1]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_both_maps_are_those_of_the_papers(name: str) -> None:
    model, batch = ready(name)
    targets = torch.tensor([2, 0])
    maps = activation_maps(model, name, batch, targets)
    assert maps.grid == 2
    for position in range(2):
        expected = by_the_book(
            model, gradcam_layer(name, model), batch[position : position + 1], int(targets[position])
        )
        for found, coarse in zip((maps.gradcam, maps.gradcam_plus_plus), expected, strict=True):
            large = F.interpolate(torch.from_numpy(coarse)[None, None].float(), (64, 64), mode="bilinear")[
                0, 0
            ].numpy()
            scaled = large / large.max() if large.max() > 0 else large
            assert found[position] == pytest.approx(scaled, abs=1e-3)


def test_maps_leave_the_model_as_it_was() -> None:
    model, batch = ready("resnet18")
    before = [item.requires_grad for item in model.parameters()]
    logits = model(batch)
    activation_maps(model, "resnet18", batch, torch.tensor([0, 1]))
    assert [item.requires_grad for item in model.parameters()] == before
    assert all(item.grad is None for item in model.parameters())
    assert not gradcam_layer("resnet18", model)._forward_hooks
    assert torch.equal(model(batch), logits)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_map_of_one_cell_is_refused(name: str) -> None:
    model, batch = ready(name, 32)
    before = model(batch)
    with pytest.raises(MapError, match=rf"last feature map of {name} is 1 x 1 for images of 32 px"):
        activation_maps(model, name, batch, torch.tensor([0, 1]))
    assert not gradcam_layer(name, model)._forward_hooks
    assert all(item.requires_grad for item in model.parameters())
    assert torch.equal(model(batch), before)


def test_another_class_has_another_map() -> None:
    model, batch = ready("resnet18", 128)
    one, two = (activation_maps(model, "resnet18", batch, torch.tensor([k, k])).gradcam for k in (0, 1))
    assert np.abs(one - two).max() > 0.2


def test_batches_give_the_maps_of_single_images() -> None:
    model, _ = ready("resnet18")
    pack = np.random.default_rng(0).integers(0, 255, (7, 64, 64), dtype=np.uint8)
    rows, targets = np.array([5, 0, 3, 6, 1]), np.array([0, 1, 2, 0, 1])
    whole = maps_of_rows(model, "resnet18", pack, rows, targets, GRAY, device=CPU, batch_size=2)
    assert whole.gradcam.shape == whole.gradcam_plus_plus.shape == (5, 64, 64)
    for position in range(5):
        part = slice(position, position + 1)
        alone = maps_of_rows(
            model, "resnet18", pack, rows[part], targets[part], GRAY, device=CPU, batch_size=1
        )
        assert whole.gradcam[position] == pytest.approx(alone.gradcam[0], abs=1e-3)
    nothing = maps_of_rows(model, "resnet18", pack, rows[:0], targets[:0], GRAY, device=CPU, batch_size=2)
    assert nothing.gradcam.shape == (0, 64, 64)


def test_randomising_touches_what_it_says_and_no_more() -> None:
    model, _ = ready("resnet18")
    own = model.state_dict()

    def changed(stage: str) -> set[str]:
        other = randomised(model, "resnet18", stage, seed=1).state_dict()
        return {
            name.split(".")[0]
            for name in own
            if "num_batches" not in name and not torch.equal(own[name], other[name])
        }

    assert changed("head") == {"fc"}
    assert changed("last block") == {"fc", "layer4"}
    assert changed("all") >= {"conv1", "layer1", "layer2", "layer3", "layer4", "fc"}
    again = [randomised(model, "resnet18", "all", seed=s).state_dict()["conv1.weight"] for s in (1, 1, 2)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])


def test_scores_of_maps_by_hand() -> None:
    masks = np.zeros((2, 4, 4), bool)
    masks[:, 0, :2] = True
    maps = np.zeros((2, 4, 4), np.float32)
    maps[0, 0, 1], maps[0, 0, 0], maps[0, 3, 3] = 1.0, 0.5, 0.5  # peak inside; 2 of 3 hot pixels inside
    maps[1, 2, 2], maps[1, 0, 0] = 1.0, 0.25  # peak outside; nothing hot inside
    found = localisation_scores(maps, masks)
    assert found["images"] == 2
    assert found["pointing_game"] == 0.5
    assert found["iou"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["energy_inside"] == pytest.approx((1.5 / 2 + 0.25 / 1.25) / 2)
    assert found["mask_share"] == pytest.approx(2 / 16)


def test_an_empty_map_finds_nothing() -> None:
    masks = np.ones((1, 4, 4), bool)
    found = localisation_scores(np.zeros((1, 4, 4), np.float32), masks)
    assert (found["pointing_game"], found["iou"], found["energy_inside"]) == (0.0, 0.0, 0.0)
    assert localisation_scores(np.zeros((0, 4, 4), np.float32), np.zeros((0, 4, 4), bool))["reason"]


def test_a_small_tumour_survives_shrinking() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[10, 10] = 255
    small = shrink_mask(mask, 16)
    assert small.sum() == 1
    assert small[2, 2]


def test_the_compared_map_is_of_another_image_of_the_class() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    other = _others(labels)
    assert (labels[other] == labels).all()
    assert (other[:5] != np.arange(5)).all()


class Small(nn.Module):
    """Three convolutions with a feature map of an eighth of the image: learns in seconds on one core."""

    def __init__(self) -> None:
        super().__init__()
        stages, channels = [], 1
        for width in (16, 32, 32):
            stages += [nn.Conv2d(channels, width, 5, stride=2, padding=2), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.layer4 = nn.Sequential(*stages)
        self.fc = nn.Linear(32, 2)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer4(batch).mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def tumours(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, np.ndarray, np.ndarray]:
    """A model trained to tell synthetic meningiomas from healthy slices, unseen meningiomas, and their masks."""
    root = tmp_path_factory.mktemp("phantom") / "data"
    config = PhantomConfig(subjects_per_class=20, slices_per_subject=3, copies_per_kind=0, label_conflicts=0)
    images = [item for item in write_phantom(root, config).images if item.label in ("meningioma", "notumor")]

    def fitted(path: str) -> np.ndarray:
        return fit_image(np.asarray(Image.open(root / path).convert("L")), 64, "letterbox")

    pixels = np.stack([fitted(item.path) for item in images])
    labels = np.array([item.label == "meningioma" for item in images], np.int64)
    subjects = sorted({item.subject for item in images})
    unseen = np.array([item.subject in subjects[::3] for item in images])
    torch.manual_seed(0)
    model = Small().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    batch = torch.from_numpy(pixels[~unseen]).unsqueeze(1).float() / 255
    wanted = torch.from_numpy(labels[~unseen])
    for _ in range(60):
        flipped = batch.flip(-1) if torch.rand(()) < 0.5 else batch
        loss = F.cross_entropy(model((flipped - 0.2) / 0.2), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    shown = unseen & (labels == 1)
    masks = np.stack(
        [shrink_mask(fitted(str(item.mask)), 64) for item, use in zip(images, shown, strict=True) if use]
    )
    return model.eval(), pixels[shown], masks


@pytest.mark.full
def test_maps_of_a_trained_model_find_the_tumour(
    tumours: tuple[nn.Module, np.ndarray, np.ndarray],
) -> None:
    model, pixels, masks = tumours

    def maps(images: np.ndarray) -> np.ndarray:
        rows = np.arange(len(images))
        found = maps_of_rows(
            model, "resnet18", images, rows, np.ones_like(rows), GRAY, device=CPU, batch_size=8
        )
        assert found.grid == 8
        return found.gradcam

    assert len(pixels) >= 15
    own = localisation_scores(maps(pixels), masks)
    elsewhere = localisation_scores(maps(pixels)[np.roll(np.arange(len(pixels)), 9)], masks)
    assert own["pointing_game"] > 3 * own["mask_share"]
    assert own["pointing_game"] > 2 * elsewhere["pointing_game"]
    assert own["iou"] > 2 * elsewhere["iou"]
    assert own["energy_inside"] > 2 * own["mask_share"]


def test_maps_change_with_the_parameters(
    tumours: tuple[nn.Module, np.ndarray, np.ndarray],
) -> None:
    model, pixels, _ = tumours
    rows = np.arange(12)
    found, maps = randomisation_check(
        model, "resnet18", pixels, rows, np.ones_like(rows), GRAY, device=CPU, batch_size=8, seed=1
    )
    assert found["passed"] is True
    assert found["images"] == 12
    assert set(maps) == {"own", "head", "last block", "all"}
    assert np.array_equal(maps["own"], maps["own"].clip(0, 1))
