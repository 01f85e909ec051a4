"""Brain-tumour MRI classification as a plain library: fetch, split, resize, validate, train, evaluate."""

import os

# Before torch is imported: its OpenMP threads otherwise wait for each other at full speed, and on a machine with other work
# that takes five times the processor time of the work itself. What the user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.2.0"
