"""Where configuration files are found: the user's own first, then those that come with the package."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

CONFIG_VARIABLE, ROOT_VARIABLE = "BRAINMRI_CONFIG", "BRAINMRI_HOME"
USER_FOLDER = "configs"
SHIPPED = Path(str(files("brainmri_core.defaults")))
"""The package's own files; pip unpacks a package, so this is a real folder."""


def user_configs() -> Path:
    """Return the user's configuration folder; it need not exist.

    It is that of the file in ``BRAINMRI_CONFIG``, else ``configs`` of the folder in ``BRAINMRI_HOME`` if there is one, else
    ``./configs``.
    """
    named, home = os.environ.get(CONFIG_VARIABLE), os.environ.get(ROOT_VARIABLE)
    if named:
        return Path(named).expanduser().resolve().parent
    of_project = Path(home).expanduser() / USER_FOLDER if home else None
    return (of_project if of_project and of_project.is_dir() else Path(USER_FOLDER)).resolve()


def config_file(name: str) -> Path:
    """Return the user's configuration file of a name, else the package's.

    Parameters
    ----------
    name : str
        Relative to the folder, such as ``pipeline.yaml`` or ``experiments/from-scratch.yaml``.
    """
    own = user_configs() / name
    return own if own.is_file() else SHIPPED / name


def default_config_path() -> Path:
    """Return the configuration file to use when none is named: ``BRAINMRI_CONFIG``, else ``pipeline.yaml``."""
    named = os.environ.get(CONFIG_VARIABLE)
    return Path(named).expanduser().resolve() if named else config_file("pipeline.yaml")


def named_config_path(path: Path) -> Path:
    """Return the file that a command was asked to read.

    ``configs/NAME`` that does not exist here stands for the package's file of that name, so that the commands of the
    documentation work in any folder.
    """
    if path.exists() or path.is_absolute() or path.parts[:1] != (USER_FOLDER,):
        return path
    shipped = SHIPPED.joinpath(*path.parts[1:])
    return shipped if ".." not in path.parts and shipped.is_file() else path


def files_by_name(folder: str) -> dict[str, Path]:
    """Return the YAML files of a folder such as ``experiments`` by stem; the user's replace the package's."""
    found = {
        path.stem: path
        for source in (SHIPPED, user_configs())
        for path in sorted((source / folder).glob("*.yaml"))
    }
    return dict(sorted(found.items()))
