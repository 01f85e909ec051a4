"""The partitions: one per data set of the catalogue; for cross-validation one per data set and fold; and one per pair."""

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
# Dagster (1.13) tells by their keys which dimension an upstream asset goes with, and forgets the name it was given: so only
# one dimension may have the keys of the other assets, and the other has them in another order.
pairs = dg.MultiPartitionsDefinition(
    {"trained_on": dg.StaticPartitionsDefinition([*catalogue()][::-1]), "evaluated_on": datasets}
)
"""Which data set a model was trained on, and which it is measured on."""


def of_measured() -> dg.PartitionMapping:
    """Return the way from a pair to the data set it is measured on."""
    if len(catalogue()) == 1:
        return dg.AllPartitionMapping()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        return dg.MultiToSingleDimensionPartitionMapping("evaluated_on")
