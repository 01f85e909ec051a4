"""What the Celery workers are told; Dagster imports this module by its name, so its folder belongs on PYTHONPATH.

The broker's address has a password: it comes from the environment and is in no command line that others can list.
"""

import os
from datetime import timedelta

broker_url = os.environ["BRAINMRI_BROKER_URL"]
result_backend = broker_url
# One run at a time, each in a fresh process; none is held back behind one at work while another worker is idle.
worker_concurrency = 1
worker_max_tasks_per_child = 1
worker_prefetch_multiplier = 1
worker_disable_prefetch = True
# Celery's one day would make a longer training look dead.
result_expires = timedelta(days=30)
# What a run prints is for Dagster's compute logs; Celery would take it into its own.
worker_redirect_stdouts = False
