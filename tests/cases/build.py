"""Data sets as people have them: each kind as a small input with the right answer beside it."""

from __future__ import annotations

import io
import unicodedata
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")


@dataclass(frozen=True)
class Case:
    """What fetch makes of one input.

    Attributes
    ----------
    files : dict
        Path in the source to content.
    images : dict
        Origin to number of images; empty where the input is refused.
    left_out : dict
        Kind to number of files.
    refusal : tuple of str
        Parts of the sentence with which it is refused.
    """

    files: dict[str, bytes]
    images: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    refusal: tuple[str, ...] = ()
    subset: str | None = None
    classes: tuple[str, ...] = CLASSES
    zipped: bool = False


def picture(seed: int, kind: str = "JPEG") -> bytes:
    """An image file that has no copy under another seed."""
    cells = np.random.default_rng(seed).integers(0, 255, (8, 8), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(cells).resize((48, 48), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def tree(
    *folders: str, each: int = 3, seed: int = 0, ending: str = ".jpg", kind: str = "JPEG"
) -> dict[str, bytes]:
    """A few images in each of some folders."""
    names = [f"{folder}/i{number}{ending}" for folder in folders for number in range(each)]
    return {name: picture(1000 * seed + number, kind) for number, name in enumerate(names)}


def class_tree(above: str = "", below: str = "", **how: int) -> dict[str, bytes]:
    """A few images in a folder of each class."""
    return tree(*(f"{above}{name}{below}" for name in CLASSES), **how)  # type: ignore[arg-type]


def packed(files: dict[str, bytes]) -> bytes:
    """A zip archive of files, under exactly the names given."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def three_way() -> Case:
    """train/, val/ and test/ of class folders."""
    files = class_tree("train/", seed=1) | class_tree("val/", seed=2) | class_tree("test/", seed=3)
    return Case(files, {"training": 12, "validation": 12, "testing": 12})


def split_words() -> Case:
    """The same in other words."""
    files = (
        class_tree("Training Data/", seed=1)
        | class_tree("VALID_set/", seed=2)
        | class_tree("02-test-images/", seed=3)
    )
    return Case(files, {"training": 12, "validation": 12, "testing": 12})


def class_above_split() -> Case:
    """glioma/train/ instead of train/glioma/."""
    files = (
        class_tree(below="/Train", seed=1)
        | class_tree(below="/dev", seed=2)
        | class_tree(below="/Testing", seed=3)
    )
    return Case(files, {"training": 12, "validation": 12, "testing": 12})


def wrapped() -> Case:
    """Folders around the rest, one of them with the name of a class, and patients below the classes."""
    files = class_tree("Brain MRI (final) /glioma/data/", "/patient 7", seed=1)
    return Case(files | class_tree("Brain MRI (final) /glioma/data/", seed=2), {"none": 24})


def split_in_wrapper() -> Case:
    """A wrapper inside each split folder, and one named like a split around all."""
    files = class_tree("test/Training/Training Data/", seed=1) | class_tree("test/Testing/data/", seed=2)
    return Case(files, {"training": 12, "testing": 12})


def german_split_in_wrappers() -> Case:
    """Three wrappers with decomposed umlauts and trailing blanks around split folders in German."""
    above = unicodedata.normalize("NFD", "Universit\u00e4t Z\u00fcrich/MRT Daten /f\u00fcr die \u00dcbung/")
    files = class_tree(f"{above}Trainingsdaten/", seed=1) | class_tree(f"{above}Test-Bilder/", seed=2)
    return Case(
        files | class_tree(f"{above}Validierungsdatensatz/", seed=3),
        {"training": 12, "testing": 12, "validation": 12},
    )


def two_trees() -> Case:
    """Raw and augmented images beside each other."""
    files = class_tree("Raw Data/Raw/", seed=1) | class_tree("Augmented/", each=5, seed=2)
    return Case(files, refusal=("fetch.subset", "'Augmented' (20 images", "'Raw Data/Raw' (12 images"))


def two_trees_chosen() -> Case:
    """The same with a choice, spelt as another system does."""
    return Case(two_trees().files, {"none": 12}, {"other tree": 20}, subset="raw data\\RAW ")


def one_class_chosen() -> Case:
    """The same with a choice that is a class folder: the other classes lie elsewhere, they are not empty."""
    return Case(
        two_trees().files, refusal=("fewer than two classes (glioma)",), subset="Raw Data/Raw/glioma/"
    )


def repeated_tree() -> Case:
    """The same files a second time in another folder."""
    files = class_tree(seed=1)
    return Case(
        files | {f"brain_tumor_dataset/{name}": data for name, data in files.items()},
        {"none": 12},
        {"repeat": 12},
    )


def same_classes_other_files() -> Case:
    """The same classes a second time with other files."""
    files = class_tree(seed=1) | class_tree("brain_tumor_dataset/", seed=2)
    return Case(files, refusal=("'.' (12 images", "'brain_tumor_dataset' (12 images"))


def segmentation_beside() -> Case:
    """Pictures and masks for segmentation beside the class folders."""
    files = class_tree("classification/", seed=1) | tree("segmentation/images", "segmentation/masks", seed=2)
    return Case(
        files, refusal=("'classification' (12 images", "'segmentation' (6 images: images 3, masks 3)")
    )


def masks_of_each_class() -> Case:
    """Masks in class folders of their own."""
    return Case(
        class_tree(seed=1) | class_tree("masks/", seed=2), {"none": 12}, {"other tree": 12}, subset="."
    )


def litter() -> Case:
    """What systems, notebooks and authors leave behind."""
    extra = [
        "README.md", "LICENSE", "glioma/Thumbs.db", "glioma/.DS_Store", "notumor/.ipynb_checkpoints/i0-checkpoint.jpg",
        "__MACOSX/glioma/._i0.jpg", "meningioma/desktop.ini", "labels.csv", ".git/HEAD", "pituitary/notes.txt",
    ]  # fmt: skip
    return Case(class_tree() | dict.fromkeys(extra, b"left behind"), {"none": 12}, {"litter": 10})


def by_content() -> Case:
    """Images whose names do not say so, and files that only look like data."""
    files = class_tree() | {
        "glioma/scan": picture(90, "PNG"),
        "glioma/scan.dat": picture(91),
        "notumor/scan.7": picture(92),
    }
    return Case(
        files | {"notumor/volume.raw": b"\1\2" * 99, "notumor/a.heic": b"\0\0\0 ftypheic" + bytes(50)},
        {"none": 15},
        {"unread": 2},
    )


def every_format() -> Case:
    """One class in each format that can be read."""
    kinds = [
        (".jfif", "JPEG"),
        (".jpe", "JPEG"),
        (".png", "PNG"),
        (".tif", "TIFF"),
        (".bmp", "BMP"),
        (".webp", "WEBP"),
        (".gif", "GIF"),
    ]
    files = class_tree()
    for number, (ending, kind) in enumerate(kinds):
        files |= tree("glioma", "notumor", seed=number + 1, ending=ending, kind=kind)
    return Case(files, {"none": 12 + 6 * len(kinds)})


def loose_images() -> Case:
    """Images beside the class folders."""
    return Case(class_tree() | {"overview.png": picture(90, "PNG")}, {"none": 12}, {"outside": 1})


def backslashes() -> Case:
    """A zip whose program parts folders with backslashes."""
    files = {f"set\\{name}".replace("/", "\\"): data for name, data in class_tree().items()}
    return Case(files, {"none": 12}, zipped=True)


def inner_zips() -> Case:
    """A zip for each split inside the zip, and one more level that stays packed."""
    deeper = packed({"more/i.jpg": picture(95)})
    files = {
        "download/train.zip": packed(class_tree("train/", seed=1) | {"__MACOSX/x": b"x"}),
        "download/test.zip": packed(class_tree(seed=2) | {"deeper.zip": deeper}),
    }
    return Case(files, {"training": 12, "testing": 12}, {"litter": 1, "packed": 1}, zipped=True)


def backslashes_and_inner_zip() -> Case:
    """A zip with backslashes for one split, and for the other a zip of the same make inside it."""

    def windows(files: dict[str, bytes]) -> dict[str, bytes]:
        return {name.replace("/", "\\"): data for name, data in files.items()}

    inner = {"set/Testing.zip": packed(windows(class_tree("Testing/", seed=2)))}
    files = windows(class_tree("set/Training/", seed=1) | inner)
    return Case(files, {"training": 12, "testing": 12}, zipped=True)


def class_above_split_with_a_gap() -> Case:
    """glioma/train/ instead of train/glioma/, and one class has no validation folder."""
    files = class_above_split().files
    kept = {name: data for name, data in files.items() if not name.startswith("pituitary/dev")}
    return Case(kept, {"training": 12, "validation": 9, "testing": 12})


def decomposed_names() -> Case:
    """A class folder whose accents are decomposed, in other case and with a blank."""
    names = ("gliome", "m\u00e9ningiome")
    files = tree("Gliome", unicodedata.normalize("NFD", "M\u00e9ningiome "), seed=1)
    return Case(files, {"none": 6}, classes=names)


def class_without_image() -> Case:
    """A class folder with nothing that can be read."""
    files = {name: data for name, data in class_tree().items() if "glioma/" not in name}
    return Case(
        files | {"glioma/a.heic": b"\0\0\0 ftypheic"}, refusal=("class folder 'glioma'", "holds no image")
    )


CASES: dict[str, Callable[[], Case]] = {
    make.__name__: make
    for make in (
        three_way, split_words, class_above_split, wrapped, split_in_wrapper, german_split_in_wrappers,
        two_trees, two_trees_chosen, one_class_chosen, repeated_tree,
        same_classes_other_files, segmentation_beside, masks_of_each_class, litter, by_content, every_format, loose_images,
        backslashes, inner_zips, backslashes_and_inner_zip, class_above_split_with_a_gap, decomposed_names, class_without_image,
    )
}  # fmt: skip
