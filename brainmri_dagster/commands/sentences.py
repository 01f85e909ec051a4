"""How a command ends after an error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import typer

from brainmri_core.errors import BrainMRIError


@contextlib.contextmanager
def sentences(debug: bool) -> Iterator[None]:
    """Print an error as one sentence and exit with its code; with `debug`, let it through with its traceback."""
    try:
        yield
    except BrainMRIError as error:
        if debug:
            raise
        print(f"brainmri: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
