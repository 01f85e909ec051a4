"""The code location of the UI and the daemon: the graph of one data set, cross-validation, partitioned by fold too, and
the external evaluation, partitioned by pairs of data sets, with the matrix of all of them, and the studies.

They are two modules because ``dagster asset materialize --select '*' --partition KEY`` takes assets of one partitions
definition only.
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
