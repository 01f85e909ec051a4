from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainmri_core.class_folders import pack_tree
from brainmri_core.errors import DataError
from brainmri_core.images.fit import fit_image
from brainmri_core.images.pack import open_pack
from brainmri_core.project.catalogue import CLASSES
from brainmri_core.project.job import Job
from brainmri_core.project.pointer_store import follow, latest_pointer, write_pointer
from brainmri_core.project.pointers import FetchPointer, MappingPointer, PackPointer
from brainmri_core.project.sample_table import read_samples

pytestmark = pytest.mark.training


def make_tree(folder: Path, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    pixels = {}
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(3):
            pixels[f"{name}/{number}.png"] = rng.integers(0, 256, (40, 30), np.uint8)
            Image.fromarray(pixels[f"{name}/{number}.png"]).save(folder / name / f"{number}.png")
    return pixels


@pytest.mark.parametrize("side", ["train", "test"])
def test_tree_is_packed_on_one_side_with_its_labels(job: Job, tmp_path: Path, side: str) -> None:
    pixels = make_tree(tmp_path / "tree")
    pack = pack_tree(tmp_path / "tree", split=side, size=32, job=job)  # type: ignore[arg-type]
    table = read_samples(job.layout.absolute(pack.samples))
    assert set(table["split"]) == {side}
    assert pack.n_images == len(table) == len(pixels)
    stored = open_pack(job.layout, pack)
    for path, row, label in zip(table["path"], table["row"], table["label"], strict=True):
        assert path.startswith(f"{label}/")
        np.testing.assert_array_equal(stored[row], fit_image(pixels[path], 32, "letterbox"))


def test_tree_stands_in_for_this_run_only(job: Job, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    pack = write_pointer(
        job.layout, pack_tree(tmp_path / "tree", split="train", size=32, job=job), update_latest=False
    )
    for kind in (FetchPointer, MappingPointer, PackPointer):
        assert latest_pointer(job.layout, kind, job.dataset) is None
    mapping = follow(job.layout, MappingPointer, pack.mapping_pointer)
    assert mapping.run_id == pack.run_id == job.run_id
    assert mapping.fetch_pointer is not None
    assert follow(job.layout, FetchPointer, mapping.fetch_pointer).source == "folder"


@pytest.mark.full
def test_both_sides_of_one_run_and_a_second_look_at_the_same_tree(job: Job, tmp_path: Path) -> None:
    make_tree(tmp_path / "training")
    make_tree(tmp_path / "testing", seed=1)
    train = write_pointer(job.layout, pack_tree(tmp_path / "training", split="train", size=32, job=job))
    test = write_pointer(job.layout, pack_tree(tmp_path / "testing", split="test", size=32, job=job))
    assert train.pack != test.pack
    assert pack_tree(tmp_path / "training", split="train", size=32, job=job) == train
    assert pack_tree(tmp_path / "testing", split="test", size=32, job=job) == test
    Image.fromarray(np.full((40, 30), 9, np.uint8)).save(tmp_path / "training" / CLASSES[0] / "0.png")
    later = Job(layout=job.layout, run_id="r2", entry=job.entry, log=job.log)
    assert (
        pack_tree(tmp_path / "training", split="train", size=32, job=later).pack_sha256 != train.pack_sha256
    )


def test_folder_that_names_no_class_is_refused(job: Job, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", classes=("glioma", "cats"))
    with pytest.raises(DataError, match=r"'cats'.*aliases"):
        pack_tree(tmp_path / "tree", split="train", size=32, job=job)
