"""The machine: files, locks, signals, threads and the clock. Knows nothing of a project."""
