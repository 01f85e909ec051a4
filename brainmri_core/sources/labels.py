"""Labels of images outside class folders: from the user's CSV, or from the scans themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brainmri_core.config.data import FetchConfig
from brainmri_core.errors import DataError
from brainmri_core.project.catalogue import DatasetEntry
from brainmri_core.project.foreign_names import shown_name
from brainmri_core.project.image_tables import ImageFinder, ImageTable, read_table
from brainmri_core.project.job import Job
from brainmri_core.sources.tree import Placed, Tree, split_of

NAME = "fetch.labels_csv"


@dataclass(frozen=True)
class Labelled:
    """Images with labels from a table.

    Attributes
    ----------
    tree : Tree
        The images with a label; its root is the folder that the CSV's paths start from.
    missing : list of str
        Rows of the CSV that name no image.
    """

    tree: Tree
    missing: list[str]


def read_labels(config: FetchConfig, files: Path, job: Job) -> ImageTable | None:
    """Read ``fetch.labels_csv``: a path in the project or, if there is no such file, in the unpacked data set.

    Raises
    ------
    ConfigError
        If it cannot be read or lacks a column.
    """
    if config.labels_csv is None:
        return None
    path = job.layout.given(config.labels_csv)
    inside = (files / config.labels_csv).resolve()
    if not path.is_file() and inside.is_relative_to(files.resolve()) and inside.is_file():
        path = inside
    return read_table(path, ("label",))


def labelled_by_table(table: ImageTable, images: Sequence[str], dataset: str) -> Labelled:
    """Find the images that a table labels. Its paths may leave out outer folders that hold nothing but the next folder.

    Raises
    ------
    DataError
        If the table names no image, or gives an image two labels.
    """
    root = ""
    while True:
        below = [path.removeprefix(root) for path in images]
        finder = ImageFinder(below)
        labels: dict[str, str] = {}
        missing = []
        for name, row in zip(table.names, table.values, strict=True):
            rows = finder.rows(table, name)
            missing += [] if rows else [name]
            for number in rows:
                if row["label"] and labels.setdefault(images[number], row["label"]) != row["label"]:
                    raise DataError(
                        f"{table.where} gives {shown_name(below[number])!r} two labels; keep the row that is right."
                    )
        if labels:
            return Labelled(_tree(labels, root.removesuffix("/")), missing)
        tops = {path.partition("/")[0] for path in below}
        if len(tops) != 1 or "/" not in below[0]:
            example = shown_name(missing[0]) if missing else "no image"
            raise DataError(
                f"{table.where} names no image of {dataset}: it has {example!r}, the data set {shown_name(images[0])!r}; "
                "write paths below the data set's root."
                if images
                else f"The data set {dataset} holds no image for the labels of {table.where}."
            )
        root += f"{tops.pop()}/"


def labelled_by_data(labels: Mapping[str, str], entry: DatasetEntry) -> Tree | None:
    """Return the images whose files name their class; None if there are none or they lie in class folders."""
    if not labels or any(entry.canonical(part) for part in _folders(labels)):
        return None
    return _tree(labels, "")


def _folders(paths: Iterable[str]) -> set[str]:
    return {part for path in paths for part in path.split("/")[:-1]}


def _tree(labels: Mapping[str, str], root: str) -> Tree:
    placed = []
    for path, label in labels.items():
        found = [origin for part in path.split("/")[:-1] if (origin := split_of(part)) is not None]
        placed.append(Placed(path, label, found[0] if found else "none"))
    return Tree(root or ".", root, tuple(placed))
