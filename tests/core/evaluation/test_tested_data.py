from __future__ import annotations

import pytest
from PIL import Image

from brainmri_core.config.data import CopySearchConfig, ResizeConfig, SplitConfig
from brainmri_core.copies.leaks import read_copies
from brainmri_core.evaluation.tested_data import gather_tested_data
from brainmri_core.images.pack import open_pack
from brainmri_core.project.job import Job
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.sample_table import write_samples
from brainmri_core.resize import resize
from brainmri_core.split import split
from tests.core.split_case import picture, small_set
from tests.security.corpus import encoded


@pytest.mark.parametrize(
    ("limits", "found"), [({"ncc_threshold": 1.0}, 0), ({}, 6)], ids=["strict", "default"]
)
def test_an_evaluation_looks_for_unlisted_copies_by_the_limits_of_its_split(
    job: Job, limits: dict[str, float], found: int
) -> None:
    images: dict[str, Image.Image | bytes] = {}
    for n in range(6):
        drawn, label = picture(n, (96, 96)), "glioma" if n % 2 else "notumor"
        images[f"Training/{label}/{n}.jpg"] = encoded(drawn, "JPEG", quality=95)
        images[f"Testing/{label}/{n}.jpg"] = encoded(drawn, "JPEG", quality=60)
    config = SplitConfig(seed=1, strategy="official", group_by="none", copies=CopySearchConfig(**limits))
    mapping = write_pointer(job.layout, split(config, small_set(job, images), job))
    pack = write_pointer(job.layout, resize(ResizeConfig(size=32), mapping, job))
    folder = job.layout.absolute(mapping.samples).parent
    write_samples(folder / "copies.parquet", read_copies(folder).iloc[:0])  # as if the search had missed them
    assert len(gather_tested_data(pack, open_pack(job.layout, pack), job).leak.unlisted) == found
