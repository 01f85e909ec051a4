"""Export of a split as a class-folder tree, for people and for tools that want one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd

from brainmri_core.config.data import SplitConfig
from brainmri_core.errors import ConfigError
from brainmri_core.job import Job
from brainmri_core.storage import remove_stale, staging_folder, write_bytes

MARKER = ".brainmri-export"


def export_split(table: pd.DataFrame, root: Path, dest: Path, config: SplitConfig, job: Job) -> None:
    """Write ``dest/{train,test}/<class>/`` as hard links, or copies where the file system has none.

    Raises
    ------
    ConfigError
        If `dest` holds something that is not an earlier export, or an export and ``clear_dest`` is off.
    """
    job.layout.relative(dest)
    if dest.exists() and any(dest.iterdir()):
        if not (dest / MARKER).is_file():
            raise ConfigError(
                f"The export folder {dest} holds files that are not an export; empty it or choose another split.dest."
            )
        if not config.clear_dest:
            raise ConfigError(
                f"The export folder {dest} is not empty; empty it or set split.clear_dest to true."
            )
    for stale in remove_stale(dest.parent) if dest.parent.is_dir() else []:
        job.log.info("removed a stale temporary", path=stale.name)
    with staging_folder(dest, replace=True) as staging:
        write_bytes(staging / MARKER, job.run_id.encode())
        for path, side, label in zip(table["path"], table["split"], table["label"], strict=True):
            if side != "excluded":
                target = staging / side / label / path.replace("/", "__")
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(root / path, target)
                except OSError:
                    shutil.copyfile(root / path, target)
