"""Known label errors from the catalogue entry's table: their images are excluded, relabelled or used unchanged."""

from __future__ import annotations

import pandas as pd

from brainmri_core.config.data import SplitConfig
from brainmri_core.project.image_tables import ImageFinder, read_table
from brainmri_core.project.job import Job

WRONG_LABEL = "its label is known to be wrong"


def correct_labels(config: SplitConfig, table: pd.DataFrame, job: Job) -> dict[str, dict[str, str]]:
    """Apply ``split.corrections`` to the images that the catalogue entry's ``label_corrections`` list.

    Parameters
    ----------
    config : SplitConfig
        ``corrections``: exclude, apply or ignore.
    table : pandas.DataFrame
        With ``path``, ``label``, ``class_index``, ``split`` and ``reason``; it is changed in place.
    job : Job
        Its catalogue entry names the table of corrections.

    Returns
    -------
    dict
        Path of each wrongly labelled image to its ``found`` label, its ``right`` label and the ``source`` of the
        correction; also with ``ignore``.

    Raises
    ------
    ConfigError
        If the table cannot be read.
    """
    if job.entry.label_corrections is None:
        return {}
    given = read_table(job.entry.label_corrections, ("label",), ("source",))
    finder = ImageFinder(table["path"].tolist())
    known: dict[str, dict[str, str]] = {}
    for name, row in zip(given.names, given.values, strict=True):
        right = job.entry.canonical(row["label"])
        for position in finder.rows(given, name):
            found, path = table["label"].iloc[position], table["path"].iloc[position]
            if right is not None and found != right:
                known[path] = {"found": found, "right": right, "source": row.get("source", "")}
    if known:
        job.log.warning("labels known to be wrong", images=len(known), policy=config.corrections)
    elif given.names:
        job.log.warning(f"{given.where} corrects no label of {job.dataset}.")
    _treat(config, table, known, job)
    return known


def _treat(config: SplitConfig, table: pd.DataFrame, known: dict[str, dict[str, str]], job: Job) -> None:
    if config.corrections == "ignore" or not known:
        return
    wrong = table["path"].isin(list(known)) & (table["split"] != "excluded")
    if config.corrections == "exclude":
        table.loc[wrong, ["split", "reason"]] = ("excluded", WRONG_LABEL)
        return
    right = table.loc[wrong, "path"].map(lambda path: known[path]["right"])
    table.loc[wrong, "label"] = right
    table.loc[wrong, "class_index"] = right.map(job.entry.classes.index)
    table.loc[wrong, "reason"] = "its label was corrected"
