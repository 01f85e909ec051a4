"""The second site of the synthetic data: another scanner, other people, and some images and people of the first site.

The differences between the sites, the copies and the shared subjects are known, so that external evaluation and the
measures of shift can be tested against the truth.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image

from brainmri_core.arrays import U8
from brainmri_core.config.data import PhantomConfig
from brainmri_core.sources.anatomy import PLANES, Scanner, Slice, Subject, render
from brainmri_core.sources.phantom import (
    CopyElsewhere,
    CopyElsewhereKind,
    PhantomImage,
    PhantomTruth,
    all_drawn,
    as_jpeg,
    drawn_original,
    first_subjects,
    original_image,
    place_originals,
    save,
    save_mask,
    write_truth,
)

SECOND_SCANNER = Scanner(gamma=0.7, noise=1.8, brightness=0.85, voxel=1.7, head=(1.06, 0.9))
FOLDERS = {"glioma": "Glioma", "meningioma": "Meningioma", "pituitary": "Pituitary", "notumor": "Healthy"}
CLASS_MIX = {"glioma": 0.5, "meningioma": 1.0, "pituitary": 0.25, "notumor": 0.75}
"""Number of subjects of each class, relative to the first site."""
ANNOTATED = 0.6
"""Share of the images with marks drawn into them."""

_SIZES = ((288, 288), (288, 288), (320, 280))
_FIRST_NUMBER = 5_000  # of the site's own subjects; the first site has fewer
_TURNS = {
    "mirrored": Image.Transpose.FLIP_LEFT_RIGHT,
    "flipped": Image.Transpose.FLIP_TOP_BOTTOM,
    "turned": Image.Transpose.ROTATE_180,
    "mirrored and turned left": Image.Transpose.TRANSPOSE,
    "turned right": Image.Transpose.ROTATE_270,
    "turned left": Image.Transpose.ROTATE_90,
    "mirrored and turned right": Image.Transpose.TRANSVERSE,
}


def write_second_site(dest: Path, config: PhantomConfig) -> PhantomTruth:
    """Write the images of the second site into a new folder, one folder per class.

    Parameters
    ----------
    dest : pathlib.Path
        Folder that does not exist yet or is empty.
    config : PhantomConfig
        The config of the first site, some of whose images are copied.

    Returns
    -------
    PhantomTruth
        Also written to ``truth/truth.json``.

    Raises
    ------
    SourceError
        If `dest` is not empty.
    StorageError
        If the files cannot be written.
    """
    numbers = dict.fromkeys(FOLDERS, 0)
    originals = _place(config, numbers)

    def draw(item: tuple[PhantomImage, Subject, int, int]) -> None:
        image, subject, number, slices = item
        _write_image(dest, image, subject, render(subject, number, slices, SECOND_SCANNER), number)

    with all_drawn(dest, draw, originals):
        copies = _plant_copies(dest, config, numbers)
        images = [*(image for image, *_ in originals), *(image for image, _ in copies)]
    return write_truth(dest, config, images, [copy for _, copy in copies])


def _place(config: PhantomConfig, numbers: dict[str, int]) -> list[tuple[PhantomImage, Subject, int, int]]:
    """List the images to draw: the site's own subjects, then shared subjects, in slices that the first site lacks."""
    slices = config.slices_per_subject
    wanted = [(subject, range(slices), slices) for subject in _own_subjects(config)]
    known = first_subjects(config)
    for label in FOLDERS:
        shared = [subject for subject in known if subject.label == label][
            : config.second_site.shared_subjects
        ]
        wanted += [(subject, range(slices, 2 * slices), 2 * slices) for subject in shared]
    placed = []
    for subject, which, of in wanted:
        for number in which:
            path = _next_path(subject.label, numbers)
            placed.append((original_image(path, subject), subject, number, of))
    return placed


def _own_subjects(config: PhantomConfig) -> list[Subject]:
    subjects = []
    for class_number, (label, share) in enumerate(CLASS_MIX.items()):
        for number in range(max(2, round(share * config.subjects_per_class))):
            rng = np.random.default_rng((config.seed, 3, class_number, number))
            plane, size = PLANES[int(rng.integers(3))], _SIZES[int(rng.integers(len(_SIZES)))]
            seed = (config.seed, class_number * 10_000 + _FIRST_NUMBER + number)
            subjects.append(Subject(label, plane, seed, size))
    return subjects


def _next_path(label: str, numbers: dict[str, int]) -> str:
    numbers[label] += 1
    return f"{FOLDERS[label]}/{numbers[label]:04d}.jpg"


def _write_image(dest: Path, image: PhantomImage, subject: Subject, drawn: Slice, number: int) -> None:
    rng = np.random.default_rng((*subject.seed, 4, number))
    pixels = drawn.pixels.copy()
    if rng.random() < ANNOTATED:
        _annotate(pixels, right=bool(rng.random() < 0.5))
    save(dest / image.path, as_jpeg(Image.fromarray(pixels), int(rng.integers(88, 96))))
    if image.mask is not None:
        save_mask(dest / image.mask, drawn)


def _annotate(pixels: U8, *, right: bool) -> None:
    """Draw a side marker (a bar for an L or a square for an R) and a ruler, as on films."""
    height, width = pixels.shape
    middle, left = height // 2, width - 14 if right else 6
    pixels[middle - 8 : middle + 8, left : left + (8 if right else 2)] = 255
    if right:
        pixels[middle - 6 : middle + 6, left + 2 : left + 6] = 0
    pixels[height - 8, width // 4 : 3 * width // 4] = 255
    for tick in range(width // 4, 3 * width // 4 + 1, width // 20):
        pixels[height - 12 : height - 8, tick] = 255


def _plant_copies(
    dest: Path, config: PhantomConfig, numbers: dict[str, int]
) -> list[tuple[PhantomImage, CopyElsewhere]]:
    """Write copies of originals of the first site; each original is copied once."""
    rng = np.random.default_rng((config.seed, 5))
    wanted = config.second_site
    originals = place_originals(first_subjects(config), config, np.random.default_rng((config.seed, 0)))
    tasks: list[tuple[CopyElsewhereKind, bool]] = [
        (kind, False) for kind in get_args(CopyElsewhereKind) for _ in range(wanted.copies_per_kind)
    ]
    tasks += [("reencoded", True)] * wanted.label_conflicts
    copies: list[tuple[PhantomImage, CopyElsewhere]] = []
    for place, (kind, conflict) in zip(rng.permutation(len(originals)), tasks, strict=False):
        original, subject, number = originals[place]
        data = drawn_original(subject, number, config)[1]
        orientation = list(_TURNS)[len(copies) % len(_TURNS)] if kind == "turned" else "identity"
        if kind != "exact":
            with Image.open(io.BytesIO(data)) as picture:
                changed = picture.transpose(_TURNS[orientation]) if kind == "turned" else picture
                data = as_jpeg(changed, int(rng.integers(55, 75)))
        others = [name for name in FOLDERS if name != original.label]
        filed_as = others[int(rng.integers(len(others)))] if conflict else original.label
        path = _next_path(filed_as, numbers)
        save(dest / path, data)
        changes = {"path": path, "filed_as": filed_as, "conflict": conflict, "mask": None}
        copy = CopyElsewhere(path=path, original=original.path, kind=kind, orientation=orientation)
        copies.append((original.model_copy(update=changes), copy))
    return copies
