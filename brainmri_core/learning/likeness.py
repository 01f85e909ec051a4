"""What must be the same on all machines that train one model together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import brainmri_core
from brainmri_core.config.training import TrainConfig
from brainmri_core.images.pack import pack_sha256
from brainmri_core.learning.device import arithmetic, choose_device, choose_precision
from brainmri_core.learning.pretrained import weights_path
from brainmri_core.learning.resume import decisive
from brainmri_core.project.job import Job
from brainmri_core.project.pointers import PackPointer
from brainmri_core.project.provenance import environment
from brainmri_core.system.checksums import sha256_file, sha256_json


def likeness(config: TrainConfig, pack: PackPointer, job: Job) -> dict[str, Any]:
    """Return what the result of a training depends on: code, packages, settings, data, weights and arithmetic.

    The files are hashed here and now, so that a damaged copy on one machine is noticed.

    Raises
    ------
    StorageError
        If a file is missing or cannot be read.
    """
    device, shared = choose_device(job.env), config.distributed
    weights = weights_path(config.model)
    return {
        "brainmri": {"version": brainmri_core.__version__, "code_sha256": _code_sha256()},
        "packages": environment()["packages"],
        "dataset": job.dataset,
        "data": {
            "content_hash": pack.content_hash,
            "pack_sha256": pack_sha256(job.layout, pack),
            "samples_sha256": sha256_file(job.layout.absolute(pack.samples)),
        },
        "train": {**decisive(config), "distributed": {"nodes": shared.nodes, "nproc": shared.nproc}},
        "weights_sha256": None if weights is None else sha256_file(weights),
        "precision": choose_precision(config.loop.precision, config.optim.amp, device),
        "arithmetic": arithmetic(device, job.env),
    }


def _code_sha256() -> str:
    """Return the hash of this package's source code: the same version may have local changes."""
    root = Path(brainmri_core.__file__).parent
    return sha256_json({path.relative_to(root).as_posix(): sha256_file(path) for path in root.rglob("*.py")})
