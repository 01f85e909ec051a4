"""Runs that wait while the Postgres of their Dagster instance is away, and one sentence if it stays away.

Dagster's Postgres storage (seen in 1.13) opens a connection for each request, and gives up after six seconds.
"""

from __future__ import annotations

import logging
import random
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import dagster as dg
import yaml

from brainmri_core.errors import ConfigError, StorageError
from brainmri_core.system.object_store import patience_s

_FIRST_S = 3.0
_LONGEST_PAUSE_S = 5.0
_LASTING = (
    "password authentication failed",
    "does not exist",
    "no pg_hba.conf entry",
    "no password supplied",
)
_MODULES = ("utils", "run_storage.run_storage", "event_log.event_log", "schedule_storage.schedule_storage")
T = TypeVar("T")


def opened_instance(home: Path) -> dg.DagsterInstance:
    """Return the instance of a DAGSTER_HOME for a command line, which does not wait long for a Postgres that is not there.

    Raises
    ------
    ConfigError
        If the home's dagster.yaml cannot be used. What Dagster says is not shown: it quotes addresses with their passwords.
    StorageError
        If Postgres cannot be reached.
    """
    path = home / "dagster.yaml"
    if b"postgres" in path.read_bytes():
        with suppress(ImportError):  # the instance needs it, and fails below
            import dagster_postgres  # noqa: F401
        wait_for_postgres(_FIRST_S)
    from sqlalchemy.exc import ArgumentError

    try:
        return dg.DagsterInstance.from_config(str(home))
    except (dg.DagsterError, yaml.YAMLError, ArgumentError, ImportError, ValueError) as error:
        unset = re.search(r'environment variable "(\w+)" which is not set', str(error))
        why = "Dagster cannot read it, or the address of its storage is wrong"
        if unset:
            why = f"the environment variable {unset[1]}, which it names, is not set"
        raise ConfigError(
            f"The Dagster instance of {path} cannot be opened: {why}; correct that and run again."
        ) from None


def wait_for_postgres(first_s: float | None = None) -> None:
    """Let this process wait for a Postgres that is away, as long as for an object store; without Postgres, do nothing.

    Parameters
    ----------
    first_s : float or None
        Seconds until a process that has never reached Postgres gives up; None waits as long as later.
    """
    if "dagster_postgres" not in sys.modules:
        return
    retry = _PatientConnection(patience_s(), first_s)
    for name in _MODULES:
        module = sys.modules[f"dagster_postgres.{name}"]
        if not isinstance(module.retry_pg_connection_fn, _PatientConnection):
            module.retry_pg_connection_fn = retry  # type: ignore[attr-defined]


class _PatientConnection:
    """Takes the place of Dagster's function that connects."""

    def __init__(self, patience: float, first: float | None) -> None:
        self._patience_s = patience
        self._next_s = patience if first is None else min(first, patience)

    def __call__(self, connect: Callable[[], T], retry_limit: int = 0, retry_wait: float = 0.2) -> T:
        """Connect, and try again while Postgres is away.

        Raises
        ------
        StorageError
            If it stays away, or refuses the account or the database. Later calls then fail at once, until one succeeds.
        """
        from sqlalchemy.exc import DatabaseError
        from sqlalchemy.exc import TimeoutError as PoolTimeoutError

        end, pause, told = time.monotonic() + self._next_s, retry_wait, False
        while True:
            try:
                found = connect()
            except (DatabaseError, PoolTimeoutError) as error:
                reason = _reason(error)
            else:
                self._next_s = self._patience_s
                return found
            if time.monotonic() >= end or any(text in reason for text in _LASTING):
                self._next_s = 0.0
                raise StorageError(
                    f"Cannot use Postgres, where Dagster keeps its runs: {reason}; start it, or correct its address "
                    "(BRAINMRI_POSTGRES_URL, or `storage` in the dagster.yaml of DAGSTER_HOME), then run again."
                )
            if not told:
                logging.getLogger("brainmri").warning("Postgres is away (%s); waiting for it.", reason)
                told = True
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE_S)


def _reason(error: Exception) -> str:
    """Return the server's or driver's own words, which name host, port and user but never a password."""
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return " ".join(lines[0].split()) if lines else type(error).__name__
