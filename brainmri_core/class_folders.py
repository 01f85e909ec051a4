"""Pack a tree of class folders that the user names in place of a missing pointer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from brainmri_core.config.data import FetchConfig, ResizeConfig, SplitConfig
from brainmri_core.fetch import fetch
from brainmri_core.project.job import Job
from brainmri_core.project.pointer_store import follow, history, write_pointer
from brainmri_core.project.pointers import FetchPointer, MappingPointer, PackPointer
from brainmri_core.resize import resize
from brainmri_core.split import split as split_images


def pack_tree(folder: Path, *, split: Literal["train", "test"], size: int, job: Job) -> PackPointer:
    """Pack a class-folder tree such as ``data/training_resized/<class>/*.png``.

    The files are copied into the project, so that the pack can always be checked against its source. No ``latest.json``
    changes: the tree replaces the missing pointer of this run only.

    Parameters
    ----------
    folder : pathlib.Path
        Holds one folder per class, named by class or alias.
    split : {"train", "test"}
        Split that all its images belong to.
    size : int
        Side of the packed images in pixels.
    job : Job
        The run.

    Returns
    -------
    PackPointer
        A new pointer, not written yet; the stored one where the same tree was packed before.

    Raises
    ------
    SourceError, DataError
        If the folder holds no usable class folders.
    """
    fetched = write_pointer(job.layout, fetch(FetchConfig(archive=str(folder)), job), update_latest=False)
    if (packed := _packed_before(fetched, split, size, job)) is not None:
        return packed
    # Training and evaluation of one run may each pack a tree, and a result's folder is named by its run.
    own = replace(job, run_id=f"{job.run_id}-{split}-tree")
    config = SplitConfig(strategy="all_train" if split == "train" else "all_test", seed=job.env.seed)
    mapping = split_images(config, fetched, own).model_copy(update={"run_id": job.run_id})
    stored = write_pointer(job.layout, mapping, update_latest=False)
    return resize(ResizeConfig(size=size), stored, own).model_copy(update={"run_id": job.run_id})


def _packed_before(fetched: FetchPointer, split: str, size: int, job: Job) -> PackPointer | None:
    """Return the stored pack of the same files, in the same split and size, if there is one."""
    for pack in history(job.layout, PackPointer, job.dataset):
        mapping = follow(job.layout, MappingPointer, pack.mapping_pointer)
        sides = {side for side in ("train", "test") if any(mapping.counts[side].values())}
        if pack.size != size or sides != {split} or mapping.fetch_pointer is None:
            continue
        source = follow(job.layout, FetchPointer, mapping.fetch_pointer)
        if source.content_hash == fetched.content_hash and job.layout.absolute(pack.pack).is_file():
            return pack
    return None
