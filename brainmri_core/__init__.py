"""Brain-tumour MRI classification as a plain library: fetch, split, resize, validate, train, evaluate."""

import os

# This must be set before torch is imported. By default OpenMP threads busy-wait for each other; on a machine with other work
# a training then takes three times as long, and four times the processor time (benchmarks/bench_wait_policy.py). A value that the
# user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.2.0"
