"""The catalogue of data sets: their sources, classes and tables, and the folder names that mean each class."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from brainmri_core.config.base import StageConfig, read_yaml, validate_config
from brainmri_core.config.files import SHIPPED, user_configs
from brainmri_core.errors import ConfigError, DataError
from brainmri_core.project.foreign_names import compared
from brainmri_core.project.image_tables import check_shipped, is_file, read_table

CLASSES = ("glioma", "meningioma", "pituitary", "notumor")
_KEY = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*/[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*"
)
_NO_FOLDER = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]|^[ .]|[ .]$')
_LONGEST_CLASS = 100


class DatasetEntry(StageConfig):
    """One data set of the catalogue.

    Attributes
    ----------
    classes : list of str
        Canonical class names; their order is the class index.
    aliases : dict
        Folder name to canonical class name.
    patients : str or None
        The patient of each image: a table of the package (`brainmri_core/defaults/patients`), or a CSV file beside the
        catalogue.
    label_corrections : str or None
        Labels known to be wrong: a table of the package (`brainmri_core/defaults/patients`), or a CSV file beside the
        catalogue.
    modality : str
        Modality of the images; "any" also accepts other modalities than MR.
    archives : list of str
        Further names that its archive or folder may have.
    site : str
        Which of the two built-in synthetic data sets this is.
    labelled : bool
        False for a folder of images without labels. These can be fetched and predicted, but not trained on or evaluated.
    """

    key: str = ""
    source: Literal["kaggle", "archive", "phantom"]
    title: str = ""
    licence: str = "unknown"
    url: str | None = None
    note: str = ""
    classes: list[str] = Field(default_factory=lambda: list(CLASSES), min_length=2)
    aliases: dict[str, str] = Field(default_factory=dict)
    patients: str | None = None
    label_corrections: str | None = None
    modality: Literal["MR", "any"] = "MR"
    archives: list[str] = Field(default_factory=list)
    site: Literal["first", "second"] = "first"
    labelled: bool = True

    @model_validator(mode="after")
    def _unlabelled(self) -> DatasetEntry:
        if self.labelled:
            return self
        if self.source != "archive":
            raise ValueError(f"labelled: false goes with source: archive, not with {self.source}")
        given = [name for name in ("patients", "label_corrections", "aliases") if getattr(self, name)]
        if given:
            raise ValueError(f"a data set that is not labelled has no use for {given[0]}; remove it")
        return self

    @property
    def owner(self) -> str:
        """First part of the key."""
        return self.key.partition("/")[0]

    @property
    def slug(self) -> str:
        """Second part of the key."""
        return self.key.partition("/")[2]

    def require_labels(self, what: str) -> None:
        """Refuse an unlabelled data set for what needs labels.

        Raises
        ------
        DataError
            If the images have no labels.
        """
        if not self.labelled:
            raise DataError(
                f"The data set {self.key} is not labelled, and {what} needs labels; predict its images with batch_predictions, "
                "or sort them into class folders and remove `labelled: false` from datasets.yaml."
            )

    def canonical(self, label: str) -> str | None:
        """Return the canonical class of a folder name, or None if it names no class."""
        known = {compared(name): target for name, target in self.aliases.items()}
        known.update({compared(name): name for name in self.classes})
        return known.get(compared(label))


EVERY = DatasetEntry(key="brainmri/every-data-set", source="archive", title="All data sets together")
"""Stands for all data sets in results that cover all of them; it is in no catalogue."""


class _CatalogueFile(StageConfig):
    datasets: dict[str, DatasetEntry] = Field(min_length=1)


FILE_NAME = "datasets.yaml"


def catalogue_path() -> Path:
    """Return the path of the user's own catalogue, whose entries add to those of the package. It need not exist."""
    return user_configs() / FILE_NAME


def load_catalogue(path: Path | None = None) -> dict[str, DatasetEntry]:
    """Load the catalogue: the user's data sets, then the package's.

    Parameters
    ----------
    path : pathlib.Path or None
        A single file to read; None reads `catalogue_path` and the package's catalogue. Where both have a key, in upper or
        lower case, the user's entry replaces the package's.

    Returns
    -------
    dict
        Entries by key, in file order.

    Raises
    ------
    ConfigError
        If a key is malformed or appears twice, an alias or a corrected label names no class, class names cannot be names
        of folders side by side, or a table cannot be read; the message gives the line.
    """
    if path is not None:
        return _load(path)
    entries, own = _load(SHIPPED / FILE_NAME), catalogue_path()
    if own.is_file() and read_yaml(own)[0]:
        added = _load(own)
        taken = {key.casefold() for key in added}
        rest = {key: entry for key, entry in entries.items() if key.casefold() not in taken}
        # A command that names no data set takes the first: the user's, not the synthetic one.
        entries = added | rest
    return entries


def replaces_shipped(key: str) -> bool:
    """Say whether a data set's entry is the user's and replaces one of the package."""
    own = catalogue_path()
    if not own.is_file() or key not in (read_yaml(own)[0].get("datasets") or {}):
        return False
    return key.casefold() in {name.casefold() for name in read_yaml(SHIPPED / FILE_NAME)[0]["datasets"]}


def _load(source: Path) -> dict[str, DatasetEntry]:
    value, lines = read_yaml(source)
    entries = validate_config(_CatalogueFile, value, str(source), lines).datasets
    seen: dict[str, str] = {}
    for key, entry in entries.items():
        where = f"{source}:{lines.get(('datasets', key), 1)}"
        if not _KEY.fullmatch(key) or len(key) > 200:
            raise ConfigError(
                f"{where}: the data set key {key!r} is malformed; write owner/slug with letters, digits, '-', '_' and single dots."
            )
        if key.casefold() in seen:
            raise ConfigError(
                f"{where}: the data set key {key!r} repeats {seen[key.casefold()]!r}; keep one of them."
            )
        seen[key.casefold()] = key
        _check_names(entry, where)
        entries[key] = _with_tables(entry.model_copy(update={"key": key}), source.parent, where)
    return entries


def _with_tables(entry: DatasetEntry, folder: Path, where: str) -> DatasetEntry:
    """Find the entry's tables; refuse one that cannot be read, or corrects a label to an unknown class."""
    found = {
        field: str((folder / name).resolve()) if is_file(name) else name
        for field in ("patients", "label_corrections")
        if (name := getattr(entry, field)) is not None
    }
    try:
        if is_file(found.get("patients", "")):
            read_table(found["patients"], ("patient", "group"))
        elif "patients" in found:
            check_shipped(found["patients"])  # its content is tested where it is made
        if "label_corrections" in found:
            table = read_table(found["label_corrections"], ("label",))
            unknown = [row["label"] for row in table.values if entry.canonical(row["label"]) is None]
            if unknown:
                raise ConfigError(
                    f"{table.where} names the class {unknown[0]!r}, which is none of {', '.join(entry.classes)}."
                )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return entry.model_copy(update=found)


def _check_names(entry: DatasetEntry, where: str) -> None:
    """Refuse class names that cannot be folders, and names that compare equal but mean two classes."""
    meant: dict[str, str] = {}
    for name in entry.classes:
        if _NO_FOLDER.search(name) or not name or len(name.encode()) > _LONGEST_CLASS:
            raise ConfigError(
                f"{where}: the class {name!r} cannot be a folder on every system; write a short name without slashes, "
                'control characters and <>:"|?*, and without blanks or dots at its ends.'
            )
        if compared(name) in meant:
            raise ConfigError(
                f"{where}: the classes {meant[compared(name)]!r} and {name!r} are one name on some systems; rename one."
            )
        meant[compared(name)] = name
    for alias, target in entry.aliases.items():
        if target not in entry.classes:
            raise ConfigError(
                f"{where}: the alias {alias!r} points to {target!r}, which is none of {', '.join(entry.classes)}."
            )
        if meant.setdefault(compared(alias), target) != target:
            raise ConfigError(
                f"{where}: the alias {alias!r} points to {target!r}, but the same name already means "
                f"{meant[compared(alias)]!r}; keep one of the two."
            )


def find_entry(catalogue: dict[str, DatasetEntry], key: str) -> DatasetEntry:
    """Return a data set's entry.

    Raises
    ------
    ConfigError
        If the catalogue has no such key; the nearest one is suggested.
    """
    if key in catalogue:
        return catalogue[key]
    near = difflib.get_close_matches(key, catalogue, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(catalogue)}."
    raise ConfigError(
        f"The data set {key!r} is not in the catalogue; {hint} Add it to {catalogue_path()} to use it."
    )
