"""What the Celery workers are told; Dagster imports this module by its name, so its folder belongs on PYTHONPATH.

The broker's address has a password: it comes from the environment and is in no command line that others can list.
"""

import os
from datetime import timedelta

broker_url = os.environ["BRAINMRI_BROKER_URL"]
result_backend = broker_url
# One run at a time, each in a new process; a busy worker reserves no further run that an idle one could take.
worker_concurrency = 1
worker_max_tasks_per_child = 1
worker_prefetch_multiplier = 1
worker_disable_prefetch = True
# After Celery's default of one day a longer training would look dead.
result_expires = timedelta(days=30)
# The output of a run belongs into Dagster's compute logs; Celery would redirect it to its own log.
worker_redirect_stdouts = False
