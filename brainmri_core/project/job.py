"""What a stage receives besides its config and inputs: the project's layout, the run, the data set and the log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from brainmri_core.config import EnvConfig
from brainmri_core.config.cluster import ClusterConfig
from brainmri_core.project.catalogue import DatasetEntry
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import StageLog
from brainmri_core.system.storage import remove_stale, staging_folder


@dataclass(frozen=True)
class Job:
    """The context of one stage in one run.

    Attributes
    ----------
    layout : Layout
        Where the project's files lie.
    run_id : str
        The run.
    entry : DatasetEntry
        The data set's entry in the catalogue.
    log : StageLog
        The stage's logger.
    env : EnvConfig
        Seed and hardware settings.
    """

    layout: Layout
    run_id: str
    entry: DatasetEntry
    log: StageLog
    env: EnvConfig = field(default_factory=EnvConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    @property
    def dataset(self) -> str:
        """The data set's key, owner/slug."""
        return self.entry.key

    def clear_stale(self, folder: Path) -> None:
        """Remove the unfinished files that dead processes left in a folder, and log each name."""
        for stale in remove_stale(folder):
            self.log.info("removed a stale temporary", path=stale.name)

    @contextmanager
    def staged(self, target: Path, *, replace: bool = False) -> Iterator[Path]:
        """Fill a folder as `staging_folder` does, after `clear_stale` beside it."""
        self.clear_stale(target.parent)
        with staging_folder(target, replace=replace) as folder:
            yield folder
