"""A split the user brings: a CSV of path, split and, where known, group (a patient id, say)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from brainmri_core.config.data import SplitConfig
from brainmri_core.errors import ConfigError, DataError
from brainmri_core.job import Job
from brainmri_core.sources.names import stored_names

SIDES = ("train", "test", "excluded")


def read_predefined(config: SplitConfig, table: pd.DataFrame, job: Job) -> None:
    """Set split and group of a sample table from the CSV of ``split.predefined_csv``.

    Paths are compared as `sources.names.compared` says. The CSV needs the columns ``path`` and ``split`` (train, test or excluded); with a column ``group`` its groups are
    joined with the copies found, so that neither straddles; a blank group joins nothing.

    Raises
    ------
    ConfigError
        If no CSV is named or it cannot be read.
    DataError
        If it names unknown images, leaves some out, uses another word for a side, or puts a group on two sides.
    """
    if config.predefined_csv is None:
        raise ConfigError(
            "split.strategy is predefined but split.predefined_csv is empty; name the CSV file."
        )
    path = job.layout.configured(config.predefined_csv)
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
        known_group = rows["group"].str.strip() != ""
        # a blank cell joins nothing: the image keeps the group that was found for it
        named = ("given:" + rows["group"]).where(known_group, "found:" + table["group"].to_numpy(object))
        table["group"] = _joined(table["group"], named.to_numpy(object))
    used = table[table["split"] != "excluded"]
    sides = used.groupby("group")["split"].nunique()
    if (sides > 1).any():
        members = used[used["group"] == sides.index[sides > 1][0]]
        pair = [members.loc[members["split"] == side, "path"].iloc[0] for side in ("train", "test")]
        raise DataError(
            f"The split file {path} puts one group on two sides: {pair[0]!r} in train and {pair[1]!r} in test are copies "
            "or of one group; move one of them or exclude it."
        )


def _read(path: Path) -> pd.DataFrame:
    try:
        given = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The split file {path} cannot be read ({error}); give a CSV with path,split[,group]."
        ) from None
    given.columns = given.columns.str.strip()
    missing = [name for name in ("path", "split") if name not in given]
    if missing:
        raise ConfigError(
            f"The split file {path} lacks the column {missing[0]!r}; its header must be path,split[,group]."
        )
    given["split"] = given["split"].str.strip().str.lower()
    return given


def _joined(found: pd.Series, given: object) -> pd.Series:
    """Join two groupings: rows that share either a found or a given group end up together."""
    frame = pd.DataFrame({"found": found.to_numpy(), "given": given})
    name = frame["found"]
    while True:
        nearer = name.groupby(frame["given"]).transform("min").groupby(frame["found"]).transform("min")
        if (nearer == name).all():
            return pd.Series(name.to_numpy(), index=found.index)
        name = nearer
