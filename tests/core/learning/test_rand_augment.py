from __future__ import annotations

import pytest
import torch

from brainmri_core.config.training import AugmentConfig
from brainmri_core.learning.augment import augment
from brainmri_core.learning.rand_augment import OPERATIONS, Operations

MOVES = ("rotate", "shear x", "shear y", "shift x", "shift y")


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one(name: str, *strengths: float) -> Operations:
    """One operation, once on each image."""
    which = torch.full((1, len(strengths)), OPERATIONS.index(name))
    return Operations(which, torch.tensor([strengths]))


def moved(name: str, strength: float, point: tuple[float, float]) -> list[float]:
    """Where an output pixel, as (x, y) in [-1, 1], takes its value from."""
    matrix = one(name, strength).after(torch.eye(2, 3).expand(1, 2, 3))[0]
    return [round(float(value), 4) for value in matrix @ torch.tensor([*point, 1.0])]


def test_moves_reach_as_far_as_the_paper_says() -> None:
    assert moved("rotate", 1.0, (1.0, 0.0)) == [0.866, 0.5]
    assert moved("rotate", -0.5, (1.0, 0.0)) == [0.9659, -0.2588]
    assert moved("shear x", 1.0, (0.5, 1.0)) == [0.8, 1.0]
    assert moved("shear y", -1.0, (1.0, 0.5)) == [1.0, 0.2]
    assert moved("shift x", 0.5, (0.0, 0.0)) == [0.45, 0.0]
    assert moved("shift y", -1.0, (0.0, 0.0)) == [0.0, -0.9]
    for name in set(OPERATIONS) - set(MOVES):
        assert moved(name, 1.0, (0.3, 0.7)) == [0.3, 0.7], "what changes gray levels moves nothing"


def test_rounds_follow_each_other_and_what_was_done_before() -> None:
    which = torch.tensor([[OPERATIONS.index("shift x")], [OPERATIONS.index("rotate")]])
    both = Operations(which, torch.tensor([[0.5], [1.0]]))
    mirror = torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    found = both.after(mirror)[0] @ torch.tensor([1.0, 0.0, 1.0])
    assert torch.allclose(found, torch.tensor([-(0.866 + 0.45), 0.5]), atol=1e-3)


def test_gray_levels_change_as_the_names_say() -> None:
    image = torch.rand(1, 1, 16, 16, generator=draw()) * 0.4 + 0.2
    batch = image.expand(2, 1, 16, 16)

    def change(name: str, *strengths: float) -> torch.Tensor:
        return one(name, *strengths).on_levels(batch[: len(strengths)])

    assert torch.allclose(
        change("brightness", 0.5, -0.5), batch * torch.tensor([1.45, 0.55]).view(2, 1, 1, 1)
    )
    softer = change("contrast", -1.0)
    assert float(softer.std()) == pytest.approx(float(image.std()) * 0.1, rel=1e-3)
    assert float(softer.mean()) == pytest.approx(float(image.mean()), rel=1e-3)
    sharper, smoother = change("sharpness", 0.5, -0.5).diff(dim=-1).abs().mean((1, 2, 3))
    assert float(smoother) < float(image.diff(dim=-1).abs().mean()) < float(sharper)
    assert len(change("posterise", 1.0).unique()) <= 16 < len(change("posterise", 0.5).unique()) <= 64
    stretched = change("autocontrast", 1.0)
    assert (float(stretched.min()), float(stretched.max())) == (0.0, 1.0)
    even = torch.full((1, 1, 4, 4), 0.3)
    assert torch.equal(one("autocontrast", 1.0).on_levels(even), even)
    for name in ("none", *MOVES):
        assert torch.equal(change(name, 1.0, -1.0), batch)


def test_every_image_draws_operations_of_its_own_and_each_comes_equally_often() -> None:
    drawn = Operations.drawn(2, 4000, 0.4, draw())
    assert torch.allclose(drawn.strength.unique(), torch.tensor([-0.4, 0.4]))
    assert float(drawn.strength.mean()) == pytest.approx(0, abs=0.02)
    counts = torch.bincount(drawn.which.flatten(), minlength=len(OPERATIONS))
    assert int(counts.min()) > 8000 / len(OPERATIONS) * 0.85
    assert not torch.equal(drawn.which[0], drawn.which[1])


def test_without_magnitude_only_autocontrast_is_left() -> None:
    still = AugmentConfig(
        rotate_deg=0.0, hflip_prob=0.0, jitter_brightness=0.0, jitter_contrast=0.0, randaugment_magnitude=0.0
    )
    # these use the whole range of gray levels, so that nothing is left to stretch
    batch = (torch.arange(256).view(1, 1, 16, 16) / 255).expand(64, 1, 16, 16)
    changed = augment(batch, still.model_copy(update={"randaugment_ops": 4}), draw())
    assert torch.allclose(changed, batch, atol=1e-6)
    strong = still.model_copy(update={"randaugment_ops": 4, "randaugment_magnitude": 0.5})
    differ = (augment(batch, strong, draw()) - batch).abs().amax((1, 2, 3)) > 0.01
    assert float(differ.float().mean()) > 0.9
