"""The code location of the UI and the daemon: all assets.

Besides the graph of one data set, which is in `definitions`, these are cross-validation (partitioned by data set and fold),
the external evaluation (partitioned by pairs of data sets), the matrix of all pairs, and the studies. They are two modules
because ``dagster asset materialize --select '*' --partition KEY`` takes only assets that share one partitions definition.
"""

from __future__ import annotations

import dagster as dg

from brainmri_dagster import definitions
from brainmri_dagster.defs.cross_validation import CROSS_VALIDATION
from brainmri_dagster.defs.external import external_evaluation
from brainmri_dagster.defs.generalisation import generalisation
from brainmri_dagster.defs.jobs import folds_job
from brainmri_dagster.defs.tuning import tuning_study

defs = dg.Definitions.merge(
    definitions.defs,
    dg.Definitions(
        assets=[*CROSS_VALIDATION, tuning_study, external_evaluation, generalisation], jobs=[folds_job]
    ),
)
