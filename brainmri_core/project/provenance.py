"""What made a result: the version of the code, the packages and the hardware."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from brainmri_core import __version__
from brainmri_core.system.threads import cores

_PACKAGES = (
    "dagster",
    "pydantic",
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "scikit-learn",
    "pandas",
    "pyarrow",
)


@cache
def code_version() -> dict[str, Any]:
    """Return the package version, git commit and dirty flag (None outside a git checkout)."""
    here = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD") if (here / ".git").exists() else None
    return {
        "version": __version__,
        "git_commit": commit,
        "git_dirty": bool(git("status", "--porcelain")) if commit else None,
    }


@cache
def environment() -> dict[str, Any]:
    """Return package versions and hardware, without importing a heavy package."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "python": platform.python_version(),
        "packages": versions,
        "hardware": {
            "system": platform.system(),
            "machine": platform.machine(),
            "cpu": _cpu_name(),
            "cores": cores(),
            "memory_bytes": memory,
            "gpu": _gpu_name(),
        },
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.processor()
    return platform.processor()


def _gpu_name() -> str | None:
    torch = sys.modules.get("torch")  # loaded in a stage that uses the GPU; importing it takes seconds
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
