"""SHA-256 checksums of files and of JSON values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from brainmri_core.errors import IntegrityError
from brainmri_core.system.storage import as_storage_errors


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal text.

    Raises
    ------
    StorageError
        If the file cannot be read.
    """
    return sha256_files([path])


def sha256_files(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of the bytes of files, one after the other, as hexadecimal text.

    Raises
    ------
    StorageError
        If a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        with as_storage_errors(path, "read"), open(path, "rb", buffering=0) as handle:
            # Faster for small files than hashlib.file_digest, which first clears a buffer of 256 KiB.
            while part := handle.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON (sorted keys, no spaces) as hexadecimal text.

    Raises
    ------
    ValueError
        On NaN and infinity, which JSON does not have.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def check_sha256(path: Path, expected: str, what: str) -> None:
    """Check that a file is the one that was recorded.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    expected : str
        Its recorded SHA-256, hexadecimal.
    what : str
        What the file is, for the error: "pack", "checkpoint".

    Raises
    ------
    IntegrityError
        If the file is missing or its content is another.
    StorageError
        If it cannot be read.
    """
    if not path.is_file():
        raise IntegrityError(f"The {what} {path} is missing; run the stage that makes it again.")
    if sha256_file(path) != expected:
        raise IntegrityError(
            f"The {what} {path} was changed after it was recorded; run the stage that makes it again."
        )
