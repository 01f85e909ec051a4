from __future__ import annotations

import base64
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from brainmri_core.config.data import CopySearchConfig
from brainmri_core.copies.leaks import find_leaks, find_twins, patient_twins
from brainmri_core.copies.likeness import ORIENTATIONS, turned, turned_back
from brainmri_core.copies.lookup import nearest_neighbour_baseline, nearest_neighbours, unit_vectors
from brainmri_core.copies.unlisted import best_copies
from brainmri_core.pages.validation_page import render_leak_section
from brainmri_core.splitting.assignment import assign_side
from brainmri_core.splitting.divisions import SPLIT_NAMES, divisions, groups_by, random_split
from brainmri_core.validation import leak_report as leaks
from brainmri_core.validation.leak_report import LeakReport, leak_report


def table(rows: list[tuple[str, str, str, str]], labels: list[int] | None = None) -> pd.DataFrame:
    """Samples of (path, split, pixel hash, group)."""
    frame = pd.DataFrame(rows, columns=["path", "split", "pixel_sha256", "group"])
    frame["class_index"] = labels or [0] * len(frame)
    frame["label"] = frame["class_index"].map({0: "glioma", 1: "notumor"})
    frame["origin"] = "none"
    frame["row"] = -1
    return frame


def pairs(*rows: tuple[str, str, float]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["path_a", "path_b", "ncc"])
    return frame.assign(orientation=["mirrored"] * len(frame))


def sides(samples: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return (samples["split"] == "train").to_numpy(), (samples["split"] == "test").to_numpy()


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 64, 64), dtype=np.uint8)


def test_an_exact_copy_in_training_is_a_twin() -> None:
    samples = table([("a", "train", "h", "1"), ("b", "test", "h", "2"), ("c", "test", "i", "3")])
    found = find_twins(samples, pairs(), *sides(samples))
    assert found[["test", "train", "kind"]].to_numpy().tolist() == [[1, 0, "exact"]]


@pytest.mark.parametrize("pair", [("a", "b", 0.99), ("b", "a", 0.99)])
def test_a_confirmed_pair_is_a_twin_either_way_round(pair: tuple[str, str, float]) -> None:
    samples = table([("a", "train", "h", "1"), ("b", "test", "i", "2")])
    found = find_twins(samples, pairs(pair), *sides(samples))
    assert found.to_numpy().tolist() == [[1, 0, "near copy", 0.99, "mirrored"]]


def test_the_nearest_of_several_copies_is_named() -> None:
    samples = table([("a", "train", "h", "1"), ("b", "train", "i", "1"), ("c", "test", "j", "2")])
    for listed in (
        pairs(("a", "c", 0.985), ("c", "b", 0.995)),
        pairs(("c", "a", 0.985), ("b", "c", 0.995)),
        pairs(("b", "c", 0.995), ("a", "c", 0.985)),
    ):
        found = find_twins(samples, listed, *sides(samples))
        assert found[["train", "ncc"]].to_numpy().tolist() == [[1, 0.995]]


def test_a_near_copy_of_an_exact_copy_is_a_twin() -> None:
    samples = table([("a", "train", "h", "1"), ("b", "excluded", "h", "1"), ("c", "test", "i", "2")])
    found = find_twins(samples, pairs(("b", "c", 0.99)), *sides(samples))
    assert found[["test", "train"]].to_numpy().tolist() == [[2, 0]]


def test_unreadable_images_are_not_copies() -> None:
    samples = table([("a", "train", "", "1"), ("b", "test", "", "2")])
    assert find_leaks(samples, pairs(("gone", "b", 1.0)), *sides(samples)).empty


def test_a_group_on_two_sides_is_a_leak_even_without_a_copy() -> None:
    samples = table([("a", "train", "h", "1"), ("b", "test", "i", "1"), ("c", "test", "j", "2")])
    found = find_leaks(samples, pairs(), *sides(samples))
    assert found[["test", "train", "kind"]].to_numpy().tolist() == [[1, 0, "same group"]]


def test_a_patient_on_two_sides_is_a_leak_where_no_copy_nor_group_is() -> None:
    samples = table(
        [("a", "train", "h", "1"), ("b", "test", "i", "2"), ("c", "test", "h", "3"), ("d", "test", "j", "4")]
    ).assign(patient=["p1", "p1", "p1", None])
    found = find_leaks(samples, pairs(), *sides(samples))
    assert found[["test", "train", "kind"]].to_numpy().tolist() == [
        [1, 0, "same patient"],
        [2, 0, "exact"],
    ]
    assert patient_twins(samples, *sides(samples))["test"].tolist() == [1, 2]


@pytest.mark.parametrize("unknown", ["", None, np.nan])
def test_images_of_unknown_patients_have_no_patient_in_common(unknown: object) -> None:
    samples = table([("a", "train", "h", "1"), ("b", "test", "i", "2")]).assign(patient=unknown)
    assert find_leaks(samples, pairs(), *sides(samples)).empty


def test_a_clean_split_has_no_leak() -> None:
    samples = table([("a", "train", "h", "1"), ("b", "test", "i", "2"), ("c", "excluded", "h", "1")])
    assert find_leaks(samples, pairs(("a", "c", 0.99)), *sides(samples)).empty


def test_similarity_is_the_correlation_coefficient() -> None:
    images = noise(6)
    expected = np.corrcoef(images.reshape(6, -1).astype(float))
    assert np.allclose(unit_vectors(images) @ unit_vectors(images).T, expected, atol=1e-5)


def test_a_constant_image_resembles_nothing() -> None:
    flat = np.full((1, 64, 64), 7, np.uint8)
    _, similarity = nearest_neighbours(noise(3), flat)
    assert similarity.tolist() == [0.0]


def test_look_up_in_blocks_finds_what_one_block_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = noise(23, 1), noise(11, 2)
    whole = nearest_neighbours(train, test)
    monkeypatch.setattr("brainmri_core.copies.lookup._BLOCK", 4)
    parts = nearest_neighbours(train, test)
    assert whole[0].tolist() == parts[0].tolist()
    assert np.allclose(whole[1], parts[1], atol=1e-6)


def test_look_up_is_blind_to_brightness() -> None:
    train = noise(5, 3)
    brighter = (train // 2 + 100).astype(np.uint8)
    assert nearest_neighbours(train, brighter)[0].tolist() == [0, 1, 2, 3, 4]
    assert nearest_neighbour_baseline(train, np.array([4, 3, 2, 1, 0]), train[1:3]).tolist() == [3, 2]


def test_look_up_without_training_images_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one training image"):
        nearest_neighbours(noise(0), noise(1))


def test_random_split_has_the_size_and_the_class_shares() -> None:
    labels = np.repeat([0, 1], [80, 40])
    usable = np.ones(120, bool)
    usable[:4] = False
    train, test = random_split(labels, usable, 29, seed=1)
    assert not (train & test).any()
    assert ((train | test) == usable).all()
    assert (int(test[:80].sum()), int(test[80:].sum())) == (19, 10)
    assert (random_split(labels, usable, 29, seed=1)[1] == test).all()
    assert (random_split(labels, usable, 29, seed=2)[1] != test).any()


def copied_set() -> tuple[pd.DataFrame, np.ndarray, pd.DataFrame]:
    """Twelve images; official test image 8 equals training image 0, image 9 is training image 1 mirrored."""
    thumbs = noise(12, 5)
    thumbs[8], thumbs[9] = thumbs[0], thumbs[1][:, ::-1]
    hashes = [f"h{i}" for i in range(12)]
    hashes[8] = "h0"
    groups = [str(i) for i in range(12)]
    groups[8], groups[9] = "0", "1"
    split = ["train"] * 8 + ["train", "train", "test", "test"]
    rows = [(f"p{i}.jpg", split[i], hashes[i], groups[i]) for i in range(12)]
    samples = table(rows, [0, 1] * 6)
    samples["origin"] = ["training"] * 8 + ["testing"] * 4
    return samples, thumbs, pairs(("p0.jpg", "p8.jpg", 1.0), ("p1.jpg", "p9.jpg", 0.999))


def test_report_compares_the_three_splits() -> None:
    samples, thumbs, copies = copied_set()
    report = leak_report(samples, thumbs, copies, seed=0)
    ours, official = report.row("this split"), report.row("official folders")
    assert (ours.n_train, ours.n_test, ours.exact_copies, ours.copies) == (10, 2, 0, 0)
    assert ours.accuracy_with_copy is None
    assert (official.n_train, official.n_test, official.exact_copies, official.copies) == (8, 4, 1, 2)
    assert report.row("random split").n_test == 2
    assert report.unlisted == []
    kinds = sorted((pair.split, pair.kind) for pair in report.gallery if pair.split != "random split")
    assert kinds == [("official folders", "exact"), ("official folders", "near copy")]
    picture = base64.b64decode(report.gallery[0].test_image.partition(",")[2])
    assert Image.open(io.BytesIO(picture)).size == (64, 64)


def test_report_scores_the_look_up_with_and_without_copies() -> None:
    samples, thumbs, copies = copied_set()
    official = leak_report(samples, thumbs, copies, seed=0).row("official folders")
    vectors = unit_vectors(thumbs)
    nearest = (vectors[8:] @ vectors[:8].T).argmax(axis=1)
    right = nearest % 2 == np.arange(8, 12) % 2
    assert official.accuracy == right.mean()
    assert official.accuracy_with_copy == right[:2].mean()
    assert official.accuracy_without_copy == right[2:].mean()


@pytest.mark.parametrize("turn", range(8))
def test_a_copy_that_the_search_missed_is_found_by_looking_in_any_orientation(turn: int) -> None:
    samples, thumbs, _ = copied_set()
    thumbs[9] = turned(thumbs[1:2], turned_back(turn))[0]
    samples.loc[9, ["split", "group"]] = ["test", "9"]
    report = leak_report(samples, thumbs, pairs(), seed=0, search=CopySearchConfig(orientations="identity"))
    assert report.unlisted == ["p9.jpg"]
    (pair,) = report.unlisted_pairs
    assert (pair.test_path, pair.train_path, pair.ncc) == ("p9.jpg", "p1.jpg", 1)
    assert pair.orientation == ORIENTATIONS[turn]
    listed = leak_report(samples, thumbs, pairs(("p1.jpg", "p9.jpg", 0.999)), seed=0)
    assert (listed.unlisted, listed.unlisted_pairs) == ([], [])


def test_a_look_up_in_blocks_finds_the_best_copy_of_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    thumbs = noise(40, 7)
    thumbs[30:] = np.stack([turned(thumbs[row : row + 1], row % 8)[0] for row in range(10)])
    thumbs[20] = np.clip(thumbs[3].astype(int) + 4, 0, 255)  # a worse copy of 33 than row 3 is
    whole = best_copies(thumbs, np.arange(28, 40), np.arange(28), CopySearchConfig())
    monkeypatch.setattr("brainmri_core.copies.unlisted._BLOCK", 3)
    monkeypatch.setattr("brainmri_core.copies.unlisted._CONFIRM", 1)
    assert best_copies(thumbs, np.arange(28, 40), np.arange(28), CopySearchConfig()) == whole
    assert [(copy.row, copy.other) for copy in whole] == [(30 + row, row) for row in range(10)]
    assert [turned_back(copy.orientation) for copy in whole] == [row % 8 for row in range(10)]
    assert best_copies(thumbs, np.arange(28, 40), np.arange(0), CopySearchConfig()) == []


def test_a_report_of_an_earlier_version_is_read() -> None:
    stored = {"rows": [], "unlisted": ["p9.jpg"], "gallery": []}
    report = LeakReport.model_validate(stored)
    assert (report.unlisted, report.unlisted_pairs) == (["p9.jpg"], [])
    assert "1 test" in render_leak_section(report)


@pytest.mark.parametrize(("first", "name"), [("p1.jpg", "turned left"), ("p9.jpg", "turned right")])
def test_a_quarter_turn_is_told_from_the_side_of_the_test_image(first: str, name: str) -> None:
    samples = copied_set()[0]
    samples.loc[9, ["split", "group"]] = ["test", "9"]
    copies = pairs((first, "p9.jpg" if first == "p1.jpg" else "p1.jpg", 0.99)).assign(
        orientation="turned right"
    )
    train, test = ((samples["split"] == side).to_numpy() for side in ("train", "test"))
    assert find_twins(samples, copies, train, test)["orientation"].tolist() == [name]
    section = render_leak_section(leak_report(samples, copied_set()[1], copies, seed=0))
    assert f"turned by 90 degrees to the {name.split()[1]}" in section


def test_without_official_folders_the_row_says_why() -> None:
    samples, thumbs, copies = copied_set()
    samples["origin"] = "none"
    row = leak_report(samples, thumbs, copies, seed=0).row("official folders")
    assert row.accuracy is None
    assert row.reason == "the data set comes without a training and a testing folder"


def patient_set() -> tuple[pd.DataFrame, np.ndarray, pd.DataFrame]:
    """240 images of 60 patients, four each, two of them copies of each other; every sixth patient is unknown."""
    n = 240
    rng = np.random.default_rng(4)
    of = np.arange(n) // 4
    faces = rng.normal(128, 40, (60, 64, 64))
    thumbs = np.clip(faces[of] + rng.normal(0, 10, (n, 64, 64)), 0, 255).astype(np.uint8)
    thumbs[1::4] = thumbs[::4]
    hashes = [f"h{i - (i % 4 == 1)}" for i in range(n)]
    rows = [(f"f{rng.integers(9999)}x{i}/a.jpg", "train", hashes[i], f"{hashes[i]}") for i in range(n)]
    samples = table(rows, (of % 2).tolist())
    samples["patient"] = [f"p{p}" if p % 6 else None for p in of]
    samples.loc[assign_side(samples["group"], samples["class_index"], 0.25, 9, "test"), "split"] = "test"
    return samples, thumbs, pairs()


def test_a_split_by_copies_keeps_copies_together_and_one_by_patients_also_patients() -> None:
    samples, thumbs, copies = patient_set()
    report = leak_report(samples, thumbs, copies, seed=3)
    rows = {row.split: row for row in report.rows}
    assert list(rows) == list(SPLIT_NAMES)
    assert rows["random split"].copies > 0
    assert rows["by copies alone"].copies == rows["by patients"].copies == 0
    assert rows["by patients"].patients == 0
    for name in ("this split", "random split", "by copies alone"):
        known = rows[name].known_patients
        assert rows[name].patients > 0.8 * known > 0
        assert rows[name].accuracy_tied == 1, "the look-up recognises the patients"
    assert rows["by copies alone"].n_test == 60
    assert abs(rows["by patients"].n_test - 60) <= 4, "whole patients of four images in each of two classes"
    assert rows["by patients"].accuracy < 0.8, "nobody is there to be recognised, but the unknown"
    assert rows["by patients"].accuracy_tied is None


def test_the_split_by_patients_is_the_one_that_auto_makes() -> None:
    samples, thumbs, copies = patient_set()
    division = {item.name: item for item in divisions(samples, thumbs, copies, seed=9)}["by patients"]
    for patient in set(samples["patient"].dropna()):
        assert division.test[(samples["patient"] == patient).to_numpy()].mean() in (0, 1)
    assert not (division.train & division.test).any()
    assert (division.train | division.test).all()


def test_neighbours_stand_for_patients_only_where_these_are_unknown() -> None:
    samples, thumbs, copies = patient_set()
    samples["path"] = [f"glioma/image ({i}).jpg" for i in range(len(samples))]
    groups = groups_by("auto", samples, copies, thumbs)
    assert len(set(groups[:4])) == 1, "unknown, but alike and in a row"
    samples.loc[[4, 5], "patient"] = "p0"
    groups = groups_by("auto", samples, copies, thumbs)
    assert groups[4] == groups[5] != groups[6] == groups[7]


def test_without_patients_the_row_says_why() -> None:
    samples, thumbs, copies = copied_set()
    report = leak_report(samples, thumbs, copies, seed=0)
    assert report.row("by patients").reason == "no image's patient is known"
    assert report.row("this split").patients is None
    assert "No figures: no image&#39;s patient is known." in render_leak_section(report)


def test_large_sets_are_sampled_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "MAX_LOOKUPS", 3)
    samples, thumbs, copies = copied_set()
    report = leak_report(samples, thumbs, copies, seed=0)
    official = report.row("official folders")
    assert (official.n_test, official.n_looked_up, official.copies) == (4, 3, 2)
    assert "random 3 of the test images" in render_leak_section(report)


def test_section_escapes_file_names() -> None:
    samples, thumbs, copies = copied_set()
    hostile = '<script>alert("x")</script>.jpg'
    samples.loc[8, "path"] = hostile
    section = render_leak_section(leak_report(samples, thumbs, copies, seed=0))
    assert "<script" not in section
    assert "&lt;script&gt;" in section
