"""Read ``requirements.lock``: version and hashes of every package that `make` installs."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)((?:.*\\\n)*.*)$", re.MULTILINE)


def canonical(name: str) -> str:
    """Return a package's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, tuple[str, list[str]]]:
    """Return version and hashes of each package that a lock pins, by canonical name."""
    return {
        canonical(name): (version, re.findall(r"--hash=(sha256:[0-9a-f]{64})", rest))
        for name, version, rest in _PIN.findall(text)
    }
