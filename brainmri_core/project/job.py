"""What a stage is given besides its config and inputs: where the project lies, which run this is, and where to log."""

from __future__ import annotations

from dataclasses import dataclass, field

from brainmri_core.config import EnvConfig
from brainmri_core.project.catalogue import DatasetEntry
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import StageLog


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
