"""One sentence instead of a traceback when Dagster's own command line refuses a partition.

``dagster asset materialize`` checks the partition before any code of this project runs, and its error names neither the data
sets nor what to do. This module replaces that error, in that program only; all other errors stay as they are.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

from dagster import DagsterInvalidSubsetError

from brainmri_core.errors import ConfigError
from brainmri_core.escaping import printable
from brainmri_core.project.catalogue import find_entry
from brainmri_dagster.graph.asset_table import dataset_of, pair_key
from brainmri_dagster.graph.partitions import catalogue
from brainmri_dagster.running.dagster_internals import CheckError

_COMMAND = ("asset", "materialize")
_OPTION = "--partition"


def explain_refusals() -> None:
    """Install the replacement if this process is ``dagster asset materialize``."""
    if Path(sys.argv[0]).name == "dagster" and tuple(sys.argv[1:3]) == _COMMAND:
        sys.excepthook = _end


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sentence = refusal(error, sys.argv[3:])
    if sentence is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"brainmri: {sentence}", file=sys.stderr)


def refusal(error: BaseException, options: list[str]) -> str | None:
    """Return what is wrong with the partition of a command, None where the error is about something else.

    Parameters
    ----------
    error : BaseException
        What ended Dagster's command.
    options : list of str
        The words after ``dagster asset materialize``.
    """
    if not isinstance(error, CheckError | DagsterInvalidSubsetError) or "artition" not in str(error):
        return None
    if "share the same PartitionsDefinition" in str(error):
        return (
            "The selected assets have different partitions; materialise the assets of cross-validation, and the external "
            "evaluation, each on their own."
        )
    partition = _partition(options)
    if partition is None:
        return (
            f"No partition was given; choose a data set with {_OPTION}: {', '.join(catalogue())}; folds of "
            f"cross-validation take a data set and a fold, such as {next(iter(catalogue()))}|0."
        )
    try:
        find_entry(catalogue(), dataset_of(partition))
    except ConfigError as unknown:
        return str(unknown)
    name = dataset_of(partition)
    return (
        f"The selected assets have no partition {printable(partition)!r}; assets of a data set take {_OPTION} {name}, those of "
        f"a fold the data set and the fold, such as {name}|0, and the external evaluation the data set and the one trained on, "
        f"such as {pair_key(next(iter(catalogue())), name)}."
    )


def _partition(options: list[str]) -> str | None:
    for place, word in enumerate(options):
        if word == _OPTION and place + 1 < len(options):
            return options[place + 1]
        if word.startswith(f"{_OPTION}="):
            return word.partition("=")[2]
    return None
