"""The copies two data sets share, against the search within one set, brute force, and what the synthetic set planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brainmri_core.config.data import CopySearchConfig, PhantomConfig
from brainmri_core.copies import across
from brainmri_core.copies.across import ACROSS_COLUMNS, find_copies_across
from brainmri_core.copies.fingerprint import FingerprintTable, fingerprint_files
from brainmri_core.copies.likeness import ORIENTATIONS, turned, turned_back
from brainmri_core.copies.search import find_copies
from brainmri_core.sources.phantom import PhantomTruth, write_phantom
from tests.counts import rest

SEARCH = CopySearchConfig()
Found = set[tuple[int, int, str, float]]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> tuple[PhantomTruth, FingerprintTable]:
    root: Path = tmp_path_factory.mktemp("phantom") / "files"
    config = PhantomConfig(subjects_per_class=8, slices_per_subject=4, copies_per_kind=8)
    truth = write_phantom(root, config)
    return truth, fingerprint_files(root, [image.path for image in truth.images])


def files(pixels: list[str], files: list[str] | None = None) -> pd.DataFrame:
    return pd.DataFrame(
        {"pixel_sha256": pixels, "file_sha256": files or [f"file {n}" for n in range(len(pixels))]}
    )


def part(prints: FingerprintTable, rows: np.ndarray) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    return files([prints.pixel_sha256[row] for row in rows]), prints.thumbs[rows], prints.trimmed_thumbs[rows]


def between(prints: FingerprintTable, a: np.ndarray, b: np.ndarray, *, trimmed: bool = True) -> pd.DataFrame:
    (table_a, thumbs_a, inner_a), (table_b, thumbs_b, inner_b) = part(prints, a), part(prints, b)
    inner = (inner_a, inner_b) if trimmed else None
    return find_copies_across(table_a, thumbs_a, table_b, thumbs_b, SEARCH, trimmed=inner)


@pytest.mark.parametrize("seed", [0, *rest(1, 2)])
def test_two_parts_of_a_set_share_what_the_search_of_the_whole_set_finds_between_them(
    phantom: tuple[PhantomTruth, FingerprintTable], seed: int
) -> None:
    _, prints = phantom
    rng = np.random.default_rng(seed)
    n = len(prints.pixel_sha256)
    order = rng.permutation(n)
    a, b = np.split(order, [n // (2 + seed)])
    found = between(prints, a, b)
    whole = find_copies(prints, SEARCH)
    in_a = np.isin(np.arange(n), a)
    expected = set()
    for one, other, score, turn in zip(whole.first, whole.second, whole.ncc, whole.orientation, strict=True):
        if in_a[one] != in_a[other]:
            way = int(turn) if in_a[one] else turned_back(int(turn))
            expected.add((min(one, other), max(one, other), ORIENTATIONS[way], float(score)))
    rows = zip(a[found["a"]], b[found["b"]], found["orientation"], found["correlation"], strict=True)
    assert {(min(x, y), max(x, y), way, score) for x, y, way, score in rows} == expected
    assert len(found) == len(expected) > 10


def test_the_sets_exchanged_give_the_same_pairs_exchanged(
    phantom: tuple[PhantomTruth, FingerprintTable],
) -> None:
    n = len(phantom[1].pixel_sha256)
    a, b = np.split(np.random.default_rng(3).permutation(n), [n // 3])
    forth, back = between(phantom[1], a, b), between(phantom[1], b, a)
    undone = {name: ORIENTATIONS[turned_back(n)] for n, name in enumerate(ORIENTATIONS)}
    back = back.assign(a=back["b"], b=back["a"], orientation=back["orientation"].map(undone))
    pd.testing.assert_frame_equal(forth, back.sort_values(["a", "b"], ignore_index=True))


def test_what_was_planted_between_the_sets_is_found_and_named_and_nothing_else(
    phantom: tuple[PhantomTruth, FingerprintTable],
) -> None:
    """Originals are one set, their planted copies the other."""
    truth, prints = phantom
    copy = np.array([image.copy_of is not None for image in truth.images])
    a, b = np.flatnonzero(~copy), np.flatnonzero(copy)
    found = between(prints, a, b)
    names = {image.path: n for n, image in enumerate(truth.images)}
    origin = {row: names[truth.images[row].copy_of or ""] for row in b}
    right = np.array([origin[y] == x for x, y in zip(a[found["a"]], b[found["b"]], strict=True)])
    assert right.mean() >= 0.95
    assert len(set(found["b"][right])) >= 0.95 * len(b)
    kind = {row: truth.images[row].copy_kind for row in b}
    named = {"exact": {"pixels"}, "mirrored": {"turned"}}  # the files of the table bear names of their own
    for row, said in zip(b[found["b"]][right], found["kind"][right], strict=True):
        assert said in named.get(str(kind[row]), {"re-encoded"}), kind[row]


def test_a_padded_copy_is_found_by_what_lies_inside_the_margins(
    phantom: tuple[PhantomTruth, FingerprintTable],
) -> None:
    truth, prints = phantom
    padded = np.array([image.copy_kind == "padded" for image in truth.images])
    originals = np.flatnonzero([image.copy_of is None for image in truth.images])
    b = np.flatnonzero(padded)
    with_it, without = between(prints, originals, b), between(prints, originals, b, trimmed=False)
    assert set(with_it["b"]) == set(range(len(b)))
    assert len(set(without["b"])) < len(b) / 2


def heads(n: int, seed: int = 0) -> np.ndarray:
    low = np.random.default_rng(seed).integers(0, 256, (n, 8, 8)).astype(np.float32)
    return np.kron(low, np.ones((1, 8, 8), np.float32)).astype(np.uint8)


@pytest.mark.parametrize("turn", range(8))
def test_the_orientation_brings_image_a_into_the_look_of_image_b(turn: int) -> None:
    """The two sets differ in size either way, so neither is always the one looked up."""
    thumbs_a = heads(3)
    thumbs_b = np.concatenate([heads(2 + 4 * (turn % 2), 9), turned(thumbs_a[1:2], turn)])
    found = find_copies_across(
        files(list("abc")), thumbs_a, files([f"b{n}" for n in range(len(thumbs_b))]), thumbs_b, SEARCH
    )
    assert found[["a", "b"]].values.tolist() == [[1, len(thumbs_b) - 1]]
    assert found.loc[0, "orientation"] == ORIENTATIONS[turn]
    assert found.loc[0, "kind"] == ("turned" if turn else "re-encoded")
    assert (turned(thumbs_a[1:2], turn)[0] == thumbs_b[-1]).all()


def test_a_kind_is_named_by_what_is_the_same() -> None:
    thumbs = heads(4)
    pale = (thumbs[2:3] * 0.8 + 20).astype(np.uint8)
    table_a = files(["p0", "p1", "p2", ""], ["f0", "f1", "f2", "f3"])
    table_b = files(["p0", "p1", "q2", ""], ["f0", "g1", "g2", "f3"])
    found = find_copies_across(
        table_a, thumbs, table_b, np.concatenate([thumbs[:2], pale, thumbs[3:]]), SEARCH
    )
    assert found["kind"].tolist() == ["exact", "pixels", "re-encoded"]
    assert found[["a", "b"]].values.tolist() == [[0, 0], [1, 1], [2, 2]], "an unreadable image is in no pair"
    assert found["correlation"].tolist()[:2] == [1.0, 1.0]


@pytest.mark.parametrize("most", [65_536, 20])
def test_none_of_many_identical_images_is_lost(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(across, "_ALL_PAIRS", most)
    thumbs_a, thumbs_b = np.repeat(heads(1), 6, axis=0), np.repeat(heads(1)[:, ::-1], 5, axis=0)
    found = find_copies_across(files(["p"] * 6), thumbs_a, files(["q"] * 5), thumbs_b, SEARCH)
    assert set(found["a"]) == set(range(6)) and set(found["b"]) == set(range(5))
    assert len(found) == len(found.drop_duplicates(["a", "b"])) == (30 if most > 30 else 10)


def test_an_empty_set_shares_nothing() -> None:
    none, some = np.zeros((0, 64, 64), np.uint8), heads(2)
    found = find_copies_across(files([]), none, files(["p", "q"]), some, SEARCH)
    assert (
        len(found) == 0
        and {name: str(kind) for name, kind in found.dtypes.items()}.keys() == ACROSS_COLUMNS.keys()
    )
