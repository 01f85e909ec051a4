"""Run the Dagster daemon as ``dagster-daemon run`` does, but look for backfills every 2 s: its 30 s cannot be configured."""

from __future__ import annotations

from dagster._daemon import controller
from dagster._daemon.cli import main

controller.DEFAULT_DAEMON_INTERVAL_SECONDS = 2

if __name__ == "__main__":
    main()
