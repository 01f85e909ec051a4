"""What a stage is given besides its config and inputs: where the project lies, which run this is, and where to log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from brainmri_core.config import EnvConfig
from brainmri_core.project.catalogue import DatasetEntry
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import StageLog
from brainmri_core.system.storage import remove_stale, staging_folder


@dataclass(frozen=True)
class Job:
    """One stage's place in one run."""

    layout: Layout
    run_id: str
    entry: DatasetEntry
    log: StageLog
    env: EnvConfig = field(default_factory=EnvConfig)

    @property
    def dataset(self) -> str:
        """The data set's key, owner/slug."""
        return self.entry.key

    def clear_stale(self, folder: Path) -> None:
        """Remove what dead processes left half-written in a folder, and log the name of each."""
        for stale in remove_stale(folder):
            self.log.info("removed a stale temporary", path=stale.name)

    @contextmanager
    def staged(self, target: Path, *, replace: bool = False) -> Iterator[Path]:
        """Fill a folder as `staging_folder` does, after what dead processes left beside it is cleared."""
        self.clear_stale(target.parent)
        with staging_folder(target, replace=replace) as folder:
            yield folder
