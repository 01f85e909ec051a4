"""One sentence where Dagster's own command line refuses a partition, in place of its traceback.

``dagster asset materialize`` checks the partition before any code of this project runs, and ends in an error that names
neither the data sets nor what to do. This module words that ending, in that program alone; every other error stays as it is.
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


def word_refusals() -> None:
    """Word the ending of this process if it is ``dagster asset materialize``."""
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
            "The selected assets have different partitions; materialize those of cross-validation, and the external evaluation, "
            "by themselves."
        )
    partition = _partition(options)
    if partition is None:
        return (
            f"No partition was given; choose a data set with {_OPTION}: {', '.join(catalogue())}; assets of "
            f"cross-validation take one and a fold, such as {next(iter(catalogue()))}|0."
        )
    try:
        find_entry(catalogue(), dataset_of(partition))
    except ConfigError as unknown:
        return str(unknown)
    name = dataset_of(partition)
    return (
        f"The partition {printable(partition)!r} is none of the selected assets; those of a data set take {_OPTION} {name}, "
        f"those of cross-validation a fold of split.folds with it, such as {name}|0, and the external evaluation {name} and "
        f"the data set trained on, such as {pair_key(next(iter(catalogue())), name)}."
    )


def _partition(options: list[str]) -> str | None:
    for place, word in enumerate(options):
        if word == _OPTION and place + 1 < len(options):
            return options[place + 1]
        if word.startswith(f"{_OPTION}="):
            return word.partition("=")[2]
    return None
