"""The partitions: one per data set of the catalogue, and for cross-validation one per data set and fold."""

from __future__ import annotations

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
