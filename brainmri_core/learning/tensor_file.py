"""Files of tensors, read without running code from them: safetensors and torch's own format, recognised by content."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from brainmri_core.errors import ModelError
from brainmri_core.escaping import printable

_NAMED_OBJECTS = 3
_NO_PARTS = frozenset({"module", "_orig_mod"})  # inserted into names by DataParallel and torch.compile


def is_safetensors(path: Path) -> bool:
    """Tell by its first bytes whether a file is safetensors: the length of a JSON header, and its opening brace."""
    with path.open("rb") as handle:
        start = handle.read(9)
    return (
        len(start) == 9
        and start[8:] == b"{"
        and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8
    )


def read_tensor_file(path: Path, what: str, remedy: str) -> tuple[Any, dict[str, str]]:
    """Read a file of tensors and plain values.

    Parameters
    ----------
    path : pathlib.Path
        An existing file.
    what : str
        What the file is, for errors: ``checkpoint``.
    remedy : str
        What to do about a file that cannot be read, for errors.

    Returns
    -------
    value : object
        What torch saved, or the tensors by name.
    notes : dict
        The metadata of a safetensors header; empty for torch's format.

    Raises
    ------
    ModelError
        If the file is damaged, or holds anything but tensors and plain values.
    """
    try:
        if is_safetensors(path):
            with safetensors.safe_open(path, "pt") as file:
                notes = file.metadata() or {}
            return safetensors.torch.load_file(path), notes
        # Many training scripts save their options in a Namespace, which only holds values.
        with safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True), {}
    except Exception as error:  # noqa: BLE001 - unpicklers raise anything on hostile bytes; all of it means: refuse
        held = _objects(path)
        reason = f"it holds {held} besides tensors" if held else type(error).__name__
        raise ModelError(f"The {what} {path} cannot be read safely ({reason}); {remedy}.") from None


def _objects(path: Path) -> str:
    """Name the Python objects in a file that need code to load; they are only listed, never created."""
    try:
        found = sorted(get_unsafe_globals_in_checkpoint(path))
    except Exception:  # noqa: BLE001 - not a torch file, or a damaged one
        return ""
    named = ", ".join(printable(name)[:60] for name in found[:_NAMED_OBJECTS])
    return named + (f" and {len(found) - _NAMED_OBJECTS} more" if len(found) > _NAMED_OBJECTS else "")


def flat_tensors(value: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return all tensors of nested mappings by dotted path, without the parts of names that wrappers insert."""
    found: dict[str, torch.Tensor] = {}
    if not isinstance(value, Mapping):
        return found
    for key, item in value.items():
        parts = [part for part in str(key).split(".") if part not in _NO_PARTS]
        name = ".".join([prefix, *parts] if prefix else parts)
        if isinstance(item, torch.Tensor):
            found[name] = item
        else:
            found |= flat_tensors(item, name)
    return found
