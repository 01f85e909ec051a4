"""Make a new project folder: settings to edit, an empty catalogue, and the files that Dagster's programs look for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from brainmri_core.config.files import SHIPPED, USER_FOLDER
from brainmri_core.errors import ConfigError
from brainmri_core.system.storage import make_dirs, write_bytes

_TEMPLATE = SHIPPED / "new_project"
# Stored without the dot: git would apply a .gitignore to the package's own folder.
_HIDDEN = {"gitignore": ".gitignore"}


@dataclass(frozen=True)
class NewProject:
    """The files written, and those left as they were, relative to the folder."""

    folder: Path
    written: list[str]
    kept: list[str]


def new_project(folder: Path) -> NewProject:
    """Write a project into a folder. A file that is there already is left as it is.

    Parameters
    ----------
    folder : pathlib.Path
        Made if it does not exist.

    Returns
    -------
    NewProject
        The files written and kept.

    Raises
    ------
    ConfigError
        If the folder is a file.
    StorageError
        If a file cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder for the new project.")
    sources = {
        _HIDDEN.get(name := path.relative_to(_TEMPLATE).as_posix(), name): path
        for path in sorted(_TEMPLATE.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    sources[f"{USER_FOLDER}/pipeline.yaml"] = SHIPPED / "pipeline.yaml"
    written, kept = [], []
    for name, source in sorted(sources.items()):
        target = folder / name
        if target.exists() or target.is_symlink():
            kept.append(name)
            continue
        make_dirs(target.parent)
        write_bytes(target, source.read_bytes())
        written.append(name)
    return NewProject(folder, written, kept)
