"""The patient of each image: from a CSV or the catalogue's table, the path, or the data itself, in this order."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

import numpy as np
import pandas as pd

from brainmri_core.arrays import Objects
from brainmri_core.config.data import SplitConfig
from brainmri_core.errors import ConfigError, DataError
from brainmri_core.project.image_tables import ImageFinder, ImageTable, is_file, read_table
from brainmri_core.project.job import Job
from brainmri_core.project.pseudonyms import is_hashed, project_key, pseudonym
from brainmri_core.project.sample_table import known_patients
from brainmri_core.wording import counted

_SOURCES = {"pattern": "split.patient_pattern", "data": "The data set itself"}


@dataclass(frozen=True)
class KnownPatients:
    """The known patients of a data set.

    Attributes
    ----------
    names : numpy.ndarray
        object ``(N,)`` of str: running numbers or keyed hashes, ``""`` where unknown.
    sources : dict
        Source to the number of images whose patient it named.
    notes : list of str
        Warnings about a source, one sentence each.
    """

    names: Objects
    sources: dict[str, int]
    notes: list[str]


def find_patients(config: SplitConfig, table: pd.DataFrame, job: Job) -> KnownPatients:
    """Find the patient of each image in the first source that names it.

    The sources are ``split.patients_csv`` or, without it, the table of the catalogue entry; then ``split.patient_pattern``;
    then the column ``patient`` that fetch read from the data. `_as_called_before` reconciles the names of two sources.

    Raises
    ------
    ConfigError
        If a table cannot be read.
    DataError
        If the user's CSV names no image of the data set or gives an image two patients, or the pattern matches no path.
    """
    names = np.full(len(table), "", object)
    sources: dict[str, int] = {}
    notes: list[str] = []
    for source, found in (
        ("csv" if config.patients_csv is not None else "catalogue", _from_table(config, table, job, notes)),
        ("pattern", _from_paths(config, table, job)),
        ("data", known_patients(table)),
    ):
        found = _as_called_before(names, found, source, notes)
        new = (names == "") & (found != "")
        names[new] = found[new]
        sources |= {source: int(new.sum())} if new.any() else {}
    return KnownPatients(names, sources, notes)


def _as_called_before(names: Objects, found: Objects, source: str, notes: list[str]) -> Objects:
    """Translate a source's names into those of the earlier sources, by the images that both name.

    A name whose images show one patient of the earlier sources becomes that patient's name. A name whose images show several
    of their patients is not translated, since the earlier sources take precedence: images that only this source names are one
    more patient, unless one of the several has this name. Equal names mean the same patient, unless the common images show
    that the two sources number differently; then the name is made distinct.
    """
    both = (names != "") & (found != "")
    meant: dict[str, set[str]] = {}
    for later, earlier in zip(found[both], names[both], strict=True):
        meant.setdefault(later, set()).add(earlier)
    taken = set(names) - {""}
    differ = any(earlier != later for later, known in meant.items() for earlier in known)
    called: dict[str, str] = {}
    apart = []
    for name in sorted(set(found) - {""}):
        known = meant.get(name, set())
        if len(known) == 1:
            called[name] = next(iter(known))
        elif name in taken - known and differ and not is_hashed(name):
            called[name] = f"{name} ({source})"
            apart.append(name)
    shared = sorted(name for name, known in meant.items() if len(known) > 1)
    if shared:
        several = sorted(meant[shared[0]])
        notes.append(
            f"{_SOURCES[source]} gives several patients of an earlier source one name ({len(shared)} such), the first "
            f"{several[0]} and {several[1]} the name {shared[0]}; the earlier source counts, and images that only the later "
            "one names keep its name."
        )
    if apart:
        notes.append(
            f"{_SOURCES[source]} numbers patients in another way than an earlier source, so that the same name means two "
            f"patients ({len(apart)} such, the first {apart[0]})."
        )
    return np.array([called.get(name, name) for name in found], object)


def _from_table(config: SplitConfig, table: pd.DataFrame, job: Job, notes: list[str]) -> Objects:
    """Read the user's CSV or, without one, the catalogue's table, which may list images that the data set lacks."""
    names = np.full(len(table), "", object)
    given: ImageTable
    own = config.patients_csv is not None
    if config.patients_csv is not None:
        given = read_table(job.layout.given(config.patients_csv), ("patient", "group"))
    elif job.entry.patients is not None:
        given = read_table(job.entry.patients, ("patient", "group"))
    else:
        return names
    shipped = not own and not is_file(job.entry.patients or "")
    patients = [row.get("patient") or row.get("group", "") for row in given.values]
    unknown, twice, empty = [], [], []
    finder = ImageFinder(table["path"].tolist())
    key = b"" if shipped else project_key(job.layout)
    for name, patient in zip(given.names, patients, strict=True):
        rows = finder.rows(given, name)
        stored = patient if shipped else pseudonym(patient, key)
        if not rows:
            unknown.append(name)
        elif not patient:
            empty.append(name)
        elif any(names[row] not in ("", stored) for row in rows):
            raise DataError(
                f"{given.where} gives {table['path'].iloc[rows[0]]!r} two patients; keep the row that is right."
            )
        elif all(names[row] == stored for row in rows):
            twice.append(name)
        names[rows] = stored if patient else names[rows]
    if len(unknown) == len(given.names):
        example = f"{unknown[0]!r}" if unknown else "no image at all"
        text = (
            f"{given.where} names no image of {job.dataset}: it has {example}, the data set {table['path'].iloc[0]!r}; "
            "write paths below the data set's root"
        )
        if own:
            raise DataError(f"{text}.")
        notes.append(f"{text}, or the patients stay unknown.")
        return names
    for odd, text in (
        ([] if not own else unknown, "that the data set does not hold"),
        (twice, "that an earlier row names, too"),
        (empty, "without a patient"),
    ):
        if odd:
            notes.append(
                f"{given.where} has {counted(len(odd), 'image')} {text}, the first {odd[0]!r}; such rows were left out."
            )
    return names


def check_pattern(pattern: str) -> re.Pattern[str]:
    """Compile ``split.patient_pattern``.

    Raises
    ------
    ConfigError
        If it is not a regular expression, or has no group named patient.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"split.patient_pattern {pattern!r} is not a regular expression ({error}); correct it."
        ) from None
    if "patient" not in compiled.groupindex:
        raise ConfigError(
            f"split.patient_pattern {pattern!r} has no group named patient; mark the part of the path that names the "
            "patient, as in (?P<patient>P[0-9]+)_."
        )
    return compiled


def _from_paths(config: SplitConfig, table: pd.DataFrame, job: Job) -> Objects:
    names = np.full(len(table), "", object)
    if config.patient_pattern is None:
        return names
    pattern = check_pattern(config.patient_pattern)
    for row, path in enumerate(table["path"]):
        found = pattern.search(unicodedata.normalize("NFC", path))
        names[row] = (found["patient"] or "").strip() if found else ""
    if not (names != "").any():
        raise DataError(
            f"split.patient_pattern {config.patient_pattern!r} matches no path of {job.dataset}, such as "
            f"{table['path'].iloc[0]!r}; correct it or leave it empty."
        )
    key = project_key(job.layout)
    stored = {name: pseudonym(name, key) for name in set(names) - {""}}
    return np.array([stored.get(name, "") for name in names], object)
