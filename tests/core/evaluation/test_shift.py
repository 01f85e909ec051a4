from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage, stats

from brainmri_core.evaluation.discrepancy import (
    GroupSums,
    Kernel,
    chance_discrepancies,
    number_groups,
    permutation_test,
)
from brainmri_core.evaluation.shift import (
    FEATURE_NAMES,
    KINDS,
    MAX_IMAGES,
    ImageSet,
    ShiftReport,
    image_features,
    measure_shift,
)
from brainmri_core.images.statistics import EDGE_STATISTICS, edge_statistics


def slices(n: int, seed: int) -> np.ndarray:
    """Textured discs with noise on black, uint8 ``(n, 64, 64)``."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[-1:1:64j, -1:1:64j]
    images = []
    for _ in range(n):
        a, b = rng.uniform(0.6, 0.9, 2)
        inside = (yy / a) ** 2 + (xx / b) ** 2 < 1
        texture = ndimage.gaussian_filter(rng.normal(0, 1, (64, 64)), 1.5) * 120
        noise = rng.normal(0, 5, (64, 64))
        images.append(np.clip(inside * (rng.uniform(90, 140) + texture + noise), 0, 255))
    return np.stack(images).astype(np.uint8)


def set_of(pixels: np.ndarray, *, width: int = 512, embeddings: np.ndarray | None = None) -> ImageSet:
    size = np.full(len(pixels), width)
    groups = tuple(f"g{index // 2}" for index in range(len(pixels)))
    return ImageSet(image_features(pixels, size, size), groups, embeddings)


def clustered(groups: int, seed: int, shift: float = 0.0, most: int = 6) -> tuple[np.ndarray, list[str]]:
    """Points that mostly say which group they are of: 1 to `most` a group, five columns."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, most + 1, groups)
    number = np.repeat(np.arange(groups), sizes)
    points = rng.normal(0, 1, (groups, 5))[number] + rng.normal(0, 0.3, (len(number), 5)) + shift
    return points, [f"{seed}.{index}" for index in number]


def p_value(seed: int, *, grouped: bool = True, shift: float = 0.0) -> float:
    first, first_groups = clustered(14, 2 * seed)
    second, second_groups = clustered(10, 2 * seed + 1, shift)
    points = np.concatenate([first, second])
    number = np.concatenate(
        [number_groups(first_groups), 1000 + number_groups(second_groups)]
        if grouped
        else [np.arange(len(points))]
    )
    number = np.unique(number, return_inverse=True)[1]
    sums = GroupSums.of(points, number, Kernel.fit(points, standardise=True))
    side = np.arange(len(sums.sizes)) < (14 if grouped else len(first))
    return permutation_test(sums, side, 99, seed)[1]


def test_without_shift_the_p_values_are_spread_evenly() -> None:
    """400 pairs of sets: the share of false alarms is binomial, so 99.9% of correct tests stay within these bounds."""
    found = np.array([p_value(seed) for seed in range(400)])
    for level in (0.05, 0.1, 0.2, 0.5):
        low, high = stats.binom.ppf([0.0005, 0.9995], 400, level) / 400
        assert low <= (found <= level).mean() <= high
    assert stats.kstest(found, "uniform").pvalue > 1e-3


def test_permuting_images_in_place_of_groups_would_raise_false_alarms() -> None:
    naive = np.array([p_value(seed, grouped=False) for seed in range(60)])
    assert (naive <= 0.05).mean() > 0.3


def test_a_shift_of_the_groups_is_found() -> None:
    assert np.mean([p_value(seed, shift=1.5) <= 0.05 for seed in range(20)]) > 0.8


def test_the_discrepancy_is_that_of_its_definition() -> None:
    """Against a double loop over all pairs of images that are not of one group."""
    first, first_groups = clustered(4, 0)
    second, second_groups = clustered(3, 1)
    points, groups = np.concatenate([first, second]), [*first_groups, *second_groups]
    kernel = Kernel.fit(points, standardise=True)
    sides = np.array([group in first_groups for group in groups])

    def mean(one: bool, two: bool) -> float:
        values = [
            np.exp(-(((points[i] - points[j]) / kernel.scale) ** 2).sum() / (2 * kernel.width**2))
            for i in np.flatnonzero(sides == one)
            for j in np.flatnonzero(sides == two)
            if groups[i] != groups[j]
        ]
        return float(np.mean(values))

    number = number_groups(groups)
    side = np.array([sides[number == index][0] for index in range(7)])
    found = GroupSums.of(points, number, kernel).discrepancy(side[None])[0]
    assert found == pytest.approx(mean(True, True) + mean(False, False) - 2 * mean(True, False), abs=1e-9)


def test_parts_of_one_set_differ_by_nothing_on_average() -> None:
    points, groups = clustered(40, 3, most=1)
    sums = GroupSums.of(points, number_groups(groups), Kernel.fit(points, standardise=True))
    chance = chance_discrepancies(sums, 10, 4000, seed=0)
    assert abs(chance.mean()) < 4 * chance.std() / np.sqrt(4000)
    assert chance.std() > 0


def test_edges_tell_blur_from_contrast_and_noise() -> None:
    clean = slices(6, 0)
    blurred = np.stack([ndimage.gaussian_filter(image, 1.0) for image in clean])
    noise = np.random.default_rng(1).normal(0, 20, clean.shape)
    noisy = np.clip(clean + noise * (clean > 0), 0, 255).astype(np.uint8)
    half = (clean // 2).astype(np.uint8)
    values = {
        name: dict(zip(EDGE_STATISTICS, edge_statistics(images).mean(axis=0), strict=True))
        for name, images in {"clean": clean, "blurred": blurred, "noisy": noisy, "half": half}.items()
    }
    assert values["blurred"]["sharpness"] < 0.8 * values["clean"]["sharpness"]
    assert values["half"]["sharpness"] == pytest.approx(values["clean"]["sharpness"], rel=0.1)
    assert values["half"]["edge_strength"] == pytest.approx(values["clean"]["edge_strength"] / 2, rel=0.1)
    assert values["noisy"]["noise"] - values["clean"]["noise"] > 10
    assert edge_statistics(np.zeros((1, 8, 8), np.uint8)).tolist() == [[0, 0, 0]]


def test_the_noise_estimate_is_the_standard_deviation_of_the_noise() -> None:
    flat = np.random.default_rng(0).normal(120, 9, (4, 128, 128)).round().astype(np.uint8)
    assert edge_statistics(flat)[:, 2] == pytest.approx(9, rel=0.05)


def test_equal_sets_are_called_alike() -> None:
    report = measure_shift(set_of(slices(60, 0)), set_of(slices(50, 1)), ("A", "B"), seed=0)
    assert all(item.p_value > 0.0125 for item in report.discrepancies if item.p_value is not None)
    assert report.summary.startswith(
        "No difference between the images of B and those of A was found in size,"
    )
    assert "Not compared: embedding" in report.summary


def planted(name: str) -> tuple[ShiftReport, str]:
    here, there = slices(60, 0), slices(50, 1)
    width, feature = 512, ""
    if name == "blur":
        there, feature = np.stack([ndimage.gaussian_filter(image, 0.8) for image in there]), "sharpness"
    elif name == "contrast":
        there, feature = (there * 0.6).astype(np.uint8), "std"
    elif name == "size":
        width, feature = 256, "width"
    report = measure_shift(set_of(here), set_of(there, width=width), ("A", "B"), seed=0)
    return report, feature


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("blur", "edges", "lower sharpness"),
        ("contrast", "intensity", "lower contrast"),
        ("size", "size", "lower width (median 256 against 512)"),
    ],
)
def test_a_planted_shift_is_found_and_named(name: str, kind: str, words: str) -> None:
    report, feature = planted(name)
    assert report.discrepancy(kind).p_value == 0.001
    assert f"{kind} (p = 0.001)" in report.summary
    assert words in report.summary
    assert feature in [item.feature for item in report.features[:3]]
    assert report.origin.auroc is not None
    assert report.origin.auroc > 0.95
    assert max(report.origin.by_kind.values()) == report.origin.by_kind[kind]


def test_a_shift_of_size_is_no_shift_of_intensity() -> None:
    report, _ = planted("size")
    assert [item.p_value > 0.0125 for item in report.discrepancies if item.p_value is not None] == [
        False,
        True,
        True,
    ]


def test_embeddings_are_compared_where_both_sets_have_them() -> None:
    rng = np.random.default_rng(0)
    here = set_of(slices(40, 0), embeddings=rng.normal(0, 1, (40, 8)).astype(np.float32))
    there = set_of(slices(40, 1), embeddings=rng.normal(1, 1, (40, 8)).astype(np.float32))
    report = measure_shift(here, there, ("A", "B"), seed=0)
    assert report.discrepancy("embedding").p_value == 0.001
    assert report.discrepancy("embedding").squared > 0.1


def test_a_set_of_one_patient_gives_reasons_and_no_number() -> None:
    one = ImageSet(set_of(slices(5, 1)).features, ("p",) * 5)
    report = measure_shift(set_of(slices(20, 0)), one, ("A", "B"), seed=0)
    assert {item.p_value for item in report.discrepancies} == {None}
    assert report.discrepancy("size").reason == "one of the sets is a single patient or group"
    assert report.origin.auroc is None
    assert len(report.features) == len(FEATURE_NAMES)
    assert "Not compared: size (one of the sets is a single patient or group)" in report.summary


def test_a_large_set_is_compared_by_whole_groups_of_it() -> None:
    rng = np.random.default_rng(0)
    count = MAX_IMAGES + 500
    large = ImageSet(rng.normal(50, 5, (count, len(FEATURE_NAMES))), tuple(str(i // 7) for i in range(count)))
    part = large.part(0)
    assert MAX_IMAGES - 7 < len(part) <= MAX_IMAGES
    members = {name: large.groups.count(name) for name in set(part.groups)}
    assert {name: part.groups.count(name) for name in members} == members
    assert large.part(0).groups == part.groups


def test_the_report_goes_to_json_and_back() -> None:
    report, _ = planted("blur")
    assert ShiftReport.model_validate_json(report.model_dump_json()) == report
    assert [item.kind for item in report.discrepancies] == list(KINDS)
