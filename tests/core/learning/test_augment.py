from __future__ import annotations

import numpy as np
import pytest
import torch

from brainmri_core.config.training import AugmentConfig, OptimConfig
from brainmri_core.learning.augment import augment, mix
from brainmri_core.learning.batches import gather, normalise, read_ahead, resident, shrink, to_float, to_input
from brainmri_core.learning.checkpoint import Preprocessing
from brainmri_core.learning.device import step_seed
from brainmri_core.learning.schedule import learning_rate, training_side

CPU = torch.device("cpu")
NOTHING = AugmentConfig(rotate_deg=0.0, hflip_prob=0.0, jitter_brightness=0.0, jitter_contrast=0.0)


def only(**change: float) -> AugmentConfig:
    return NOTHING.model_copy(update=change)


def picture(n: int = 64, size: int = 33) -> torch.Tensor:
    """A smooth picture with nothing symmetric in it, the same `n` times."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    blob = torch.exp(-((x - 0.3) ** 2 + (y + 0.2) ** 2) / 0.05) * 0.7
    return blob.expand(n, 1, size, size).contiguous()


def centres(batch: torch.Tensor) -> torch.Tensor:
    """Centre of mass (x, y) of each image in [-1, 1]."""
    side = torch.linspace(-1, 1, batch.shape[-1])
    mass = batch.sum(dim=(1, 2, 3))
    x = (batch.sum(dim=(1, 2)) * side).sum(1) / mass
    y = (batch.sum(dim=(1, 3)) * side).sum(1) / mass
    return torch.stack([x, y], 1)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nothing_asked_for_changes_nothing() -> None:
    batch = picture()
    assert torch.allclose(augment(batch, NOTHING, draw()), batch, atol=1e-6)


def test_one_seed_gives_one_result() -> None:
    config = AugmentConfig(noise_std=0.1, scale=0.2, shift=0.1, vflip_prob=0.5)
    first, second, other = (augment(picture(), config, draw(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert len(torch.unique(first.flatten(1), dim=0)) == 64, "images of one batch must differ"


@pytest.mark.parametrize(("key", "dims"), [("hflip_prob", [3]), ("vflip_prob", [2])])
def test_flips_are_exact_and_as_frequent_as_asked(key: str, dims: list[int]) -> None:
    batch = picture(400)
    assert torch.allclose(augment(batch, only(**{key: 1.0}), draw()), batch.flip(dims), atol=1e-5)
    half = augment(batch, only(**{key: 0.5}), draw())
    flipped = (half - batch.flip(dims)).abs().amax(dim=(1, 2, 3)) < 1e-4
    kept = (half - batch).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert bool((flipped ^ kept).all())
    assert 150 < int(flipped.sum()) < 250


def test_rotation_keeps_the_distance_from_the_centre_and_the_angle_in_bounds() -> None:
    before, after = centres(picture(400)), centres(augment(picture(400), only(rotate_deg=30.0), draw()))
    assert torch.allclose(after.norm(dim=1), before.norm(dim=1), atol=0.02)
    angles = torch.rad2deg(torch.atan2(after[:, 1], after[:, 0]) - torch.atan2(before[:, 1], before[:, 0]))
    assert 25 < float(angles.max()) < 31 and -31 < float(angles.min()) < -25


def test_scale_moves_the_centre_outwards_and_inwards_within_bounds() -> None:
    after = centres(augment(picture(400), only(scale=0.25), draw())).norm(dim=1)
    ratio = after / centres(picture(1)).norm()
    assert 1.15 < float(ratio.max()) < 1.28 and 1 / 1.28 < float(ratio.min()) < 1 / 1.15


def test_shift_stays_within_bounds() -> None:
    moved = (centres(augment(picture(400), only(shift=0.1), draw())) - centres(picture(1))).abs()
    assert 0.17 < float(moved.max()) < 0.21


def test_brightness_and_contrast_do_what_their_names_say() -> None:
    batch = picture(400) * 0.5 + 0.2
    brighter = augment(batch, only(jitter_brightness=0.2), draw())
    ratio = brighter.mean(dim=(1, 2, 3)) / batch.mean(dim=(1, 2, 3))
    assert 1.15 < float(ratio.max()) <= 1.2001 and 0.7999 <= float(ratio.min()) < 0.85
    steeper = augment(batch, only(jitter_contrast=0.2), draw())
    spread = steeper.std(dim=(1, 2, 3)) / batch.std(dim=(1, 2, 3))
    assert 1.15 < float(spread.max()) <= 1.2001 and 0.7999 <= float(spread.min()) < 0.85
    assert torch.allclose(steeper.mean(dim=(1, 2, 3)), batch.mean(dim=(1, 2, 3)), atol=1e-3)


def test_noise_has_the_spread_asked_for_and_values_stay_in_range() -> None:
    batch = torch.full((32, 1, 32, 32), 0.5)
    noisy = augment(batch, only(noise_std=0.05), draw())
    assert float((noisy - batch).std()) == pytest.approx(0.05, rel=0.05)
    wild = augment(picture(), only(noise_std=0.5), draw())
    assert float(wild.min()) >= 0 and float(wild.max()) <= 1


@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha"])
def test_mixed_images_and_targets_mix_alike(kind: str) -> None:
    labels = torch.arange(8) % 2
    batch = labels.float().view(-1, 1, 1, 1).expand(8, 1, 32, 32).contiguous()
    targets = torch.nn.functional.one_hot(labels, 2).float()
    for seed in range(5):
        mixed, wanted = mix(batch, targets, only(**{kind: 1.0}), draw(seed))
        assert torch.allclose(wanted.sum(1), torch.ones(8))
        assert torch.allclose(mixed.mean(dim=(1, 2, 3)), wanted[:, 1], atol=1e-5)
    unchanged, same = mix(batch, targets, NOTHING, draw())
    assert unchanged is batch and same is targets


def test_one_cycle_rises_and_falls() -> None:
    rates = [learning_rate(OptimConfig(lr=0.1, schedule="one_cycle"), step, 10, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.004) and max(rates) == pytest.approx(0.1) and rates[-1] < 2e-4
    top = rates.index(max(rates))
    assert (
        top == 30 and sorted(rates[:top]) == rates[:top] and sorted(rates[top:], reverse=True) == rates[top:]
    )


def test_step_and_cosine_schedules() -> None:
    step = OptimConfig(lr=1.0, schedule="step", step_size=2, gamma=0.1)
    assert [learning_rate(step, 5 * epoch, 5, 6) for epoch in range(6)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    cosine = OptimConfig(lr=1.0, schedule="cosine", warmup_epochs=1.0)
    rates = [learning_rate(cosine, step, 10, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == pytest.approx(1.0) and rates[30] == pytest.approx(0.5) and rates[-1] < 0.01


def test_the_side_grows_in_steps_to_the_full_one_for_the_last_quarter() -> None:
    sides = [training_side(32, 64, epoch, 8) for epoch in range(8)]
    assert sides == [32, 32, 48, 48, 48, 64, 64, 64]
    assert [training_side(40, 50, epoch, 4) for epoch in range(4)] == [40, 40, 40, 50]
    assert {training_side(None, 64, epoch, 8) for epoch in range(8)} == {64}
    assert [training_side(32, 64, epoch, 2) for epoch in range(2)] == [32, 64]
    assert training_side(32, 64, 0, 1) == 64


def test_the_same_pixels_reach_the_model_in_training_and_in_inference() -> None:
    rng = np.random.default_rng(0)
    pack = rng.integers(0, 256, (9, 40, 40), dtype=np.uint8)
    preprocessing = Preprocessing(
        pack_size=40, image_size=24, channels=3, colour=False, fit="letterbox", mean=[0.4] * 3, std=[0.2] * 3
    )
    rows = np.array([7, 2, 5])
    inference = to_input(gather(pack, rows), preprocessing, CPU)
    training = normalise(to_float(resident(pack, rows, 24), CPU), preprocessing)
    assert torch.equal(inference, training)
    assert inference.shape == (3, 3, 24, 24) and inference.is_contiguous(memory_format=torch.channels_last)
    for position, row in enumerate(rows):
        alone = to_input(gather(pack, np.array([row])), preprocessing, CPU)
        assert torch.equal(alone[0], inference[position])


def test_shrinking_averages_rather_than_skips() -> None:
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(32).expand(1, 1, 64, 64)
    assert float(shrink(stripes, 16)[..., 2:-2].float().std()) < 20


def test_a_whole_pack_is_mapped_not_copied_and_stays_as_it_is(tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "pack.npy"
    np.save(path, np.zeros((4, 8, 8), np.uint8))
    pack = np.load(path, mmap_mode="r")
    whole = resident(pack, np.arange(4), 8)
    whole.fill_(9)
    assert int(np.load(path).max()) == 0
    assert whole.shape == (4, 1, 8, 8)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_batches_read_ahead_come_in_order(workers: int) -> None:
    pixels = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1)
    batches = [np.array([i, 19 - i]) for i in range(20)]
    seen = list(read_ahead(pixels, batches, workers, CPU))
    assert [batch.flatten().tolist() for _, batch in seen] == [rows.tolist() for rows in batches]


def test_step_seeds_differ_by_every_part() -> None:
    assert len({step_seed(s, p, e, b) for s in (1, 2) for p in (1, 2) for e in (0, 1) for b in (0, 1)}) == 16
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)
