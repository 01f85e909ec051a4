"""A worker that answers with its own limits and the names of its environment."""

from __future__ import annotations

import os
import resource

from brainmri_core.images.isolation import message
from brainmri_core.images.worker import serve


def respond(data: bytes, name: str) -> list[bytes]:
    """Describe this process."""
    limits = {"address_space": resource.RLIMIT_AS, "core": resource.RLIMIT_CORE}
    found = {key: resource.getrlimit(value)[0] for key, value in limits.items()}
    return [message({**found, "environment": sorted(os.environ)})]


if __name__ == "__main__":
    serve(respond)
