"""How a command ends where something is wrong."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import typer

from brainmri_core.errors import BrainMRIError


@contextlib.contextmanager
def sentences(debug: bool = False) -> Iterator[None]:
    """Turn an error into its sentence and exit code; with `debug`, let it pass with its traceback."""
    try:
        yield
    except BrainMRIError as error:
        if debug:
            raise
        print(f"brainmri: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
