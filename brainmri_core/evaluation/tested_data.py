"""The data of an evaluation: its origin, its split, its copies and, where known, its tumour masks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainmri_core.arrays import I64, U8
from brainmri_core.copies.leaks import read_copies
from brainmri_core.copies.thumbs import read_thumbs
from brainmri_core.images.decode import decode
from brainmri_core.images.fit import fit_image
from brainmri_core.project.job import Job
from brainmri_core.project.pointer_store import follow
from brainmri_core.project.pointers import FetchPointer, MappingPointer, PackPointer
from brainmri_core.project.sample_table import FETCH_COLUMNS, RESIZE_COLUMNS, SPLIT_COLUMNS, read_samples
from brainmri_core.sources.masks import MASKS, MaskStore
from brainmri_core.sources.phantom import read_truth
from brainmri_core.splitting.record import copy_limits, read_split_record
from brainmri_core.validation.leak_report import LeakReport, leak_report

_GALLERY_PAIRS = 4


@dataclass(frozen=True)
class TestedData:
    """The data behind an evaluation.

    Attributes
    ----------
    samples : pandas.DataFrame
        The whole sample table of the pack, including excluded images.
    thumbs : numpy.ndarray
        uint8 ``(len(samples), 64, 64)``.
    copies : pandas.DataFrame
        Confirmed copies.
    leak : LeakReport
        Leaks across this split and other divisions, with the scores of a 1-nearest-neighbour look-up.
    planes, masks : dict
        Path of an image to its plane, and to the file of its tumour mask; only for synthetic data.
    stored_masks : MaskStore
        Tumour masks from the images' own files.
    split_record : dict
        The record of the split.
    """

    pack: PackPointer
    mapping: MappingPointer
    fetched: FetchPointer | None
    samples: pd.DataFrame
    thumbs: U8
    copies: pd.DataFrame
    leak: LeakReport
    planes: dict[str, str]
    masks: dict[str, Path]
    split_record: dict[str, Any]
    stored_masks: MaskStore = field(default_factory=MaskStore)

    def positions(self, side: str) -> I64:
        """Return the positions in `samples` of a split's packed images, in pack order."""
        rows = self.samples["row"].to_numpy(np.int64)
        chosen = np.flatnonzero((self.samples["split"].to_numpy(object) == side) & (rows >= 0))
        return chosen[np.argsort(rows[chosen], kind="stable")]

    def has_mask(self, path: str) -> bool:
        """Say whether the tumour mask of an image is known."""
        return path in self.masks or path in self.stored_masks

    def mask(self, path: str) -> U8:
        """Return an image's tumour mask, fitted like its pixels: uint8 ``(P, P)``, 0 or 255."""
        if path in self.masks:
            file = self.masks[path]
            drawn = decode(file.read_bytes(), name=file.name).pixels
        else:
            drawn = np.where(self.stored_masks[path], 255, 0).astype(np.uint8)
        return fit_image(drawn, self.pack.size, self.pack.fit)


def gather_tested_data(pack: PackPointer, pixels: U8, job: Job) -> TestedData:
    """Collect what earlier stages recorded about a pack.

    Raises
    ------
    IntegrityError
        If a recorded file is missing or damaged.
    """
    layout = job.layout
    samples = read_samples(
        layout.absolute(pack.samples), {**FETCH_COLUMNS, **SPLIT_COLUMNS, **RESIZE_COLUMNS}
    )
    mapping = follow(layout, MappingPointer, pack.mapping_pointer)
    folder = layout.absolute(mapping.samples).parent
    thumbs, copies = read_thumbs(folder, samples, pixels), read_copies(folder)
    record = read_split_record(layout.absolute(mapping.split_json))
    fetched = follow(layout, FetchPointer, mapping.fetch_pointer) if mapping.fetch_pointer else None
    # A foreign archive may contain such files, too, which could name any image for this process to open.
    ours = fetched is not None and fetched.source == "phantom"
    planes, masks = _truth(layout.absolute(mapping.dataset_root)) if ours else ({}, {})
    return TestedData(
        pack=pack,
        mapping=mapping,
        fetched=fetched,
        samples=samples,
        thumbs=thumbs,
        copies=copies,
        leak=leak_report(
            samples,
            thumbs,
            copies,
            seed=job.env.seed,
            pack=pixels,
            search=copy_limits(record),
            pairs_per_split=_GALLERY_PAIRS,
        ),
        planes=planes,
        masks=masks,
        split_record=record,
        stored_masks=MaskStore.read(layout.absolute(fetched.samples).parent / MASKS)
        if fetched
        else MaskStore(),
    )


def _truth(root: Path) -> tuple[dict[str, str], dict[str, Path]]:
    """Read the planes and masks of a synthetic data set."""
    if not (root / "truth" / "truth.json").is_file():
        return {}, {}
    images = read_truth(root).images
    masks = {item.path: root / item.mask for item in images if item.mask and (root / item.mask).is_file()}
    return {item.path: item.plane for item in images}, masks
