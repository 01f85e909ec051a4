"""No test image has a twin in training in any of the eight orientations: real sets, and real images turned and changed.

The check is its own: full decodes by Pillow, a few lines of numpy, no code of the project. Skipped where the sets are absent.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from brainmri_core.arrays import F32
from brainmri_core.config.data import FetchConfig, SplitConfig
from brainmri_core.fetch import fetch
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import StageLog
from brainmri_core.project.pointers import MappingPointer
from brainmri_core.project.sample_table import read_samples
from brainmri_core.split import split

pytestmark = pytest.mark.full
KAGGLE = "sartajbhuvaji/brain-tumor-classification-mri"
Change = Callable[[Image.Image], Image.Image]


def split_of(archive: Path, key: str, root: Path) -> tuple[Job, MappingPointer]:
    job = Job(Layout(root=root), "r1", load_catalogue()[key], StageLog("test", "r1", key, []))
    return job, split(SplitConfig(seed=42), fetch(FetchConfig(archive=str(archive)), job), job)


def vectors(paths: list[Path]) -> F32:
    found = np.zeros((len(paths), 64, 64), np.float32)
    for row, path in enumerate(paths):
        with Image.open(path) as image:
            found[row] = image.convert("L").resize((64, 64), Image.Resampling.BILINEAR)
    found -= found.mean(axis=(1, 2), keepdims=True)
    return found / np.maximum(np.sqrt((found**2).sum(axis=(1, 2), keepdims=True)), 1e-3)


def twins(job: Job, mapping: MappingPointer, least: float = 0.99) -> list[tuple[str, float]]:
    """Test images that correlate with a training image in one of the eight orientations."""
    table = read_samples(job.layout.absolute(mapping.samples))
    root = job.layout.absolute(mapping.dataset_root)
    test, train = (
        vectors([root / path for path in table["path"][table["split"] == side]]) for side in ("test", "train")
    )
    best = np.zeros(len(test))
    for quarter in range(4):
        for mirrored in (False, True):
            turned = np.rot90(test, quarter, axes=(1, 2))
            turned = turned[:, :, ::-1] if mirrored else turned
            scores = turned.reshape(len(test), -1) @ train.reshape(len(train), -1).T
            best = np.maximum(best, scores.max(axis=1, initial=0))
    names = table["path"][table["split"] == "test"].to_numpy(object)
    return [(names[row], float(best[row])) for row in np.flatnonzero(best > least)]


@pytest.fixture(scope="module")
def archives(real_archive: Path) -> Path:
    return real_archive.parent


def test_no_test_image_of_the_kaggle_set_has_a_twin(real_archive: Path, tmp_path: Path) -> None:
    assert twins(*split_of(real_archive, KAGGLE, tmp_path)) == []


def test_no_test_image_of_the_figshare_set_has_a_twin(archives: Path, tmp_path: Path) -> None:
    archive = archives / "figshare-1512427-jpg.zip"
    if not archive.is_file():
        pytest.skip(f"{archive.name} is not beside the Kaggle set")
    assert twins(*split_of(archive, "figshare/1512427", tmp_path)) == []


def padded(image: Image.Image) -> Image.Image:
    return ImageOps.expand(image, (31, 9, 17, 23))


def darker(image: Image.Image) -> Image.Image:
    return image.point([round(255 * (level / 255) ** 1.3) for level in range(256)])


CHANGES: dict[str, Change] = {
    "re-encoded": lambda image: image,
    "resized": lambda image: image.resize((round(0.61 * image.width), round(0.61 * image.height))),
    "squashed": lambda image: image.resize((177, 301)),
    "padded": padded,
    "gamma": darker,
    "cut": lambda image: ImageOps.crop(image, max(1, round(0.01 * min(image.size)))),
}


@pytest.fixture(scope="module")
def planted(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, MappingPointer]:
    """Every 40th training image, as it came and in all orientations under each change, split anew."""
    folder = tmp_path_factory.mktemp("planted") / "set"
    with zipfile.ZipFile(archives / "brain-tumor-classification-mri.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("Training/"))[::40]
        for number, name in enumerate(names):
            label = name.split("/")[1]
            (folder / label).mkdir(parents=True, exist_ok=True)
            with archive.open(name) as file, Image.open(file) as opened:
                image = opened.convert("L")
            image.save(folder / label / f"{number}.png")
            for kind, change in enumerate(CHANGES.values()):
                turn = (number + kind) % 8
                copy = change(image)
                copy = copy.transpose(Image.Transpose(turn - 1)) if turn else copy
                copy.save(folder / label / f"{number}-{kind}.jpg", quality=(60, 75, 90)[number % 3])
    archive_path = folder.parent / "set.zip"
    with zipfile.ZipFile(archive_path, "w") as archive:
        for path in sorted(folder.rglob("*.*")):
            archive.write(path, path.relative_to(folder).as_posix())
    return split_of(archive_path, KAGGLE, folder.parent / "project")


def test_turned_copies_of_every_kind_stay_on_one_side(planted: tuple[Job, MappingPointer]) -> None:
    assert twins(*planted) == []


@pytest.mark.parametrize(
    ("kind", "least"),
    [("re-encoded", 1), ("resized", 1), ("squashed", 1), ("padded", 0.9), ("gamma", 0.95), ("cut", 0.85)],
)
def test_planted_copies_are_in_the_group_of_their_original(
    planted: tuple[Job, MappingPointer], kind: str, least: float
) -> None:
    """Where the rule ends: a margin around a head that touches the edge, and a cut through it, may hide a copy."""
    job, mapping = planted
    table = read_samples(job.layout.absolute(mapping.samples))
    group = dict(zip(table["path"].map(lambda path: Path(path).stem), table["group"], strict=True))
    number = list(CHANGES).index(kind)
    originals = [name for name in group if "-" not in name]
    same = [group[name] == group[f"{name}-{number}"] for name in originals]
    assert np.mean(same) >= least


def test_the_search_is_recorded_in_all_eight_orientations(planted: tuple[Job, MappingPointer]) -> None:
    job, mapping = planted
    found = json.loads(job.layout.absolute(mapping.split_json).read_text())["copies"]["orientations"]
    assert len(found) == 8
    assert min(found.values()) > 0
