"""Config of the cluster that shares the work on many images."""

from __future__ import annotations

from pydantic import Field

from brainmri_core.config.base import StageConfig


class ClusterConfig(StageConfig):
    """The cluster that does the work on many images; its choice changes no result."""

    scheduler: str | None = Field(
        None,
        pattern=r"^(tcp|tls)://[^\s/@]+:[0-9]{1,5}$",
        description="Address of a Dask scheduler whose workers mount the project's folder at the same path, "
        "tcp://host:8786 for one; empty: processes of this machine.",
    )
