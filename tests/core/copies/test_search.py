"""The search for copies against brute force, and against what the synthetic data set planted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from brainmri_core.cluster.shards import evenly
from brainmri_core.config.data import CopySearchConfig, PhantomConfig
from brainmri_core.copies import hamming
from brainmri_core.copies import search as copies
from brainmri_core.copies.fingerprint import (
    FingerprintTable,
    fingerprint_files,
    perceptual_hashes,
    thumbnails,
)
from brainmri_core.copies.hamming import Pairs, candidate_pairs
from brainmri_core.copies.likeness import SEARCHED, correlation, difference, turned, turned_back
from brainmri_core.copies.planted import score_copies
from brainmri_core.copies.search import CopyPairs, find_copies, group_copies
from brainmri_core.sources.phantom import PhantomTruth, write_phantom
from tests.counts import PATIENCE_S

COPIES = 12


@pytest.mark.parametrize("parts", [3, 4, 5, 8])
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0, 1),
    n=st.integers(2, 120),
    pairs=st.sampled_from(get_args(Pairs)),
)
def test_the_index_finds_exactly_the_pairs_within_the_radius(
    parts: int, seed: int, share: float, n: int, pairs: Pairs
) -> None:
    radius = round(share * min(16, 3 * parts))
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 2**63, n, dtype=np.uint64)
    # half of them are others with a few bits changed, so that every distance near the radius occurs
    for row in range(n // 2, n):
        bits = rng.choice(64, int(rng.integers(0, radius + 4)), replace=False)
        table[row] = table[row - n // 2] ^ np.bitwise_or.reduce(
            np.uint64(1) << bits.astype(np.uint64), initial=0
        )
    table[rng.integers(0, n)] = 0
    query = np.where(rng.random(n) < 0.5, table, rng.permutation(table))
    with mock.patch.object(hamming, "_best_parts", lambda n, radius: parts):
        blocks = list(candidate_pairs(query, table, radius, pairs))
    found = [(int(a), int(b)) for i, j in blocks for a, b in zip(i, j, strict=True)]
    expected = {
        (i, j)
        for i in range(n)
        for j in range(i + 1 if pairs == "unordered" else 0, n)
        if (i != j or pairs == "all")
        and query[i]
        and table[j]
        and int(query[i] ^ table[j]).bit_count() <= radius
    }
    assert len(found) == len(set(found)), "a pair came twice"
    assert set(found) == expected


@pytest.mark.parametrize("pairs", ["unordered", "ordered"])
def test_parts_of_a_set_are_searched_as_the_whole_each_pair_once(pairs: Pairs) -> None:
    rng = np.random.default_rng(3)
    table = rng.integers(0, 2**63, 90, dtype=np.uint64)
    table[45:] = table[:45] ^ (np.uint64(1) << rng.integers(0, 64, 45).astype(np.uint64))
    query = np.where(rng.random(90) < 0.7, table, rng.permutation(table))

    def found(first: slice, second: slice) -> list[tuple[int, int]]:
        blocks = candidate_pairs(query[first], table[second], 3, pairs, offset=first.start - second.start)
        return [(a + first.start, b + second.start) for i, j in blocks for a, b in zip(i, j, strict=True)]

    whole = found(slice(0, 90), slice(0, 90))
    in_parts = [
        pair for one in evenly(90, 1, 13) for other in evenly(90, 1, 40) for pair in found(one, other)
    ]
    assert len(whole) > 20
    assert sorted(in_parts) == sorted(whole)


def test_the_more_hashes_the_longer_the_parts_they_are_looked_up_by() -> None:
    parts = [hamming._best_parts(n, 8) for n in (10, 3_000, 30_000, 300_000, 3_000_000)]
    assert parts == sorted(parts, reverse=True)
    assert parts[1:4] == [5, 4, 3] and parts[-1] == 3
    assert hamming._best_parts(0, 0) in hamming._PARTS


def test_no_hashes_no_pairs() -> None:
    assert list(candidate_pairs(np.zeros(0, np.uint64), np.zeros(0, np.uint64), 8)) == []
    assert list(candidate_pairs(np.zeros(5, np.uint64), np.zeros(5, np.uint64), 16)) == []


def smooth(n: int, seed: int = 0) -> np.ndarray:
    """Images with structure at the scale of heads: uint8 ``(n, 64, 64)``."""
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 256, (n, 8, 8)).astype(np.float32)
    return np.kron(low, np.ones((1, 8, 8), np.float32)).astype(np.uint8)


def as_table(thumbs: np.ndarray, digests: list[str] | None = None) -> FingerprintTable:
    hashes = perceptual_hashes(thumbs)
    names = digests or [str(n) for n in range(len(thumbs))]
    return FingerprintTable(
        names, np.zeros(len(names)), hashes, hashes, thumbs, thumbs, {}, ["8-bit"] * len(names)
    )


# numpy's own words for the eight orientations, in the order of ORIENTATIONS
BY_NUMPY: list[Callable[[np.ndarray], np.ndarray]] = [
    lambda image: image,
    np.fliplr,
    np.flipud,
    lambda image: np.rot90(image, 2),
    lambda image: np.rot90(np.fliplr(image)),
    lambda image: np.rot90(image, -1),
    np.rot90,
    lambda image: np.rot90(np.fliplr(image), -1),
]


@pytest.mark.parametrize("turn", range(8))
def test_hashes_of_a_turned_image_are_those_of_the_image_in_another_order(turn: int) -> None:
    thumbs = smooth(20)
    moved = np.stack([BY_NUMPY[turn](image) for image in thumbs])
    assert (turned(thumbs, turn) == moved).all()
    assert (perceptual_hashes(moved)[:, 0] == perceptual_hashes(thumbs)[:, turn]).all()
    assert (turned(moved, turned_back(turn)) == thumbs).all()


@pytest.mark.parametrize("orientations", ["identity", "mirror", "all"])
@pytest.mark.parametrize("first", [True, False])
def test_orientations_follow_the_config_whichever_comes_first(orientations: str, first: bool) -> None:
    """The original stands before or behind its turned copies; the orientation is that of the earlier image."""
    one = smooth(1)
    copies_of_it = [turned(one, turn) for turn in range(8)]
    thumbs = np.concatenate([one, *copies_of_it] if first else [*copies_of_it, one])
    pairs = find_copies(as_table(thumbs), CopySearchConfig(orientations=orientations, hash_radius=4))
    with_it = (pairs.first if first else pairs.second) == (0 if first else 8)
    found = pairs.orientation[with_it].tolist()
    expected = SEARCHED[orientations]
    assert sorted(found) == list(expected)
    assert (pairs.ncc[with_it] > 0.999).all()
    for a, b, turn in zip(pairs.first, pairs.second, pairs.orientation, strict=True):
        assert (turned(thumbs[a : a + 1], int(turn)) == thumbs[b]).all()


def test_every_pair_of_turned_copies_is_found_once() -> None:
    one = smooth(1, 4)
    thumbs = np.concatenate([turned(one, turn) for turn in range(8)])
    pairs = find_copies(as_table(thumbs), CopySearchConfig())
    assert sorted(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [
        (a, b) for a in range(8) for b in range(a + 1, 8)
    ]


def test_a_mirrored_copy_is_found_whichever_comes_first() -> None:
    """A mirror image's hash has a median of its own, so the two ways to compare a pair differ by some bits."""
    rng = np.random.default_rng(0)
    one = np.stack([np.asarray(Image.fromarray(low[::8, ::8]).resize((64, 64))) for low in smooth(60)])
    other = np.clip(one[:, :, ::-1] + rng.normal(0, 12, one.shape), 0, 255).astype(np.uint8)
    hashes = (perceptual_hashes(one), perceptual_hashes(other))
    forth = np.bitwise_count(hashes[0][:, 1] ^ hashes[1][:, 0])
    back = np.bitwise_count(hashes[0][:, 0] ^ hashes[1][:, 1])
    (row,) = np.flatnonzero((np.minimum(forth, back) == 0) & (np.maximum(forth, back) > 2))[:1]
    for thumbs in (np.stack([one[row], other[row]]), np.stack([other[row], one[row]])):
        config = CopySearchConfig(hash_radius=1, ncc_threshold=0.9, max_difference=1, orientations="mirror")
        pairs = find_copies(as_table(thumbs), config)
        assert (pairs.first.tolist(), pairs.second.tolist(), pairs.orientation.tolist()) == ([0], [1], [1])


def test_the_threshold_decides_and_constant_images_resemble_nothing() -> None:
    rng = np.random.default_rng(1)
    one = smooth(1)[0]
    noisy = np.stack([one] + [np.clip(one + rng.normal(0, level, one.shape), 0, 255) for level in (4, 25)])
    thumbs = np.concatenate([noisy, np.full((2, 64, 64), 9)]).astype(np.uint8)
    table = as_table(thumbs)
    exact = [correlation(thumbs[:1], thumbs[row : row + 1])[0] for row in (1, 2)]
    assert exact[0] > 0.98 > exact[1]
    for threshold, expected in ((0.98, [(0, 1)]), (float(exact[1]) - 1e-3, [(0, 1), (0, 2)])):
        config = CopySearchConfig(ncc_threshold=threshold, max_difference=1, hash_radius=16)
        pairs = find_copies(table, config)
        assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == expected


def test_a_thousand_identical_images_are_one_group_and_cost_few_pairs() -> None:
    thumbs = np.concatenate([np.repeat(smooth(1), 1000, axis=0), smooth(2, 5)])
    table = as_table(thumbs, ["same"] * 1000 + ["a", "b"])
    pairs = find_copies(table, CopySearchConfig())
    assert len(pairs.first) == 999
    groups = group_copies(len(thumbs), pairs)
    assert len(set(groups[:1000])) == 1
    assert len(set(groups)) == 3


def test_an_interruption_does_not_wait_for_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    none = np.zeros(0, np.int64)

    once = threading.Lock()

    def endless(*_: object, **__: object) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if once.acquire(blocking=False):  # a second one would end the wait for the threads
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        while True:
            yield none, none

    monkeypatch.setattr(copies, "candidate_pairs", endless)
    running = set(
        threading.enumerate()
    )  # pytest-xdist has one of its own, and one of an earlier test may be ending
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            find_copies(as_table(smooth(4)), CopySearchConfig())
    finally:
        signal.signal(signal.SIGINT, before)
    for thread in set(threading.enumerate()) - running:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "a thread goes on searching"


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=60))
def test_groups_are_the_connected_components(n: int, edges: list[tuple[int, int]]) -> None:
    edges = [(a % n, b % n) for a, b in edges]
    pairs = CopyPairs(
        np.array([a for a, _ in edges], np.int64),
        np.array([b for _, b in edges], np.int64),
        np.ones(len(edges)),
        np.zeros(len(edges), np.int64),
        np.zeros(len(edges), np.bool_),
    )
    parent = list(range(n))
    for _ in range(n):
        for a, b in edges:
            parent[a] = parent[b] = min(parent[a], parent[b])
    groups = group_copies(n, pairs)
    assert [[groups[i] == groups[j] for j in range(n)] for i in range(n)] == [
        [parent[i] == parent[j] for j in range(n)] for i in range(n)
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda image, rng: 255 * (image / 255) ** 0.7,
        lambda image, rng: 255 * (image / 255) ** 1.3,
        lambda image, rng: np.clip(1.3 * image + 10, 0, 255),
        lambda image, rng: np.clip(image + rng.normal(0, 6, image.shape), 0, 255),
        lambda image, rng: np.where(np.add.outer(np.arange(64), np.arange(64)) < 12, 230, image),
    ],
    ids=["darker gamma", "brighter gamma", "contrast", "noise", "writing"],
)
def test_what_happened_to_a_copy_does_not_count_as_a_difference(
    change: Callable[[np.ndarray, np.random.Generator], np.ndarray],
) -> None:
    rng = np.random.default_rng(2)
    images = np.stack([np.asarray(Image.fromarray(low[::8, ::8]).resize((64, 64))) for low in smooth(30)])
    changed = change(images.astype(float), rng).astype(np.uint8)
    assert difference(images, changed).max() < CopySearchConfig().max_difference
    assert (difference(images, changed) == difference(changed, images)).all()
    moved = np.roll(images, 2, axis=2)
    assert difference(images, moved).min() > CopySearchConfig().max_difference


def test_a_constant_image_differs_from_everything_and_no_image_from_itself() -> None:
    images = np.concatenate([smooth(2), np.full((1, 64, 64), 7, np.uint8), np.zeros((1, 64, 64), np.uint8)])
    assert difference(images[:2], images[:2]).max() < 0.2
    assert np.isinf(difference(images[[0, 2, 2, 3]], images[[2, 0, 2, 3]])).all()
    assert difference(images[:0], images[:0]).shape == (0,)


@pytest.mark.parametrize("frame", [0, 3])
def test_margins_are_left_out_of_the_trimmed_version(frame: int) -> None:
    head = np.kron(np.random.default_rng(3).integers(60, 256, (10, 8)), np.ones((16, 16))).astype(np.uint8)
    padded = np.zeros((240, 220), np.uint8)
    padded[30:190, 50:178] = head
    if frame:
        padded[:frame], padded[-frame:], padded[:, :frame], padded[:, -frame:] = 255, 255, 255, 255
    whole, trimmed = thumbnails(padded)
    own = thumbnails(head)[1]
    assert correlation(trimmed[None], own[None])[0] > 0.98
    assert correlation(whole[None], own[None])[0] < 0.9


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> tuple[PhantomTruth, FingerprintTable, list[str]]:
    root: Path = tmp_path_factory.mktemp("phantom") / "files"
    config = PhantomConfig(subjects_per_class=10, slices_per_subject=5, copies_per_kind=COPIES)
    truth = write_phantom(root, config)
    paths = [image.path for image in truth.images]
    return truth, fingerprint_files(root, paths), paths


def test_planted_copies_are_found_and_nothing_else(
    phantom: tuple[PhantomTruth, FingerprintTable, list[str]],
) -> None:
    truth, prints, paths = phantom
    table = score_copies(truth, paths, find_copies(prints, CopySearchConfig()))
    assert table["planted"].tolist() == [COPIES] * 6 + [6, COPIES * 6 + 6]
    assert table.loc["exact", "recall"] == 1.0
    assert table.loc["label conflict", "recall"] == 1.0
    assert (table["recall"] >= 0.9).all(), table
    assert (table["precision"] >= 0.95).all(), table


def test_only_exact_copies_are_called_exact(
    phantom: tuple[PhantomTruth, FingerprintTable, list[str]],
) -> None:
    truth, prints, paths = phantom
    pairs = find_copies(prints, CopySearchConfig())
    kind = {image.path: image.copy_kind for image in truth.images}
    marked = [
        (paths[a], paths[b]) for a, b in zip(pairs.first[pairs.exact], pairs.second[pairs.exact], strict=True)
    ]
    assert len(marked) == COPIES
    assert all("exact" in (kind[a], kind[b]) for a, b in marked)


@pytest.mark.full
def test_confirmation_is_what_makes_the_hash_usable(
    phantom: tuple[PhantomTruth, FingerprintTable, list[str]],
) -> None:
    """At a wide radius the hash proposes slices of one subject; with the confirmation off, precision falls."""
    truth, prints, paths = phantom
    wide = CopySearchConfig(hash_radius=16)
    confirmed = score_copies(truth, paths, find_copies(prints, wide))
    proposed = score_copies(
        truth,
        paths,
        find_copies(prints, wide.model_copy(update={"ncc_threshold": 1e-6, "max_difference": 1e6})),
    )
    assert proposed.loc["all", "precision"] < 0.8 < confirmed.loc["all", "precision"]
