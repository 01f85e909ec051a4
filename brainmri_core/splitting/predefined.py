"""A split from the user's CSV of path, split and, where known, group (such as a patient id)."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pandas as pd

from brainmri_core.arrays import Objects
from brainmri_core.config.data import SplitConfig
from brainmri_core.copies.components import connected
from brainmri_core.errors import ConfigError, DataError
from brainmri_core.project.foreign_names import stored_names
from brainmri_core.project.image_tables import csv_rows
from brainmri_core.project.job import Job
from brainmri_core.system.checksums import sha256_json

SIDES = ("train", "test", "excluded")
_GROUP = re.compile(r"[0-9a-f]{16}(?:-official-copy)?")


def read_predefined(config: SplitConfig, table: pd.DataFrame, patients: Objects, job: Job) -> None:
    """Set split and group of a sample table from the CSV of ``split.predefined_csv``.

    The CSV needs the columns ``path`` and ``split`` (train, test or excluded). Paths are compared by
    `foreign_names.compared`. Where it has a column ``group``, its groups are joined with those found, so that neither is on
    two sides; an empty group joins nothing.

    Parameters
    ----------
    config : SplitConfig
        Names the CSV.
    table : pandas.DataFrame
        Sample table with ``path``, ``split``, ``reason`` and ``group``; it is changed in place.
    patients : numpy.ndarray
        object ``(N,)`` of str: known patients, ``""`` where unknown.
    job : Job
        The run.

    Raises
    ------
    ConfigError
        If no CSV is named or it cannot be read.
    DataError
        If it names unknown images, leaves some out, uses another word for a side, or puts a group or a known patient on
        two sides.
    """
    if config.predefined_csv is None:
        raise ConfigError(
            "split.strategy is predefined but split.predefined_csv is empty; name the CSV file."
        )
    path = job.layout.given(config.predefined_csv)
    given = _read(path)
    known = set(table["path"])
    meant = stored_names(given["path"], table["path"])
    given["path"] = [
        name if name is not None else text for name, text in zip(meant, given["path"], strict=True)
    ]
    for wrong, text in (
        (
            sorted(set(given["path"]) - known),
            "names {0!r}, which the data set does not hold; correct the path",
        ),
        (sorted(known - set(given["path"])), "leaves out {0!r}; give every image a split (excluded is one)"),
        (given.loc[given["path"].duplicated(), "path"].tolist(), "names {0!r} twice; keep one row"),
        (
            sorted(set(given["split"]) - set(SIDES)),
            "uses the split {0!r}; write one of " + ", ".join(SIDES),
        ),
    ):
        if wrong:
            more = f" ({len(wrong)} such)" if len(wrong) > 1 else ""
            raise DataError(f"The split file {path} {text.format(wrong[0])}{more}.")
    rows = given.set_index("path").loc[table["path"]]
    open_rows = (table["split"] != "excluded").to_numpy()
    table.loc[open_rows, "split"] = rows["split"].to_numpy()[open_rows]
    left_out = open_rows & (rows["split"].to_numpy() == "excluded")
    table.loc[left_out, "reason"] = "excluded by the predefined split"
    if "group" in rows:
        table["group"] = _joined(table["group"], rows["group"].str.strip().to_numpy(object))
    _check_sides(path, table, patients)


def _check_sides(path: Path, table: pd.DataFrame, patients: Objects) -> None:
    """Refuse a group on two sides and, whatever the groups are, a known patient on two sides."""
    used = (table["split"] != "excluded").to_numpy()
    sides = table["split"].to_numpy(object)
    for names, among in (
        (patients, used & (patients != "")),
        (table["group"].to_numpy(object), used),
    ):
        given = pd.Series(sides[among]).groupby(names[among]).nunique()
        if not (given > 1).any():
            continue
        name = given.index[given > 1][0]
        pair = [
            table["path"].iloc[np.flatnonzero(among & (names == name) & (sides == side))[0]]
            for side in SIDES[:2]
        ]
        what, why = (
            (f"the patient {name}", "are of one patient")
            if names is patients
            else ("one group", "are copies or of one group")
        )
        raise DataError(
            f"The split file {path} puts {what} on two sides: {pair[0]!r} in train and {pair[1]!r} in test {why}; "
            "move one of them or exclude it."
        )


def _read(path: Path) -> pd.DataFrame:
    try:
        header, *body = csv_rows(path.read_text("utf-8-sig")) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(
            f"The split file {path} cannot be read ({error}); give a CSV with path,split[,group]."
        ) from None
    names = [name.strip() for name in header]
    missing = [name for name in ("path", "split") if name not in names]
    if missing:
        raise ConfigError(
            f"The split file {path} lacks the column {missing[0]!r}; its header must be path,split[,group]."
        )
    body = [[*row, *[""] * len(names)] for row in body if any(cell.strip() for cell in row)]
    given = pd.DataFrame({name: [row[names.index(name)] for row in body] for name in names}, dtype="str")
    given["split"] = given["split"].str.strip().str.lower()
    return given


def _joined(found: pd.Series, given: Objects) -> pd.Series:
    """Join two groupings: rows that share a found or a given group are together; an empty name joins nothing.

    A group keeps its name from the file if that has the form of this project's names, so that an exported split can be
    replayed exactly.
    """
    named = np.where(given == "", "found " + found.to_numpy(object), "given " + given)
    ids = pd.factorize(np.concatenate([found.to_numpy(object), named]))[0].astype(np.int64)
    component = connected(int(ids.max(initial=-1)) + 1, (ids[: len(found)], ids[len(found) :]))[
        ids[: len(found)]
    ]
    ours = [name if _GROUP.fullmatch(name) else sha256_json(f"given {name}")[:16] for name in given]
    own = pd.Series(np.where(given == "", found.to_numpy(object), np.array(ours, object)), index=found.index)
    # Names from the file ("0") come before names that were found ("1").
    order = pd.Series(np.where(given == "", "1", "0"), index=found.index) + own
    return order.groupby(component).transform("min").str[1:]
