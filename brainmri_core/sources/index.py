"""The images of an unpacked data set with class and official split, and the reason why each other file is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

import pandas as pd

from brainmri_core.config.formats import ENDINGS, HEAD, foreign_content, image_format, readable_kinds
from brainmri_core.errors import DataError, IntegrityError
from brainmri_core.project.catalogue import DatasetEntry
from brainmri_core.project.foreign_names import compared, shown_name
from brainmri_core.project.image_tables import ImageTable
from brainmri_core.project.sample_table import FETCH_COLUMNS
from brainmri_core.sources.labels import labelled_by_data, labelled_by_table
from brainmri_core.sources.scans import DIRECTORY_REASON, Scans
from brainmri_core.sources.tree import Placed, Tree, read_trees, split_of
from brainmri_core.system.checksums import sha256_file
from brainmri_core.system.threads import cores, threads

LEFT_OUT = "left_out.parquet"
"""File beside fetch's sample table that lists every file of the source that is not an image of the table."""

LEFT_OUT_COLUMNS = {"path": "str", "kind": "str", "reason": "str", "remedy": "str"}
"""Columns of that file: a row per file left out, with its path in the source."""

QUIET_KINDS = frozenset({"litter", "opened", "repeat", "truth"})
"""Kinds of files left out that need no mention."""

_NOTES = {
    ".txt", ".md", ".rst", ".csv", ".tsv", ".xml", ".json", ".jsonl", ".yaml", ".yml", ".html", ".htm", ".pdf", ".doc",
    ".docx", ".xls", ".xlsx", ".log", ".py", ".ipynb", ".m", ".ini", ".db", ".url", ".lnk", ".bib", ".cff", ".toml",
}  # fmt: skip
_NOTE_STEMS = {"readme", "license", "licence", "copying", "changelog", "citation", "attribution"}
_CHUNK = 64
T = TypeVar("T")


@dataclass(frozen=True)
class Index:
    """The content of an unpacked data set.

    Attributes
    ----------
    root : str
        Folder below which all images lie, relative to the unpacked files.
    images : pandas.DataFrame
        The columns of `sample_table.FETCH_COLUMNS`.
    left_out : pandas.DataFrame
        The columns of `LEFT_OUT_COLUMNS`. Every file of the source is either here or in `images`.
    formats : dict
        Format of the content to number of images.
    notes : list of str
        Warnings about the labels.
    """

    root: str
    images: pd.DataFrame
    left_out: pd.DataFrame
    formats: dict[str, int]
    notes: list[str] = field(default_factory=list)


class _LeftOut:
    """The files left out, each once."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str, str, str]] = {}

    def add(self, paths: Iterable[str], kind: str, reason: str, remedy: str) -> None:
        for path in paths:
            self.rows[path] = (kind, reason, remedy)

    def table(self) -> pd.DataFrame:
        rows = [(path, *row) for path, row in sorted(self.rows.items())]
        return pd.DataFrame(rows, columns=list(LEFT_OUT_COLUMNS)).astype(LEFT_OUT_COLUMNS)


def index_files(
    files: Path,
    entry: DatasetEntry,
    subset: str | None,
    litter: Sequence[str],
    scans: Scans | None = None,
    labels: ImageTable | None = None,
) -> Index:
    """Find the images of an unpacked data set, and the reason why each other file is left out.

    Parameters
    ----------
    files : pathlib.Path
        The unpacked files.
    entry : DatasetEntry
        Catalogue entry; its classes and aliases tell which folders are classes.
    subset : str or None
        Folder to use where there are several trees of class folders.
    litter : sequence of str
        Files of the source that were not unpacked.
    scans : Scans or None
        Scans that were split into slices, which lie beside them.
    labels : ImageTable or None
        Labels by path. Without them, folders are classes, or the scans name their class. Images of an unlabelled data set
        have the label ``""``, whatever folder they lie in.

    Raises
    ------
    DataError
        If there are no class folders, several trees of them and no `subset`, a class without an image, or fewer than two
        classes.
    IntegrityError
        If a file is neither in the table nor left out, which would be a bug.
    """
    names = sorted(path.relative_to(files).as_posix() for path in files.rglob("*") if path.is_file())
    left_out = _LeftOut()
    left_out.add(litter, "litter", *_LITTER)
    truth = [name.removesuffix("truth.json") for name in names if f"/{name}".endswith("/truth/truth.json")]
    planted = [name for name in names if name.startswith(tuple(truth))]
    left_out.add(planted, "truth", "ground truth of the synthetic data set", "none is needed")
    hidden = [name for name in names if any(part.startswith(".") for part in name.split("/"))]
    left_out.add(hidden, "litter", *_LITTER)
    scans = scans or Scans()
    left_out.add(scans.opened, "opened", "its slices are used, each as an image", "none is needed")
    left_out.add(scans.directories, "litter", DIRECTORY_REASON, "none is needed")
    for name, reason in scans.refused.items():
        left_out.add([name], "unread", reason, "replace it by a whole one, or remove it")
    candidates = [name for name in names if name not in left_out.rows]
    heads = dict(zip(candidates, _each(_head, [files / name for name in candidates]), strict=True))
    formats = {name: image_format(head) for name, head in heads.items()}
    images = [name for name, found in formats.items() if found or name.lower().endswith(ENDINGS)]
    _leave_out_others(left_out, {name: head for name, head in heads.items() if name not in set(images)})
    hashes: dict[str, str] = {}
    notes: list[str] = []
    if not entry.labelled:
        return _unlabelled(files, images, formats, [*names, *litter], left_out, entry)
    tree = _labelled_tree(images, entry, scans, labels, left_out, notes)
    if tree is None:
        tree = _choose(files, images, entry, subset, left_out, hashes)
    elsewhere = {name for name, (kind, *_) in left_out.rows.items() if kind in ("other tree", "repeat")}
    _check_classes(tree, [name for name in (*candidates, *scans.refused) if name not in elsewhere], entry)
    table = _table(files, tree, hashes)
    _check_account([*names, *litter], [image.path for image in tree.images], left_out)
    counts = Counter(formats[image.path] or "none" for image in tree.images)
    return Index(tree.root, table, left_out.table(), dict(sorted(counts.items())), notes)


_LITTER = ("no image, and nothing that one needs", "none is needed")


def _unlabelled(
    files: Path,
    images: list[str],
    formats: dict[str, str | None],
    source: list[str],
    left_out: _LeftOut,
    entry: DatasetEntry,
) -> Index:
    """Index all images of an unlabelled data set."""
    if not images:
        raise DataError(
            f"The data set {entry.key} holds no image ({', '.join(ENDINGS)}); add some, or correct its folder."
        )
    tree = Tree(".", "", tuple(Placed(path, "", "none") for path in images))
    table = _table(files, tree, {})
    _check_account(source, images, left_out)
    counts = Counter(formats[path] or "none" for path in images)
    return Index("", table, left_out.table(), dict(sorted(counts.items())))


def _labelled_tree(
    images: list[str],
    entry: DatasetEntry,
    scans: Scans,
    labels: ImageTable | None,
    left_out: _LeftOut,
    notes: list[str],
) -> Tree | None:
    """Return the images that a CSV or the scans themselves label, or None where folders are the classes."""
    if labels is None:
        tree = labelled_by_data(scans.labels(), entry)
        reason, remedy = (
            "its file names no class and it lies in no class folder",
            "move it into a class folder",
        )
    else:
        found = labelled_by_table(labels, images, entry.key)
        tree = found.tree
        reason, remedy = "fetch.labels_csv gives it no label", "add it to the CSV, or remove it"
        if found.missing:
            notes.append(
                f"{labels.where} names {len(found.missing)} images that the data set does not hold, the first "
                f"{shown_name(found.missing[0])!r}"
            )
    if tree is not None:
        used = {image.path for image in tree.images}
        left_out.add([path for path in images if path not in used], "outside", reason, remedy)
    return tree


def _leave_out_others(left_out: _LeftOut, heads: dict[str, bytes]) -> None:
    """Leave out the files that are not images, each with its reason."""
    for name, head in heads.items():
        path = PurePosixPath(name)
        what = foreign_content(head)
        if path.suffix.lower() in _NOTES or path.stem.lower() in _NOTE_STEMS:
            left_out.add([name], "litter", *_LITTER)
        elif what is not None and what.endswith("archive"):
            left_out.add([name], "packed", f"{what} inside the data set", "unpack it and fetch the folder")
        elif what is not None and what.endswith("picture"):
            left_out.add([name], "unread", f"{what}, which is not read", "convert it to PNG")
        else:
            reason = f"{what or 'its content'} is none of {readable_kinds()}"
            left_out.add([name], "unread", reason, "convert it to PNG if it is an image, or remove it")


def _choose(
    files: Path,
    images: list[str],
    entry: DatasetEntry,
    subset: str | None,
    left_out: _LeftOut,
    hashes: dict[str, str],
) -> Tree:
    """Return the tree of class folders to use, and leave out all other images."""
    trees = read_trees(images, lambda name: entry.canonical(name) is not None)
    repeats: dict[str, str] = {}
    if len(trees) > 1:
        repeats = _repeats(files, trees, entry, hashes)
    candidates = [tree for tree in trees if tree.name not in repeats]
    if not trees:
        raise DataError(
            f"The data set {entry.key} holds no class folders with images; expected <class>/*.jpg or "
            "Training/<class>/*.jpg and Testing/<class>/*.jpg."
        )
    tree = _subset(trees, images, entry, subset) if subset is not None else candidates[0]
    if tree is None or (subset is None and len(candidates) > 1):
        listed = "; ".join(
            f"{other}{f', identical to {shown_name(repeats[other.name])!r}' if other.name in repeats else ''}"
            for other in trees
        )
        problem = (
            "holds several trees of class folders"
            if subset is None
            else f"holds no one tree of class folders in fetch.subset {shown_name(subset)!r}"
        )
        raise DataError(
            f"The data set {entry.key} {problem}; choose one with fetch.subset: {listed}. A folder that is a class needs "
            "its name among the aliases in datasets.yaml."
        )
    used = {image.path for image in tree.images}
    for other in trees:
        rest = [image.path for image in other.images if image.path not in used | left_out.rows.keys()]
        if other.name in repeats and repeats[other.name] == tree.name:
            left_out.add(rest, "repeat", f"identical repeat of {_called(tree)}", "none is needed")
        else:
            reason = f"part of {_called(other)}, and {_called(tree)} is used"
            left_out.add(rest, "other tree", reason, "name its folder in fetch.subset to use it instead")
    loose = [path for path in images if path not in used | left_out.rows.keys()]
    left_out.add(loose, "outside", "lies in no class folder", "move it into a class folder, or remove it")
    return tree


def _called(tree: Tree) -> str:
    return "the top folder" if tree.name == "." else shown_name(tree.name)


def _subset(trees: list[Tree], images: list[str], entry: DatasetEntry, subset: str) -> Tree | None:
    """Return the tree that ``fetch.subset`` names, or the only one below that folder; None if there is no such tree."""
    wanted = compared(subset)
    named = [tree for tree in trees if compared(tree.name) == wanted]
    if len(named) == 1:
        return named[0]
    inside = [path for path in images if not wanted or compared(path).startswith(f"{wanted}/")]
    found = read_trees(inside, lambda name: entry.canonical(name) is not None)
    nearest = [tree for tree in found if compared(tree.root) == wanted]
    return nearest[0] if nearest else (found[0] if len(found) == 1 else None)


def _repeats(files: Path, trees: list[Tree], entry: DatasetEntry, hashes: dict[str, str]) -> dict[str, str]:
    """Map each tree that repeats an earlier one, with the same files in the same classes, to the earlier one's name."""
    first: dict[tuple[tuple[str, str, str], ...], str] = {}
    repeats = {}
    counts = Counter(len(tree.images) for tree in trees)
    for tree in trees:
        if counts[len(tree.images)] == 1:
            continue
        _hash(files, [image.path for image in tree.images], hashes)
        content = sorted(
            (entry.canonical(image.label) or image.label, image.origin, hashes[image.path])
            for image in tree.images
        )
        name = first.setdefault(tuple(content), tree.name)
        if name != tree.name:
            repeats[tree.name] = name
    return repeats


def _check_classes(tree: Tree, names: Sequence[str], entry: DatasetEntry) -> None:
    """Refuse a class folder that holds files but no image, and fewer than two classes."""
    labels = {image.label for image in tree.images}
    classes = {entry.canonical(label) or label for label in labels}
    depth = len(tree.root.split("/")) if tree.root else 0
    for name in names:
        parts = name.split("/")[:-1]
        if tree.root and parts[:depth] != tree.root.split("/"):
            continue
        for at, part in enumerate(parts[depth:], depth):
            if split_of(part) is None:
                if (meant := entry.canonical(part)) is not None and meant not in classes:
                    folder = "/".join(parts[depth : at + 1])
                    raise DataError(
                        f"The class folder {folder!r} of {entry.key} holds no image ({', '.join(ENDINGS)}); remove the "
                        "folder or add its images."
                    )
                break
    if len(classes) < 2:
        raise DataError(
            f"The data set {entry.key} has fewer than two classes ({', '.join(sorted(classes)) or 'none'}); "
            "a classifier needs one folder per class."
        )


def _table(files: Path, tree: Tree, hashes: dict[str, str]) -> pd.DataFrame:
    paths = [image.path for image in tree.images]
    _hash(files, paths, hashes)
    below = f"{tree.root}/" if tree.root else ""
    rows = [
        (
            image.path.removeprefix(below),
            image.label,
            image.origin,
            (files / image.path).stat().st_size,
            hashes[image.path],
        )
        for image in tree.images
    ]
    table = pd.DataFrame(rows, columns=list(FETCH_COLUMNS)).astype(FETCH_COLUMNS)
    return table.sort_values("path", ignore_index=True)


def _check_account(source: list[str], indexed: list[str], left_out: _LeftOut) -> None:
    """Check that every file of the source is either in the table or left out, and not both."""
    used = set(indexed)
    wrong = set(source) ^ (used | left_out.rows.keys()) | (used & left_out.rows.keys())
    if wrong or len(used) != len(indexed) or len(set(source)) != len(source):
        example = shown_name(min(wrong, default=indexed[0] if indexed else ""))
        raise IntegrityError(
            f"The account of the files does not balance at {example!r}: {len(source)} in the source, {len(indexed)} "
            f"indexed, {len(left_out.rows)} left out; please report this bug."
        )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)


def _hash(files: Path, names: Sequence[str], hashes: dict[str, str]) -> None:
    """Add the SHA-256 of those files that `hashes` does not have yet."""
    missing = [name for name in names if name not in hashes]
    hashes.update(zip(missing, _each(sha256_file, [files / name for name in missing]), strict=True))


def _each(work: Callable[[Path], T], paths: Sequence[Path]) -> list[T]:
    """Apply a function to many files on all cores."""
    with threads(cores()) as pool:
        chunks = pool.map(
            lambda start: [work(path) for path in paths[start : start + _CHUNK]], range(0, len(paths), _CHUNK)
        )
        return [item for chunk in chunks for item in chunk]
