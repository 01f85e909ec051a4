"""Print the section of CHANGELOG.md about a release: ``python -m scripts.release_notes v1.2.3``."""

from __future__ import annotations

import re
import sys

from brainmri_core import __version__
from scripts.pins import ROOT

CHANGELOG = ROOT / "CHANGELOG.md"


def notes(tag: str, version: str, changelog: str) -> str:
    """Return a version's section of the changelog, without its heading.

    Parameters
    ----------
    tag : str
        Name of the release's tag, the version after a ``v``.
    version : str
        Version of the package.
    changelog : str
        Text of the changelog, with one second-level heading per version.

    Raises
    ------
    SystemExit
        If the tag names another version than the package, or the changelog has no section for it, or an empty one.
    """
    if tag != f"v{version}":
        raise SystemExit(
            f"The tag is {tag} and brainmri_core.__version__ is {version}; tag v{version}, or change the version first."
        )
    parts = dict(re.findall(r"(?ms)^## (\S+)[^\n]*\n(.*?)(?=^## |\Z)", changelog))
    if not (found := parts.get(version, "").strip()):
        raise SystemExit(f"CHANGELOG.md has nothing under '## {version}'; write there what a user notices.")
    return found


if __name__ == "__main__":
    print(notes(sys.argv[1], __version__, CHANGELOG.read_text(encoding="utf-8")))
