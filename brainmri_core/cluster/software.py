"""The versions of code and packages, which together with the images decide the result of a piece of work."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path

from brainmri_core import __version__

_PACKAGES = ("distributed", "numpy", "pillow", "scipy", "simplejpeg", "torch")


def source_hash(*packages: Path) -> str:
    """Return a short hash of the source files of packages, named by their folders."""
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted(package.rglob("*.py")):
            digest.update(f"{path.relative_to(package)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@cache
def software() -> dict[str, str]:
    """Return the version of this package with the hash of its source files, and the versions of the packages it uses."""
    found = {"brainmri": f"{__version__} (code {source_hash(Path(__file__).resolve().parents[1])})"}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found
