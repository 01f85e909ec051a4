"""The partitions: one per data set of the catalogue, one per data set and fold, and one per pair of data sets."""

from __future__ import annotations

import warnings
from functools import cache

import dagster as dg

from brainmri_core.project.catalogue import DatasetEntry, load_catalogue
from brainmri_dagster.graph.resources import defaults


@cache
def catalogue() -> dict[str, DatasetEntry]:
    """Return the catalogue this process started with."""
    return load_catalogue()


datasets = dg.StaticPartitionsDefinition(list(catalogue()))
folds = dg.MultiPartitionsDefinition(
    {
        "dataset": datasets,
        "fold": dg.StaticPartitionsDefinition([str(fold) for fold in range(defaults().split.folds)]),
    }
)
# Dagster (1.13) ignores the dimension name given in a mapping and finds the dimension by comparing partition keys. So the keys
# of the two dimensions must differ: `trained_on` has them in reverse order.
pairs = dg.MultiPartitionsDefinition(
    {"trained_on": dg.StaticPartitionsDefinition([*catalogue()][::-1]), "evaluated_on": datasets}
)
"""The data set that a model was trained on, and the one it is evaluated on."""


def of_measured() -> dg.PartitionMapping:
    """Return the mapping from a pair to the data set evaluated on."""
    if len(catalogue()) == 1:
        return dg.AllPartitionMapping()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        return dg.MultiToSingleDimensionPartitionMapping("evaluated_on")
