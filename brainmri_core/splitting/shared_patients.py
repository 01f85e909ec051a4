"""Patients who are in two data sets, as far as their names can tell."""

from __future__ import annotations

from typing import Any

import pandas as pd

from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.image_tables import is_file
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointers import MappingPointer
from brainmri_core.project.sample_table import known_patients
from brainmri_core.system.json_files import read_json


def shared_patients(
    one: MappingPointer, images: pd.DataFrame, other: MappingPointer, others: pd.DataFrame, layout: Layout
) -> set[str]:
    """Return the names of the patients who have images in two splits.

    A keyed hash means the same person in the whole project. A running number means the same person within one data set, and
    across the data sets whose patients all come from the package's tables, which use common numbers. In all other cases,
    patient 1 of two data sets are two people.

    Parameters
    ----------
    one, other : MappingPointer
        The splits.
    images, others : pandas.DataFrame
        Images of each, with ``patient`` where patients are known.
    layout : Layout
        The project.
    """
    names = (set(known_patients(images)) & set(known_patients(others))) - {""}
    if one.dataset != other.dataset and not all(_shipped_numbers(split, layout) for split in (one, other)):
        return {name for name in names if name.startswith("hashed:")}
    return names


def _shipped_numbers(split: MappingPointer, layout: Layout) -> bool:
    """Say whether all patients of a split come from a table of the package."""
    path = layout.absolute(split.split_json)
    record: Any = read_json(path) if path.is_file() else {}  # a class-folder tree has none
    sources = (record.get("patients") or {}).get("sources") if isinstance(record, dict) else None
    entry = load_catalogue().get(split.dataset)
    shipped = entry is not None and entry.patients is not None and not is_file(entry.patients)
    return shipped and isinstance(sources, dict) and set(sources) == {"catalogue"}
