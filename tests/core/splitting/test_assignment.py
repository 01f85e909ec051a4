from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from brainmri_core.splitting.assignment import (
    assign_folds,
    assign_side,
    independent_units,
    joined,
    validation_mask,
)

tables = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=200)


def unpack(rows: list[tuple[int, int]]) -> tuple[list[str], list[int]]:
    return [f"g{group}" for group, _ in rows], [label for _, label in rows]


@settings(max_examples=200, deadline=None)
@given(tables, st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_no_group_straddles_and_order_does_not_matter(
    rows: list[tuple[int, int]], frac: float, seed: int
) -> None:
    groups, labels = unpack(rows)
    side = assign_side(groups, labels, frac, seed, "test")
    fold = assign_folds(groups, labels, 4, seed)
    for group in set(groups):
        members = [n for n, name in enumerate(groups) if name == group]
        assert len(set(side[members])) == 1
        assert len(set(fold[members])) == 1
    order = np.random.default_rng(seed).permutation(len(rows))
    moved_groups, moved_labels = [groups[n] for n in order], [labels[n] for n in order]
    np.testing.assert_array_equal(assign_side(moved_groups, moved_labels, frac, seed, "test"), side[order])
    np.testing.assert_array_equal(assign_folds(moved_groups, moved_labels, 4, seed), fold[order])


@pytest.mark.full
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 0.5))
def test_class_proportions_are_met_within_the_largest_group(seed: int, frac: float) -> None:
    rng = np.random.default_rng(seed)
    groups = [f"g{n}" for n in rng.integers(0, 300, 1000)]
    labels = np.array([int(name[1:]) % 4 for name in groups])
    side = assign_side(groups, labels, frac, seed, "test")
    largest = max(groups.count(name) for name in set(groups))
    for label in range(4):
        members = labels == label
        assert abs(side[members].sum() - frac * members.sum()) <= largest


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_adding_images_moves_few_of_the_others(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [f"g{n}" for n in range(1000)]
    labels = rng.integers(0, 4, 1000).tolist()
    before = assign_side(groups, labels, 0.25, seed, "test")
    after = assign_side(
        groups + [f"new{n}" for n in range(20)], labels + rng.integers(0, 4, 20).tolist(), 0.25, seed, "test"
    )
    assert (before != after[:1000]).sum() <= 20


@pytest.mark.full
@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 10), st.integers(0, 10))
def test_adding_images_changes_few_folds(seed: int, k: int, added: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [f"g{n}" for n in rng.integers(0, 900, 1000)]
    labels = [int(name[1:]) % 4 for name in groups]
    before = assign_folds(groups, labels, k, seed)
    new = [f"new{n}" for n in range(added)]
    after = assign_folds(groups + new, labels + rng.integers(0, 4, added).tolist(), k, seed)
    # each of the k - 1 cuts of a class shifts by at most the images added and a group
    largest = max(groups.count(name) for name in set(groups))
    assert (before != after[:1000]).sum() <= (k - 1) * (added + 4 * largest if added else 0)


sized = st.lists(st.tuples(st.sampled_from([1, 2, 3, 10, 60]), st.integers(0, 2)), min_size=1, max_size=30)


@pytest.mark.full
@settings(max_examples=300, deadline=None)
@given(sized, st.integers(2, 6), st.integers(0, 2**32 - 1))
@example([(size, 0) for size in (1, 1, 1, 2, 60)], 5, 42)
@example([(size, 0) for size in (1, 3, 3, 60)], 5, 42)
def test_groups_of_any_size_leave_no_fold_without_a_class_that_they_can_fill(
    sizes: list[tuple[int, int]], k: int, seed: int
) -> None:
    groups = np.array([f"g{n}" for n, (size, _) in enumerate(sizes) for _ in range(size)])
    labels = np.array([label for size, label in sizes for _ in range(size)])
    fold = assign_folds(groups.tolist(), labels, k, seed)
    for label in set(labels.tolist()):
        members = labels == label
        assert len(set(fold[members])) == min(k, len(set(groups[members])))


def test_seed_and_purpose_change_the_choice() -> None:
    groups, labels = [f"g{n}" for n in range(400)], [0] * 400
    choices = {
        assign_side(groups, labels, 0.25, seed, salt).tobytes()
        for seed, salt in ((1, "a"), (2, "a"), (1, "b"))
    }
    assert len(choices) == 3


@pytest.mark.parametrize("frac", [0.01, 0.25, 0.75, 0.99])
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("size", [1, 7])
def test_small_classes_are_on_both_sides(count: int, frac: float, size: int) -> None:
    for seed in range(20):
        groups = [f"g{n}" for n in range(count) for _ in range(size)]
        side = assign_side(groups, [0] * len(groups), frac, seed, "test")
        assert 0 < side.sum() < len(groups)


def test_class_of_one_group_stays_on_the_training_side() -> None:
    assert not assign_side(["g"] * 5, [0] * 5, 0.99, 1, "test").any()


def test_folds_are_balanced_by_class() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 1000)
    fold = assign_folds([f"g{n}" for n in range(1000)], labels, 5, 42)
    for label in range(4):
        counts = np.bincount(fold[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_seed_changes_folds_and_validation() -> None:
    groups, labels = [f"g{n}" for n in range(200)], [n % 4 for n in range(200)]
    samples = pd.DataFrame({"split": "train", "group": groups, "class_index": labels})
    assert len({assign_folds(groups, labels, 4, seed).tobytes() for seed in range(4)}) == 4
    assert len({validation_mask(samples, 0.2, seed).tobytes() for seed in range(4)}) == 4
    assert (validation_mask(samples, 0.2, 1) != assign_side(groups, labels, 0.2, 1, "test")).any()


def test_choices_stay_as_they_are_from_version_to_version() -> None:
    """A seed that is written into a paper has to give the same split for ever."""
    groups, labels = [f"g{n // 2}" for n in range(24)], [n // 2 % 3 for n in range(24)]
    samples = pd.DataFrame({"split": "train", "group": groups, "class_index": labels})
    assert "".join(map(str, assign_folds(groups, labels, 3, 42)[::2])) == "112200210021"
    assert "".join(map(str, assign_side(groups, labels, 0.3, 42, "test")[::2].astype(int))) == "000010000101"
    assert "".join(map(str, validation_mask(samples, 0.3, 42)[::2].astype(int))) == "100000010001"


def test_groups_of_many_sizes_stay_where_they_are_from_version_to_version() -> None:
    groups = [f"g{int(n**0.5)}" for n in range(400)]
    chosen = {
        frac: sorted(
            {int(groups[n][1:]) for n in np.flatnonzero(assign_side(groups, [0] * 400, frac, 7, "test"))}
        )
        for frac in (0.1, 0.3, 0.5)
    }
    assert chosen == {0.1: [2, 18], 0.3: [2, 4, 6, 13, 17, 18], 0.5: [2, 4, 6, 7, 8, 9, 11, 13, 17, 18]}


def test_large_groups_are_placed_first() -> None:
    for seed in range(20):
        groups = ["large"] * 30 + [f"g{n}" for n in range(30)]
        counts = np.bincount(assign_folds(groups, [0] * 60, 2, seed), minlength=2)
        assert counts.tolist() == [30, 30]


def test_validation_comes_from_training_rows_only() -> None:
    samples = pd.DataFrame(
        {
            "split": ["train"] * 80 + ["test"] * 20,
            "group": [f"g{n}" for n in range(100)],
            "class_index": [n % 4 for n in range(100)],
        }
    )
    mask = validation_mask(samples, 0.2, 1)
    assert mask[:80].sum() == 16
    assert not mask[80:].any()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["", "a", "b", "c"]), st.integers(0, 6)), min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=6),
)
def test_images_are_joined_by_any_name_they_share_and_by_pairs(
    rows: list[tuple[str, int]], pairs: list[tuple[int, int]]
) -> None:
    n = len(rows)
    pairs = [(one, other) for one, other in pairs if one < n and other < n]
    tied = np.eye(n, dtype=bool)
    for one in range(n):
        for other in range(n):
            same = rows[one][1] == rows[other][1] or (rows[one][0] == rows[other][0] != "")
            tied[one, other] |= same or (one, other) in pairs or (other, one) in pairs
    for _ in range(n):
        tied = tied @ tied
    first, second = np.array(pairs, np.int64).reshape(-1, 2).T
    found = joined([name for name, _ in rows], [str(group) for _, group in rows], pairs=[(first, second)])
    assert ((found[:, None] == found) == tied).all()


def test_a_unit_is_the_patient_with_its_groups_and_where_unknown_the_group() -> None:
    table = pd.DataFrame(
        {"group": ["b", "a", "a", "c", "d", "e"], "patient": ["p1", "p1", "", "p2", None, None]}
    )
    assert independent_units(table) == ["a", "a", "a", "c", "d", "e"]
    assert independent_units(table[["group"]]) == table["group"].tolist()


def test_no_patient_is_in_training_and_validation_though_the_groups_are_smaller() -> None:
    n = 240
    samples = pd.DataFrame(
        {
            "split": "train",
            "group": [f"g{i}" for i in range(n)],
            "class_index": [i // 6 % 4 for i in range(n)],
            "patient": [f"p{i // 6}" if i % 5 else "" for i in range(n)],
        }
    )
    mask = validation_mask(samples, 0.2, 3)
    assert 0.15 < mask.mean() < 0.25
    known = samples[samples["patient"] != ""]
    assert pd.Series(mask).loc[known.index].groupby(known["patient"]).nunique().max() == 1
