"""How sample tables name a patient: running numbers stay, everything else is stored as a keyed hash."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

from brainmri_core.errors import IntegrityError
from brainmri_core.project.layout import Layout

_RUNNING = re.compile(r"(?:(?:p|pt|pat|patient|s|sub|subj|subject|case|id)[ _-]?)?\d{1,4}", re.IGNORECASE)
_HASHED = re.compile(r"hashed:[0-9a-f]{16}")
_KEY_BYTES = 32


def project_key(layout: Layout) -> bytes:
    """Return the project's secret key for the names of patients, made at first use.

    Raises
    ------
    IntegrityError
        If the key's file was changed.
    StorageError
        If the file cannot be written.
    """
    path = layout.patient_key
    if not path.is_file():
        name = layout.relative(path)
        layout.store.put_new(name, secrets.token_bytes(_KEY_BYTES))
        layout.store.fetch_to_cache(name).chmod(0o600)
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise IntegrityError(
            f"The key for the names of patients {path} is damaged; remove it, then fetch and split again."
        )
    return key


def hashed(name: str, key: bytes) -> str:
    """Return ``hashed:`` and 16 hexadecimal digits, which nobody can match with a name without the project's key."""
    return f"hashed:{hmac.digest(key, name.encode('utf-8', 'surrogatepass'), hashlib.sha256).hex()[:16]}"


def is_hashed(name: str) -> bool:
    """Say whether a stored name is a keyed hash, which is the same for a person in the whole project."""
    return _HASHED.fullmatch(name) is not None


def pseudonym(name: str, key: bytes) -> str:
    """Return how a patient's name is stored.

    A running number of up to four digits, alone or after a word such as ``patient``, ``sub`` or ``P``, identifies nobody
    and stays. Everything else may be a name or a hospital number, and is `hashed`.
    """
    return name if _RUNNING.fullmatch(name) or is_hashed(name) else hashed(name, key)
