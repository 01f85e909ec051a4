"""The image files that names, folders and patterns on a command line stand for."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from brainmri_core.config.formats import ENDINGS, image_format
from brainmri_core.images.medical import is_dicomdir, medical_kind

_HEAD = 1024


def list_images(names: Sequence[str]) -> list[str]:
    """Return the files that names stand for, each once, in the order given; folders are searched to any depth.

    Parameters
    ----------
    names : sequence of str
        Files (with any ending), folders, and patterns with ``*``, ``?``, ``[...]`` and ``**``. In folders, a file counts if
        its ending or its first bytes are those of an image or a scan; a DICOMDIR index does not count.

    Returns
    -------
    list of str
        A name that matches nothing is returned unchanged, so that it can be reported.
    """
    found: dict[str, None] = {}
    for name in names:
        path = Path(name).expanduser()
        matches = [path]
        if not path.exists() and glob.has_magic(name):
            # Path.glob does not accept absolute patterns.
            matches = [Path(item) for item in sorted(glob.glob(str(path), recursive=True))] or [path]  # noqa: PTH207
        for match in matches:
            inside = _below(match) if match.is_dir() else []
            found |= dict.fromkeys(map(str, inside or [match]))
    return list(found)


def _below(folder: Path) -> list[Path]:
    found = []
    for parent, folders, files in os.walk(folder):
        folders.sort()
        found += [path for path in (Path(parent) / name for name in sorted(files)) if _counts(path)]
    return found


def _counts(path: Path) -> bool:
    if path.name.lower().endswith(ENDINGS):
        return True
    if not path.is_file():
        return False
    try:
        with path.open("rb") as handle:
            head = handle.read(_HEAD)
        if is_dicomdir(head):
            return False
        return image_format(head) is not None or medical_kind(head, path.name) is not None
    except PermissionError:
        return True  # so that it is reported, not skipped
