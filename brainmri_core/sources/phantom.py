"""The built-in synthetic data set: slices of synthetic subjects in the folders of the Kaggle set, with planted copies.

The ground truth is written to ``truth/truth.json`` beside the images, and the tumour masks to ``truth/masks/``.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from brainmri_core.config.data import PhantomConfig
from brainmri_core.errors import IntegrityError, SourceError
from brainmri_core.sources.anatomy import PLANES, Slice, Subject, render
from brainmri_core.system.json_files import read_json, write_json
from brainmri_core.system.storage import storage_error
from brainmri_core.system.threads import cores, threads

T = TypeVar("T")

FOLDERS = {
    "glioma": ("glioma_tumor", "gg"),
    "meningioma": ("meningioma_tumor", "m"),
    "pituitary": ("pituitary_tumor", "p"),
    "notumor": ("no_tumor", "image"),
}
CopyKind = Literal["exact", "mirrored", "reencoded", "rescaled", "brightness", "padded"]
CopyElsewhereKind = Literal["exact", "turned", "reencoded"]
KINDS: tuple[CopyKind, ...] = ("exact", "mirrored", "reencoded", "rescaled", "brightness", "padded")
_SIZES = ((256, 256), (256, 256), (256, 256), (236, 236), (225, 225), (210, 240), (260, 220), (320, 320))


class PhantomImage(BaseModel):
    """The ground truth of one image.

    Attributes
    ----------
    copy_of, copy_kind : str or None
        The original, and how the copy was made from it.
    conflict : bool
        Whether the copy is filed under another class than its original.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    subject: str
    plane: str
    label: str
    filed_as: str
    copy_of: str | None = None
    copy_kind: CopyKind | None = None
    conflict: bool = False
    mask: str | None = None


class CopyElsewhere(BaseModel):
    """A planted copy of an image of the first site.

    Attributes
    ----------
    path, original : str
        The copy, and the image of the first site.
    orientation : str
        Orientation in which the original looks like the copy; a name of `likeness.ORIENTATIONS`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    original: str
    kind: CopyElsewhereKind
    orientation: str


class PhantomTruth(BaseModel):
    """Ground truth of one generated data set.

    Attributes
    ----------
    images : list of PhantomImage
        All images. Subjects with the same name are the same person, also across the two sites.
    elsewhere : list of CopyElsewhere
        Copies of images of the first site; empty for the first site itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    images: list[PhantomImage]
    elsewhere: list[CopyElsewhere] = []


def write_phantom(dest: Path, config: PhantomConfig) -> PhantomTruth:
    """Write the synthetic data set into a new folder.

    Parameters
    ----------
    dest : pathlib.Path
        Folder that does not exist yet or is empty.
    config : PhantomConfig
        Seed and counts; the same config gives the same bytes with the same Pillow and NumPy.

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
    rng = np.random.default_rng((config.seed, 0))
    subjects = first_subjects(config)
    originals = place_originals(subjects, config, rng)

    def draw(item: tuple[PhantomImage, Subject, int]) -> None:
        image, subject, number = item
        _write_original(dest, image, subject, number, config)

    with all_drawn(dest, draw, originals):
        images = [image for image, _, _ in originals]
        images += _plant_copies(dest, images, config, rng)
    return write_truth(dest, config, images)


@contextmanager
def all_drawn(dest: Path, draw: Callable[[T], object], originals: Sequence[T]) -> Iterator[None]:
    """Draw images into a new folder on all cores, then run the block; errors as in `write_phantom`."""
    if dest.exists() and any(dest.iterdir()):
        raise SourceError(f"The folder {dest} is not empty; the synthetic data set needs a new one.")
    try:
        with threads(cores()) as pool:
            list(pool.map(draw, originals))
        yield
    except OSError as error:
        raise storage_error(error, dest) from error


def write_truth(
    dest: Path, config: PhantomConfig, images: list[PhantomImage], elsewhere: Sequence[CopyElsewhere] = ()
) -> PhantomTruth:
    """Write the ground truth beside the images, and return it."""
    truth = PhantomTruth(
        seed=config.seed,
        images=sorted(images, key=lambda image: image.path),
        elsewhere=sorted(elsewhere, key=lambda copy: copy.path),
    )
    # The file of the first site stays the same as before the second site existed.
    left_out = {"elsewhere"} if not elsewhere else None
    write_json(dest / "truth" / "truth.json", truth.model_dump(mode="json", exclude=left_out))
    return truth


def read_truth(dataset_root: Path) -> PhantomTruth:
    """Read the ground truth of a generated data set.

    Raises
    ------
    IntegrityError
        If it is damaged.
    """
    path = dataset_root / "truth" / "truth.json"
    try:
        return PhantomTruth.model_validate(read_json(path))
    except ValidationError:
        raise IntegrityError(
            f"The ground truth {path} was changed; delete the folder and fetch again."
        ) from None


def first_subjects(config: PhantomConfig) -> list[Subject]:
    """Return the subjects of the first site."""
    subjects = []
    for class_number, label in enumerate(FOLDERS):
        for number in range(config.subjects_per_class):
            rng = np.random.default_rng((config.seed, 1, class_number, number))
            seed = (config.seed, class_number * 10_000 + number)
            plane, size = PLANES[int(rng.integers(3))], _SIZES[int(rng.integers(len(_SIZES)))]
            subjects.append(Subject(label, plane, seed, size))
    return subjects


def place_originals(
    subjects: list[Subject], config: PhantomConfig, rng: np.random.Generator
) -> list[tuple[PhantomImage, Subject, int]]:
    """Number the slices of each class consecutively, subject by subject, and file a share of them under Testing."""
    placed = []
    numbers = dict.fromkeys(FOLDERS, 0)
    for subject in subjects:
        folder, prefix = FOLDERS[subject.label]
        for number in range(config.slices_per_subject):
            numbers[subject.label] += 1
            side = "Testing" if rng.random() < config.test_frac else "Training"
            path = f"{side}/{folder}/{prefix} ({numbers[subject.label]}).jpg"
            placed.append((original_image(path, subject), subject, number))
    return placed


def original_image(path: str, subject: Subject) -> PhantomImage:
    """Describe an image of a subject that is neither a copy nor filed under another class."""
    return PhantomImage(
        path=path,
        subject=subject_name(subject),
        plane=subject.plane,
        label=subject.label,
        filed_as=subject.label,
        mask=mask_path(path) if subject.label != "notumor" else None,
    )


def subject_name(subject: Subject) -> str:
    """Return a subject's name in the ground truth."""
    return f"{subject.label}-{subject.seed[1] % 10_000:04d}"


def mask_path(path: str) -> str:
    """Return the path of an image's tumour mask."""
    return f"truth/masks/{PurePosixPath(path).with_suffix('.png').as_posix()}"


def _write_original(
    dest: Path, image: PhantomImage, subject: Subject, number: int, config: PhantomConfig
) -> None:
    drawn, data = drawn_original(subject, number, config)
    save(dest / image.path, data)
    if image.mask is not None:
        save_mask(dest / image.mask, drawn)


def drawn_original(subject: Subject, number: int, config: PhantomConfig) -> tuple[Slice, bytes]:
    """Return a slice of the first site and the content of its JPEG file."""
    drawn = render(subject, number, config.slices_per_subject)
    rng = np.random.default_rng((*subject.seed, 2, number))
    picture = Image.fromarray(drawn.pixels)
    if rng.random() > 0.05:
        picture = picture.convert("RGB")
    return drawn, as_jpeg(picture, int(rng.integers(80, 96)))


def save_mask(path: Path, drawn: Slice) -> None:
    """Write the tumour of a slice as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(drawn.tumour.astype(np.uint8) * 255).save(buffer, "PNG")
    save(path, buffer.getvalue())


def save(path: Path, data: bytes) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def as_jpeg(picture: Image.Image, quality: int) -> bytes:
    """Return a picture as a JPEG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _brighten(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    shift = int(rng.integers(8, 20))
    return picture.point(lambda value: min(255, int(value * 0.92) + shift))


def _pad(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    margin = [int(value) for value in rng.integers(10, 40, 4)]
    canvas = Image.new(
        picture.mode, (picture.width + margin[0] + margin[1], picture.height + margin[2] + margin[3])
    )
    canvas.paste(picture, (margin[0], margin[2]))
    return canvas


def _rescale(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    factor = float(rng.uniform(0.6, 1.6))
    size = (round(picture.width * factor), round(picture.height * factor))
    return picture.resize(size, Image.Resampling.BICUBIC)


_CHANGES: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "mirrored": lambda picture, _: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "reencoded": lambda picture, _: picture,
    "rescaled": _rescale,
    "brightness": _brighten,
    "padded": _pad,
}


def _plant_copies(
    dest: Path, originals: list[PhantomImage], config: PhantomConfig, rng: np.random.Generator
) -> list[PhantomImage]:
    """Write copies of originals, every second one to the other split folder; each original is copied once."""
    kinds = [kind for kind in KINDS for _ in range(config.copies_per_kind)]
    wanted = [(kind, False) for kind in kinds] + [("reencoded", True)] * config.label_conflicts
    chosen = rng.permutation(len(originals))[: len(wanted)]
    counts = {name: sum(image.filed_as == name for image in originals) for name in FOLDERS}
    copies = []
    for number, (index, (kind, conflict)) in enumerate(zip(chosen, wanted, strict=False)):
        original = originals[index]
        side = original.path.split("/")[0]
        if number % 2:
            side = "Training" if side == "Testing" else "Testing"
        others = [name for name in FOLDERS if name != original.label]
        filed_as = others[int(rng.integers(len(others)))] if conflict else original.label
        folder, prefix = FOLDERS[filed_as]
        counts[filed_as] += 1
        path = f"{side}/{folder}/{prefix} ({counts[filed_as]}).jpg"
        data = (dest / original.path).read_bytes()
        if kind != "exact":
            with Image.open(io.BytesIO(data)) as picture:
                data = as_jpeg(_CHANGES[kind](picture, rng), int(rng.integers(55, 75)))
        save(dest / path, data)
        changes = {
            "path": path,
            "filed_as": filed_as,
            "copy_of": original.path,
            "copy_kind": kind,
            "conflict": conflict,
        }
        copies.append(original.model_copy(update={**changes, "mask": None}))
    return copies
