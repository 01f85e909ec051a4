"""Propose a catalogue entry for a new data set, guessed from the names of its class folders."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

from brainmri_core.config.base import read_yaml
from brainmri_core.config.data import FetchConfig
from brainmri_core.config.formats import ENDINGS, SCAN_ENDINGS
from brainmri_core.errors import ConfigError, SourceError
from brainmri_core.project.catalogue import CLASSES, catalogue_path, load_catalogue
from brainmri_core.project.foreign_names import compared, shown_name
from brainmri_core.sources.archive import list_archive
from brainmri_core.sources.folder import list_folder
from brainmri_core.sources.tree import Tree, read_trees
from brainmri_core.system.storage import make_dirs, write_bytes

WORDS: dict[str, re.Pattern[str]] = {
    "notumor": re.compile(r"\bno\b|^no[\W_]*tum|without|healthy|normal|negative|control"),
    "glioma": re.compile(r"gliom|gliobl|\bgbm\b|astrocyt"),
    "meningioma": re.compile(r"mening"),
    "pituitary": re.compile(r"pituit|hypophys"),
}
"""Class to the words in a folder's name that say it holds this class; the first match counts."""


@dataclass(frozen=True)
class Guess:
    """A proposed entry.

    Attributes
    ----------
    key : str
        ``owner/slug``.
    folders : dict
        Class folder, as found, to class.
    images : dict
        Class folder to number of images.
    origins : dict
        ``training``, ``testing``, ``validation`` or ``none`` to number of images.
    text : str
        The entry as YAML, as it stands below ``datasets:``.
    """

    key: str
    folders: dict[str, str]
    images: dict[str, int]
    origins: dict[str, int]
    text: str


def guess_entry(key: str, source: Path) -> Guess:
    """Propose an entry from the file names in a zip or folder.

    A folder whose name says glioma, meningioma, pituitary tumour or no tumour is an alias of that class. If the name of
    one folder says none of these, every folder is a class of its own.

    Parameters
    ----------
    key : str
        ``owner/slug`` of the new entry.
    source : pathlib.Path
        The zip or folder.

    Returns
    -------
    Guess
        The proposal; nothing is written.

    Raises
    ------
    SourceError
        If there is no such zip or folder, or no image in it lies in a class folder.
    ConfigError
        If there is more than one tree of class folders, so that a person has to choose.
    """
    names = _names(source)
    images = [name for name in names if name.lower().endswith((*ENDINGS, *SCAN_ENDINGS))]
    trees = read_trees(images, lambda name: class_named(name) is not None)
    if not trees:
        raise SourceError(
            f"No image of {shown_name(source)} lies in a class folder ({len(images)} images among {len(names)} files); "
            "sort the images into a folder per class, or write the entry by hand and name fetch.labels_csv."
        )
    if len(trees) > 1:
        raise ConfigError(
            f"{shown_name(source)} holds {len(trees)} trees of class folders: {'; '.join(map(str, trees))}; write the entry by hand, "
            "and choose one of them with fetch.subset."
        )
    return _guess(key, trees[0])


def class_named(folder: str) -> str | None:
    """Return which of the four known classes a folder's name says; None if none of them."""
    plain = re.sub(r"[\W_]+", " ", compared(folder)).strip()
    return next((name for name, words in WORDS.items() if words.search(plain)), None)


def add_entry(guess: Guess) -> Path:
    """Append a proposed entry to the user's catalogue.

    Parameters
    ----------
    guess : Guess
        The entry.

    Returns
    -------
    pathlib.Path
        The catalogue file.

    Raises
    ------
    ConfigError
        If the catalogue has the key already, or is malformed; it is left as it was.
    """
    path = catalogue_path()
    before = path.read_text("utf-8") if path.is_file() else ""
    known = load_catalogue()
    if guess.key.casefold() in {key.casefold() for key in known}:
        raise ConfigError(
            f"The data set {guess.key!r} is in the catalogue already; choose another key, or edit {path}."
        )
    begun = path.is_file() and "datasets" in read_yaml(path)[0]
    text = f"{before.rstrip()}\n" if before.strip() else ""
    text += f"{'' if begun else 'datasets:'}\n{guess.text}"
    make_dirs(path.parent)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".yaml", encoding="utf-8") as trial:
        trial.write(text)
        trial.flush()
        try:
            load_catalogue(Path(trial.name))
        except ConfigError as error:
            raise ConfigError(str(error).replace(trial.name, str(path))) from None
    write_bytes(path, text.encode())
    return path


def _names(source: Path) -> list[str]:
    """List the files under the limits of `fetch`, so that a source it would refuse is refused here too."""
    if not source.exists():
        raise SourceError(f"{shown_name(source)} does not exist; name a zip or a folder.")
    limits = FetchConfig().limits
    return list_folder(source, limits) if source.is_dir() else list_archive(source, limits)


def _guess(key: str, tree: Tree) -> Guess:
    images = Counter(image.label for image in tree.images)
    meant = {label: class_named(label) for label in images}
    known = all(meant.values())
    folders = {label: (meant[label] or label) if known else label.strip() for label in sorted(images)}
    entry: dict[str, object] = {"source": "archive", "title": key.partition("/")[2], "licence": "unknown"}
    classes = (
        [name for name in CLASSES if name in folders.values()]
        if known
        else list(dict.fromkeys(folders.values()))
    )
    if classes != list(CLASSES):
        entry["classes"] = classes
    aliases = {
        label: name
        for label, name in folders.items()
        if compared(label) not in {compared(item) for item in classes}
    }
    if aliases:
        entry["aliases"] = aliases
    body = yaml.safe_dump({key: entry}, sort_keys=False, allow_unicode=True)
    origins = Counter(image.origin for image in tree.images)
    return Guess(
        key,
        folders,
        dict(images),
        {str(name): count for name, count in origins.items()},
        "".join(f"  {line}\n" for line in body.splitlines()),
    )
