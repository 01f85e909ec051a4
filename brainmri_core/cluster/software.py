"""The versions of code and packages, which together with the images decide the result of a piece of work."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path

from brainmri_core import __version__

_PACKAGES = ("distributed", "numpy", "pillow", "scipy", "simplejpeg", "torch")


@cache
def software() -> dict[str, str]:
    """Return the version of this package with the hash of its source files, and the versions of the packages it uses."""
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode())
        digest.update(path.read_bytes())
    found = {"brainmri": f"{__version__} (code {digest.hexdigest()[:12]})"}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found
