"""JSON files: written atomically, and refused where their content is not strict JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from brainmri_core.errors import IntegrityError
from brainmri_core.system.storage import as_storage_errors, write_bytes


def json_text(value: Any) -> str:
    """Serialise to indented JSON text.

    Raises
    ------
    ValueError
        On NaN and infinity, which JSON does not have.
    """
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically.

    Raises
    ------
    StorageError
        On any operating-system error while writing.
    ValueError
        On NaN and infinity, which JSON does not have.
    """
    write_bytes(path, json_text(value).encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    IntegrityError
        If the file is not JSON in UTF-8, or holds what `write_json` could not write again.
    StorageError
        If it cannot be read.
    """
    try:
        with as_storage_errors(path, "read"):
            text = path.read_bytes().decode()
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
        if (
            "\\ud" in text.lower()
        ):  # perhaps an escaped lone surrogate, which could not be written again as UTF-8
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"The file {path} is not valid JSON ({error}); restore it or run its stage again."
        ) from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a JSON number")
    return value
