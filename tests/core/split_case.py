"""A small data set whose copies and patients are known."""

from __future__ import annotations

import numpy as np
from PIL import Image

from brainmri_core.config.data import FetchConfig
from brainmri_core.fetch import fetch
from brainmri_core.project.job import Job
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import FetchPointer


def picture(seed: int, size: tuple[int, int] = (48, 48)) -> Image.Image:
    low = np.random.default_rng(seed).integers(0, 255, (8, 8), dtype=np.uint8)
    return Image.fromarray(low).resize(size, Image.Resampling.BICUBIC)


def small_set(job: Job, images: dict[str, Image.Image | bytes]) -> FetchPointer:
    tree = job.layout.root.parent / f"tree-{job.run_id}"
    for name, image in images.items():
        file = tree / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, bytes):
            file.write_bytes(image)
        else:
            image.save(file)
    return write_pointer(job.layout, fetch(FetchConfig(archive=str(tree)), job))
