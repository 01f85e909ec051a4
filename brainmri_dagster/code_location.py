"""The code location of the UI and the daemon: the graph of one data set, and cross-validation, partitioned by fold too.

They are two modules because ``dagster asset materialize --select '*' --partition KEY`` takes assets of one partitions
definition only.
"""

from __future__ import annotations

import dagster as dg

from brainmri_dagster import definitions
from brainmri_dagster.defs.cross_validation import CROSS_VALIDATION
from brainmri_dagster.defs.jobs import folds_job

defs = dg.Definitions.merge(definitions.defs, dg.Definitions(assets=CROSS_VALIDATION, jobs=[folds_job]))
