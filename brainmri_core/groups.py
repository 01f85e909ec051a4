"""Which images belong together: copies, images of one patient, and, where the patient is unknown, runs of neighbours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from brainmri_core.config.data import SplitConfig
from brainmri_core.splitrecord import Found
from brainmri_core.storage import sha256_json
from brainmri_core.subjects import I64, Neighbours, connected


def image_groups(config: SplitConfig, table: pd.DataFrame, found: Found) -> npt.NDArray[np.object_]:
    """Name each image's group.

    A group is named after its patient where that is a running number, else after its smallest member's pixels, so that
    the name mostly survives added images.

    Parameters
    ----------
    config : SplitConfig
        What a group is. A predefined split is not judged by the proxy of ``auto``, which is a guess.
    table : pandas.DataFrame
        N rows with ``path`` and ``pixel_sha256``.

    Returns
    -------
    numpy.ndarray
        object ``(N,)`` of 16 hexadecimal digits.
    """
    n = len(table)
    digests, patients = table["pixel_sha256"].to_numpy(object), found.patients.names
    copies, neighbours = (found.pairs.first, found.pairs.second), found.neighbours
    if config.group_by == "none":
        component = np.arange(n)
    elif config.group_by == "exact":
        component = np.unique(digests.astype(str), return_inverse=True)[1]
        component = np.where(digests == "", n + np.arange(n), component)
    elif config.group_by == "near_duplicate":
        component = found.components
    elif config.group_by == "subject":
        component = connected(n, copies, (neighbours.first, neighbours.second))
    else:
        component = connected(n, copies, _of_one_patient(patients))
        if config.group_by == "auto" and config.strategy != "predefined":
            component = _as_far_as_classes_allow(component, table, found, config)
    own = np.array(
        [digest or f"unreadable:{path}" for digest, path in zip(digests, table["path"], strict=True)], object
    )
    if config.group_by == "none":
        own = own + ":" + table["path"].to_numpy(object)
    if config.group_by in ("auto", "patient"):
        # the blank sorts before the digits of any other image; a keyed hash is another one in each project
        running = [bool(name) and not name.startswith("hashed:") for name in patients]
        own = np.where(running, " patient " + patients, own)
    smallest = pd.Series(own).groupby(component).transform("min")
    return np.array([sha256_json(name)[:16] for name in smallest], object)


def _as_far_as_classes_allow(component: I64, table: pd.DataFrame, found: Found, config: SplitConfig) -> I64:
    """Join the neighbours, but not those of a class that would then have no image for one of the sides.

    The proxy is a guess, and a guess must not make a data set unusable: where all images of a class look alike, as in a
    small or a synthetic set, it says nothing about patients.
    """
    classes = table["class_index"].to_numpy(np.int64)
    hopeless = _unsplittable(component, table, config)
    left_out: set[int] = set()
    while True:
        pairs = found.neighbours.among(~np.isin(classes, list(left_out)))
        joined = _with_neighbours(component, found.patients.names, pairs)
        stuck = _unsplittable(joined, table, config) - hopeless
        if stuck <= left_out:
            break
        left_out |= stuck
    for label in sorted(set(table["label"][np.isin(classes, list(left_out))])):
        found.patients.notes.append(
            f"Neighbouring images of the class {label!r} look so much alike that one group would hold all of them or more "
            "than a side; there they were not taken for images of one patient."
        )
    return joined


def _unsplittable(component: I64, table: pd.DataFrame, config: SplitConfig) -> set[int]:
    """Return the classes with a single group, or with images in a group larger than any side."""
    included = (table["split"] != "excluded").to_numpy()
    used = pd.DataFrame({"group": component, "class": table["class_index"].to_numpy(np.int64)})[included]
    single = used.groupby("class")["group"].nunique() < 2
    sizes = used["group"].value_counts()
    large = sizes.index[sizes > max(config.test_frac, 1 - config.test_frac) * len(used)]
    return set(single.index[single]) | set(used.loc[used["group"].isin(large), "class"])


def _of_one_patient(patients: npt.NDArray[np.object_]) -> tuple[I64, I64]:
    """Pair each image of a known patient with the patient's first."""
    rows = np.flatnonzero(patients != "")
    _, first, number = np.unique(patients[rows].astype(str), return_index=True, return_inverse=True)
    return rows[first[number]], rows


def _with_neighbours(component: I64, patients: npt.NDArray[np.object_], neighbours: Neighbours) -> I64:
    """Join neighbours that look alike where the patient of at least one is unknown, and no two known patients.

    Neighbours of unknown patient make up a run. A run that touches images of known patients is joined with the one it
    resembles most: its images are of one of them, or of nobody known.
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
