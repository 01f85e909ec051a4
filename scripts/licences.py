"""List the licence of every package of ``requirements.lock``: ``python -m scripts.licences > docs/licences.md``."""

from __future__ import annotations

import re
import sys
from importlib import metadata

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.pins import LOCK, pins

_LONG = 60
# Markers are evaluated for this system, so that the page is the same whichever Python makes it.
_HERE = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.13.0",
    "python_version": "3.13",
    "sys_platform": "linux",
}
_SAME = {
    "BSD": "BSD",
    "BSD License": "BSD",
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD 2-Clause License": "BSD-2-Clause",
    "MIT License": "MIT",
    "MIT license": "MIT",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "Apache License Version 2.0": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "PSFL": "PSF-2.0",
}


def pinned(text: str) -> dict[str, str]:
    """Return the version of each package that a lock pins, by canonical name."""
    return {name: version for name, (version, _) in pins(text).items()}


def licence(package: metadata.Distribution) -> str:
    """Return a package's licence by its metadata: the licence expression, else a short text, else the classifiers."""
    about = package.metadata
    classifiers = [
        item.split(" :: ")[-1] for item in about.get_all("Classifier") or [] if item.startswith("License")
    ]
    named = [item for item in classifiers if item not in ("OSI Approved", "DFSG approved")]
    text = (about.get("License") or "").strip()
    if expression := about.get("License-Expression"):
        return str(expression)
    if text and "\n" not in text and len(text) <= _LONG and text not in ("UNKNOWN", "Dual License"):
        return _SAME.get(text, text)
    return " or ".join(dict.fromkeys(_SAME.get(item, item) for item in named)) or "see the package"


def needed_to_run() -> set[str]:
    """Return the canonical names of the packages that brainmri needs without its extras, directly or indirectly."""
    found: set[tuple[str, str]] = set()
    todo = [("brainmri", "")]
    while todo:
        name, extra = todo.pop()
        try:
            required = [Requirement(line) for line in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue  # only for another platform
        for item in required:
            if item.marker is None or item.marker.evaluate({"extra": extra}):
                asked = {(canonicalize_name(item.name), other) for other in ("", *item.extras)}
                todo += asked - found
                found |= asked
    return {name for name, _ in found}


def table(lock: str) -> str:
    """Return the page, one row a package."""
    running = needed_to_run()
    rows = []
    for name, version in sorted(pinned(lock).items()):
        marker = re.search(rf"(?m)^{re.escape(name)}==\S+ ; (.*) \\$", lock)
        if marker and not Marker(marker[1]).evaluate(_HERE):
            rows.append(f"| {name} | {version} | not looked at | other systems, older Pythons |")
            continue
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise SystemExit(
                f"{name} is not installed; run make install first, so that all of {LOCK.name} is."
            ) from None
        if found.version != version:
            raise SystemExit(
                f"{name} {found.version} is installed and {LOCK.name} says {version}; run make install first."
            )
        part = "running" if name in running else "extras and tests"
        rows.append(f"| {name} | {version} | {licence(found).replace('|', '/')} | {part} |")
    return "\n".join((*_HEAD, *rows, ""))


_HEAD = (
    "# Licences",
    "",
    "What the packages of `requirements.lock` say of themselves, listed by `python -m scripts.licences > docs/licences.md`.",
    "brainmri itself is under the MIT licence. The NVIDIA libraries come with torch's wheels for CUDA only.",
    "",
    "| Package | Version | Licence | For |",
    "|---|---|---|---|",
)

if __name__ == "__main__":
    sys.stdout.write(table(LOCK.read_text()))
