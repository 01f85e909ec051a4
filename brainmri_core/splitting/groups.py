"""Which images belong together: copies, images of one patient, and, where the patient is unknown, runs of neighbours."""

from __future__ import annotations

import numpy as np
import pandas as pd

from brainmri_core.arrays import I64, Objects
from brainmri_core.config.data import SplitConfig
from brainmri_core.copies.components import connected
from brainmri_core.project.sample_table import known_scans
from brainmri_core.splitting.assignment import group_names, joined
from brainmri_core.splitting.neighbour_runs import Neighbours
from brainmri_core.splitting.record import Found
from brainmri_core.system.checksums import sha256_json


def image_groups(config: SplitConfig, table: pd.DataFrame, found: Found) -> Objects:
    """Name each image's group by the rule of ``split.group_by``.

    Slices of one file or study stay together, except with ``exact`` or ``none``. For a predefined split the neighbours of
    ``auto`` are not used, since they are a guess.

    Parameters
    ----------
    config : SplitConfig
        ``group_by``, ``strategy`` and ``test_frac``.
    table : pandas.DataFrame
        N rows with ``path``, ``pixel_sha256``, ``label``, ``class_index`` and ``split``.
    found : Found
        Copies, neighbours and patients of the images. A note is added for each class whose neighbours are not used.

    Returns
    -------
    numpy.ndarray
        object ``(N,)`` of 16 hexadecimal digits.
    """
    digests, patients, scans = (
        table["pixel_sha256"].to_numpy(object),
        found.patients.names,
        known_scans(table),
    )
    copies = (found.pairs.first, found.pairs.second)
    if config.group_by == "none":
        names = [f"{digest}:{path}" for digest, path in zip(digests, table["path"], strict=True)]
        return np.array([sha256_json(name)[:16] for name in names], object)
    if config.group_by in ("exact", "near_duplicate"):
        near = config.group_by == "near_duplicate"
        same = joined(digests, scans, pairs=[copies]) if near else joined(digests)
        return group_names(table, same)
    if config.group_by == "subject":
        pairs = (found.neighbours.first, found.neighbours.second)
        return group_names(table, joined(scans, pairs=[copies, pairs]))
    if config.group_by == "patient" or config.strategy == "predefined":
        return group_names(table, joined(patients, scans, pairs=[copies]), patients)
    component, notes = patient_components(table, patients, copies, found.neighbours, config.test_frac)
    found.patients.notes.extend(notes)
    return group_names(table, component, patients)


def patient_components(
    table: pd.DataFrame,
    patients: Objects,
    copies: tuple[I64, I64],
    neighbours: Neighbours,
    test_frac: float,
) -> tuple[I64, list[str]]:
    """Join copies, the images of one patient and, where the patient is unknown, neighbours that look alike.

    Neighbours are a guess, which must not make a data set unusable. Where all images of a class look alike, as in a small
    or synthetic data set, joining neighbours would leave the class without images for one of the sides; there they are not
    joined.

    Parameters
    ----------
    table : pandas.DataFrame
        N rows with ``pixel_sha256``, ``label``, ``class_index`` and ``split``.
    patients : numpy.ndarray
        object ``(N,)`` of str, ``""`` where unknown.
    copies : tuple of numpy.ndarray
        int64 rows of the confirmed copies.
    neighbours : Neighbours
        Pairs that may show the same patient.
    test_frac : float
        Share of the test side.

    Returns
    -------
    component : numpy.ndarray
        int64 ``(N,)``.
    notes : list of str
        A sentence for each class whose neighbours were not joined.
    """
    certain = joined(patients, table["pixel_sha256"].to_numpy(object), known_scans(table), pairs=[copies])
    classes = table["class_index"].to_numpy(np.int64)
    hopeless = _unsplittable(certain, table, test_frac)
    left_out: set[int] = set()
    while True:
        component = _with_neighbours(certain, patients, neighbours.among(~np.isin(classes, list(left_out))))
        stuck = _unsplittable(component, table, test_frac) - hopeless
        if stuck <= left_out:
            break
        left_out |= stuck
    notes = [
        f"Neighbouring images of the class {label!r} look so much alike that one group would hold all of them or more than "
        "one side; so they were not taken for images of one patient."
        for label in sorted(set(table["label"][np.isin(classes, list(left_out))]))
    ]
    return component, notes


def _unsplittable(component: I64, table: pd.DataFrame, test_frac: float) -> set[int]:
    """Return the classes with a single group, or with images in a group larger than any side."""
    included = (table["split"] != "excluded").to_numpy()
    used = pd.DataFrame({"group": component, "class": table["class_index"].to_numpy(np.int64)})[included]
    single = used.groupby("class")["group"].nunique() < 2
    sizes = used["group"].value_counts()
    large = sizes.index[sizes > max(test_frac, 1 - test_frac) * len(used)]
    return set(single.index[single]) | set(used.loc[used["group"].isin(large), "class"])


def _with_neighbours(component: I64, patients: Objects, neighbours: Neighbours) -> I64:
    """Join neighbours where the patient of at least one is unknown, but never two known patients.

    Neighbours with unknown patients form a run. A run that is next to images of known patients is joined with the most
    similar one of these: it shows that patient, or an unknown one.
    """
    count = int(component.max(initial=-1)) + 1
    known = np.zeros(count, np.bool_)
    known[component[patients != ""]] = True
    one, other = component[neighbours.first], component[neighbours.second]
    runs = ~known[one] & ~known[other]
    run = connected(count, (one[runs], other[runs]))
    touching = np.flatnonzero(known[one] != known[other])
    strongest: dict[int, int] = {}
    for pair in touching[np.argsort(-neighbours.ncc[touching], kind="stable")]:
        inner, outer = (other[pair], one[pair]) if known[one[pair]] else (one[pair], other[pair])
        strongest.setdefault(int(run[inner]), int(run[outer]))
    ends = np.array(sorted(strongest.items()), np.int64).reshape(-1, 2).T
    joined = connected(count, (ends[0], ends[1]))
    return joined[run[component]]
