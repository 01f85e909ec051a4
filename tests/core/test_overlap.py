"""What two data sets have in common, against splits whose every number is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brainmri_core.config import load_config
from brainmri_core.copies.likeness import turned
from brainmri_core.errors import ConfigError, IntegrityError, MissingUpstreamError
from brainmri_core.overlap import COUNTS, Overlap, find_overlap
from brainmri_core.project.catalogue import DatasetEntry
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import FetchPointer, MappingPointer
from brainmri_core.project.sample_table import write_samples
from brainmri_core.system.json_files import write_json
from brainmri_dagster.commands.overlap import overlap_lines

A = DatasetEntry(
    key="our/set", source="archive", classes=["glioma", "notumor"], aliases={"healthy": "notumor"}
)
B = DatasetEntry(key="their/set", source="archive", classes=["glioma", "healthy"])
NUMBERS = DatasetEntry(key="figshare/1512427", source="archive", patients="figshare-1512427")
KAGGLE = DatasetEntry(
    key="sartajbhuvaji/brain-tumor-classification-mri",
    source="archive",
    patients="sartajbhuvaji__brain-tumor-classification-mri",
)


def heads(n: int, seed: int = 0) -> np.ndarray:
    low = np.random.default_rng(seed).integers(0, 256, (n, 8, 8)).astype(np.float32)
    return np.kron(low, np.ones((1, 8, 8), np.float32)).astype(np.uint8)


def store(
    layout: Layout,
    entry: DatasetEntry,
    rows: list[tuple[str, str, str, str]],
    thumbs: np.ndarray,
    *,
    origin: list[str] | None = None,
    archive: str | None = None,
    sources: dict[str, int] | None = None,
) -> Path:
    """Store a split; a row is an image's class, side, pixel hash and patient. Its file hash is that of its pixels in upper case."""
    labels, sides, pixels, patients = zip(*rows, strict=True)
    n = len(rows)
    table = pd.DataFrame(
        {
            "path": [f"{label}/{number}.png" for number, label in enumerate(labels)],
            "label": labels,
            "origin": origin or ["none"] * n,
            "bytes": 1,
            "file_sha256": [text.upper() if archive else f"{entry.key}{k}" for k, text in enumerate(pixels)],
            "found_label": labels,
            "class_index": 0,
            "pixel_sha256": pixels,
            "colourfulness": 0.0,
            "phash": np.zeros(n, np.uint64),
            "phash_mirrored": np.zeros(n, np.uint64),
            "group": [f"g{number}" for number in range(n)],
            "split": sides,
            "fold": -1,
            "reason": "",
            "patient": patients,
        }
    )
    folder = layout.mapping_dir(entry.key, "r1")
    folder.mkdir(parents=True)
    write_samples(folder / "samples.parquet", table)
    for name in ("thumbs", "trimmed_thumbs"):
        np.save(folder / f"{name}.npy", thumbs)
    write_json(folder / "split.json", {"patients": {"sources": sources or {"csv": n}}})
    relative = layout.relative(folder)
    fetched = write_pointer(
        layout,
        FetchPointer(
            dataset=entry.key, run_id="r1", content_hash=archive or entry.key, dataset_root=relative, training_dir=None,
            testing_dir=None, version=None, fetched_at_utc="", samples=f"{relative}/samples.parquet", n_images=n, total_bytes=n,
            class_counts={}, source="archive", licence="", archive_sha256=archive,
        ),
    )  # fmt: skip
    write_pointer(
        layout,
        MappingPointer(
            dataset=entry.key, run_id="r1", content_hash="x", classes=entry.classes, num_classes=len(entry.classes),
            index_remap=None, path=f"{relative}/split.json", written_at_utc="", samples=f"{relative}/samples.parquet",
            dataset_root=relative, split_json=f"{relative}/split.json", fetch_pointer=fetched.pointer_path, counts={},
        ),
    )  # fmt: skip
    return folder


def search(layout: Layout, a: DatasetEntry = A, b: DatasetEntry = B) -> Overlap:
    return find_overlap(layout, a, b, load_config())


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A: image 0 trained on, 1 for validation, 2 for testing, 3 left out, 4 trained on and not in B."""
    ours = heads(5)
    layout = Layout(root=tmp_path)
    store(
        layout,
        A,
        [
            ("glioma", "train", "p0", "hashed:ann"),
            ("notumor", "train", "p1", "hashed:bob"),
            ("notumor", "test", "p2", "7"),
            ("glioma", "excluded", "p3", ""),
            ("glioma", "train", "p4", "hashed:ann"),
        ],
        ours,
        origin=["none", "validation", "none", "none", "none"],
    )
    theirs = np.concatenate([ours[:1], turned(ours[1:2], 5), ours[2:4], heads(3, 9), np.zeros((1, 64, 64))])
    store(
        layout,
        B,
        [
            ("glioma", "train", "p0", "hashed:ann"),  # the same pixels, called the same
            ("healthy", "train", "q1", ""),  # a quarter turn; healthy is A's notumor
            ("glioma", "test", "q2", "7"),  # another encoding, called otherwise; 7 is another person here
            ("glioma", "test", "q3", ""),
            ("glioma", "test", "q4", "hashed:bob"),  # no copy, but a patient of A
            ("healthy", "test", "q5", "hashed:eve"),
            ("healthy", "excluded", "q6", ""),
            ("healthy", "excluded", "", ""),  # unreadable
        ],
        theirs.astype(np.uint8),
    )
    return layout


def test_every_number_of_the_table(layout: Layout) -> None:
    found = search(layout)
    table = found.counts.set_index(["class", "side"])
    expected = {
        ("glioma", "training"): {"images": 1, "pixels": 1, "training": 1, "patient in A": 1},
        ("glioma", "test"): {
            "images": 3, "re-encoded": 2, "test": 1, "left out": 1, "other class": 1, "patient in A": 1,
        },
        ("healthy", "training"): {"images": 1, "turned": 1, "validation": 1},
        ("healthy", "test"): {"images": 1},
        ("healthy", "left out"): {"images": 1},
    }  # fmt: skip
    # which of B's training images serve for validation is drawn, and no matter here
    table = table.rename(index={"validation": "training"}).groupby(level=[0, 1]).sum()
    for row, numbers in expected.items():
        assert table.loc[row].to_dict() == dict.fromkeys(COUNTS, 0) | numbers, row
    assert len(table) == len(expected)
    assert (found.images_a, found.images_b, found.in_a, found.of_b, found.patients) == (5, 7, 4, 4, 2)
    assert not found.one_archive and found.notes == []


def test_a_pair_says_what_and_where_it_is(layout: Layout) -> None:
    pairs = search(layout).pairs.set_index("path_b")
    assert pairs["path_a"].to_dict() == {
        "glioma/0.png": "glioma/0.png",
        "healthy/1.png": "notumor/1.png",
        "glioma/2.png": "notumor/2.png",
        "glioma/3.png": "glioma/3.png",
    }
    assert pairs["same_class"].tolist() == [True, True, False, True]
    assert pairs.loc["healthy/1.png", ["kind", "orientation", "side_a"]].tolist() == [
        "turned", "turned right", "validation",
    ]  # fmt: skip


def test_the_lines_hold_the_totals(layout: Layout) -> None:
    lines = overlap_lines(search(layout))
    assert lines[:2] == ["A: our/set, 5 images, 4 of them in B", "B: their/set, 7 images, 4 of them in A"]
    (total,) = [line for line in lines if line.startswith("all")]
    assert total.split()[1:] == ["7", "0", "1", "2", "1", "1", "1", "1", "1", "1", "2"]
    assert (
        lines[-1]
        == "4 pairs of copies, 1 of them with another class; 2 known patients are on images of both."
    )
    assert len({len(line) for line in lines if line.startswith(("glioma", "healthy", "all", "B "))}) == 1


def test_an_image_with_several_copies_counts_once_by_the_closest(tmp_path: Path) -> None:
    """An image and its mirror image are in A on two sides; B has the image twice."""
    layout, one = Layout(root=tmp_path), heads(1)
    rows = [("glioma", "test", "p0", ""), ("glioma", "excluded", "m0", ""), ("notumor", "test", "p1", "")]
    store(layout, A, rows, np.concatenate([one, one[:, :, ::-1], heads(1, 3)]))
    store(layout, B, [("glioma", "test", "p0", "")] * 2, np.repeat(one, 2, axis=0))
    found = search(layout)
    (row,) = found.counts.to_dict("records")
    assert (row["images"], row["pixels"], row["turned"], row["test"], row["left out"]) == (2, 2, 0, 2, 2)
    assert len(found.pairs) == 4 and found.in_a == found.of_b == 2


@pytest.mark.parametrize(
    ("sources", "shared"), [({"catalogue": 2}, 1), ({"catalogue": 1, "csv": 1}, 0), ({"data": 2}, 0)]
)
def test_running_numbers_are_one_person_only_where_the_tables_of_the_package_give_them(
    tmp_path: Path, sources: dict[str, int], shared: int
) -> None:
    layout = Layout(root=tmp_path)
    for seed, entry in enumerate((NUMBERS, KAGGLE)):
        rows = [("glioma", "test", f"{seed}0", "p004"), ("pituitary", "test", f"{seed}1", f"p10{seed}")]
        store(layout, entry, rows, heads(2, seed), sources=sources)
    found = search(layout, NUMBERS, KAGGLE)
    assert found.patients == found.counts["patient in A"].sum() == shared


def test_two_sets_of_one_archive_are_named(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    for entry in (A, B):
        store(layout, entry, [("glioma", "test", f"p{n}", "") for n in range(3)], heads(3), archive="abc")
    found = search(layout)
    assert found.one_archive and found.counts["exact"].tolist() == [3] == [found.in_a]
    assert "Both were fetched from the same files: every image of B is in A." in overlap_lines(found)


def test_a_split_of_an_older_version_is_searched_and_named(layout: Layout) -> None:
    (layout.mapping_dir(B.key, "r1") / "trimmed_thumbs.npy").unlink()
    found = search(layout)
    assert found.in_a == 4
    assert found.notes == [
        "their/set: copies with other margins may be missed: its split is of a version that did not keep what finds "
        "them; run `brainmri split --dataset their/set` again."
    ]


def test_what_cannot_be_compared_is_one_sentence(layout: Layout) -> None:
    with pytest.raises(ConfigError, match="Both data sets are our/set; name two"):
        search(layout, A, A)
    other = A.model_copy(update={"key": "third/set"})
    with pytest.raises(
        MissingUpstreamError, match=r"third/set has no split .* `brainmri split --dataset third/set`"
    ):
        search(layout, A, other)
    (layout.mapping_dir(B.key, "r1") / "thumbs.npy").unlink()
    with pytest.raises(IntegrityError, match=r"thumbs\.npy are missing; run split again"):
        search(layout)
