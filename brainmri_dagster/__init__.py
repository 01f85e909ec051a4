"""The pipeline as a Dagster code location: assets, checks, IO managers, partitions, sensors and the command line."""

import atexit
import gc

# Once torch and Dagster are loaded, the garbage collections of Python's shutdown take two seconds and free nothing that
# the end of the process would not free anyway.
atexit.register(gc.freeze)
