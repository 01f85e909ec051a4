from __future__ import annotations

import math

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


def test_without_augmentation_images_stay_the_same() -> None:
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


def as_before_gamma_and_the_rest(
    batch: torch.Tensor, config: AugmentConfig, generator: torch.Generator
) -> torch.Tensor:
    """What `augment` was when it knew neither gamma, bias field, RandAugment nor erasing, word for word."""
    n = len(batch)

    def uniform(spread: float) -> torch.Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1) * spread

    angle = uniform(math.radians(config.rotate_deg))
    scale = torch.exp(uniform(math.log1p(config.scale)))
    shift = torch.stack([uniform(2 * config.shift), uniform(2 * config.shift)], dim=1)
    mirror = torch.where(torch.rand(n, generator=generator) < config.hflip_prob, -1.0, 1.0)
    flip = torch.where(torch.rand(n, generator=generator) < config.vflip_prob, -1.0, 1.0)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    first = torch.stack([cos * mirror, -sin * flip, shift[:, 0]], 1)
    matrix = torch.stack([first, torch.stack([sin * mirror, cos * flip, shift[:, 1]], 1)], 1)
    grid = torch.nn.functional.affine_grid(matrix, list(batch.shape), align_corners=False)
    batch = torch.nn.functional.grid_sample(batch, grid, align_corners=False)
    brightness = (1 + uniform(config.jitter_brightness)).view(-1, 1, 1, 1)
    contrast = (1 + uniform(config.jitter_contrast)).view(-1, 1, 1, 1)
    mean = batch.mean(dim=(1, 2, 3), keepdim=True)
    batch = (batch - mean) * contrast + mean * brightness
    return (batch + torch.randn(batch.shape, generator=generator) * config.noise_std).clamp(0, 1)


def test_settings_that_came_later_change_no_bit_of_earlier_trainings_while_they_are_off() -> None:
    config = AugmentConfig(noise_std=0.02, scale=0.1, shift=0.1, vflip_prob=0.1, randaugment_magnitude=0.9)
    ours, theirs = draw(7), draw(7)
    assert torch.equal(
        augment(picture(), config, ours), as_before_gamma_and_the_rest(picture(), config, theirs)
    )
    assert torch.equal(ours.get_state(), theirs.get_state()), "what is drawn next must be the same, too"


def test_gamma_bends_the_gray_levels_between_black_and_white() -> None:
    levels = torch.linspace(0, 1, 16).view(1, 1, 4, 4).expand(400, 1, 4, 4)
    bent = augment(levels, only(jitter_gamma=0.5), draw())
    assert torch.equal(bent[:, 0, 0, 0], torch.zeros(400)) and torch.equal(bent[:, 0, 3, 3], torch.ones(400))
    assert bool((bent.flatten(1).diff(dim=1) > 0).all()), "a brighter pixel stays the brighter one"
    power = bent[:, 0, 1, 1].log() / levels[:, 0, 1, 1].log()
    assert 1.45 < float(power.max()) <= 1.5001 and 0.6666 <= float(power.min()) < 0.69
    assert 0.4 < float((power > 1).float().mean()) < 0.6


def test_the_bias_field_is_positive_smooth_and_keeps_the_brightest_value() -> None:
    flat = torch.full((64, 1, 64, 64), 0.8)
    field = augment(flat, only(bias_field=0.5), draw())
    assert torch.allclose(field.amax((1, 2, 3)), torch.full((64,), 0.8), atol=1e-5)
    assert float(field.min()) > 0
    uneven = field.amax((1, 2, 3)) / field.amin((1, 2, 3))
    assert float(uneven.median()) > 1.5, "a field that is nearly even would change nothing"
    bend = field.log().diff(n=4, dim=-1).abs().max(), field.log().diff(n=4, dim=-2).abs().max()
    assert max(map(float, bend)) < 1e-5, "the exponential of a polynomial of order 3 has no fourth difference"
    black = augment(torch.zeros(4, 1, 8, 8), only(bias_field=1.0), draw())
    assert torch.equal(black, torch.zeros(4, 1, 8, 8))


@pytest.mark.parametrize("side", [16, 97])
def test_erasing_paints_as_many_rectangles_of_the_size_asked_for(side: int) -> None:
    batch = torch.randint(2, (400, 1, side, side), generator=draw(1)).float()
    after = augment(batch, only(erase_prob=0.5, erase_area=0.4), draw())
    painted = (after - batch).abs() > 0.1
    assert torch.allclose(after, torch.where(painted, batch.mean((1, 2, 3), keepdim=True), batch), atol=1e-5)
    share = painted.float().mean((1, 2, 3))
    hit = share > 0
    assert 150 < int(hit.sum()) < 250
    rounding = 2 / side
    assert 0.02 - rounding < float(share[hit].min()) < 0.05 and 0.35 < float(share.max()) < 0.4 + rounding
    assert float(share[hit].mean()) == pytest.approx(0.21, abs=0.03)
    for mask in painted[hit][:, 0]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns[None, :]), "a rectangle"
        height, width = int(rows.sum()), int(columns.sum())
        assert int(rows.diff().sum()) <= 2 and int(columns.diff().sum()) <= 2, "in one piece"
        assert height / width < 10 / 3 * 1.7 and width / height < 10 / 3 * 1.7


@pytest.mark.parametrize("channels", [1, 3])
def test_all_of_it_together_stays_in_range_and_follows_the_seed(channels: int) -> None:
    everything = AugmentConfig(
        rotate_deg=20.0,
        noise_std=0.1,
        jitter_gamma=1.0,
        bias_field=1.0,
        randaugment_ops=3,
        randaugment_magnitude=1.0,
        erase_prob=0.5,
    )
    batch = torch.rand(64, channels, 33, 33, generator=draw(1))
    kept = batch.clone()
    first, second, other = (augment(batch, everything, draw(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(batch, kept), "the images themselves are not changed"
    assert float(first.min()) >= 0 and float(first.max()) <= 1 and bool(first.isfinite().all())
    assert len(torch.unique(first.flatten(1), dim=0)) == 64, "images of one batch must differ"


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
