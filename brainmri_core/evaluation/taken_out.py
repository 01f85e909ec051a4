"""Images of another data set that a model may have seen: copies of its training images, and images of their patients.

A score on such images does not measure generalisation, so they are taken out before an external evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from brainmri_core.arrays import I64, U8, Mask
from brainmri_core.config.data import CopySearchConfig
from brainmri_core.copies.across import find_copies_across
from brainmri_core.copies.thumbs import read_thumbs, read_trimmed_thumbs
from brainmri_core.errors import ConfigError, DataError, IntegrityError
from brainmri_core.evaluation.tested_model import packs_trained_on, validation_of
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.checkpoint import CheckpointMeta
from brainmri_core.project.job import Job
from brainmri_core.project.pointer_store import follow
from brainmri_core.project.pointers import FetchPointer, MappingPointer, PackPointer
from brainmri_core.project.sample_table import (
    FETCH_COLUMNS,
    RESIZE_COLUMNS,
    SPLIT_COLUMNS,
    known_patients,
    read_samples,
)
from brainmri_core.splitting.assignment import independent_units
from brainmri_core.splitting.shared_patients import shared_patients

REASONS = {
    "copy_of_training": "copy of a training image",
    "copy_of_validation": "copy of a validation image",
    "patient_in_training": "shows a patient of the training images",
    "patient_in_validation": "shows a patient of the validation images",
    "related_to_copy": "of one patient or group with such a copy",
}
"""Reasons for taking an image out, of which the first applies. Validation images count, as they selected the checkpoint."""
TAKEN_COLUMNS = ["position", "path", "reason", "like", "kind", "orientation", "correlation"]


@dataclass(frozen=True)
class PackedImages:
    """The packed images of a data set in pack order, with the thumbnails for the search for copies.

    Attributes
    ----------
    table : pandas.DataFrame
        N rows of the sample table.
    pixels : numpy.ndarray
        The pack.
    thumbs, trimmed : numpy.ndarray
        uint8 ``(N, 64, 64)``: thumbnails of the whole images, and of the images without margins if the split has these.
    """

    pack: PackPointer
    mapping: MappingPointer
    table: pd.DataFrame
    pixels: U8
    thumbs: U8
    trimmed: U8 | None

    @classmethod
    def read(cls, pack: PackPointer, job: Job) -> PackedImages:
        """Open the results of split and resize of a data set.

        Raises
        ------
        IntegrityError
            If a recorded file is missing or damaged.
        """
        layout = job.layout
        columns = {**FETCH_COLUMNS, **SPLIT_COLUMNS, **RESIZE_COLUMNS}
        samples = read_samples(layout.absolute(pack.samples), columns)
        rows = samples["row"].to_numpy(np.int64)
        order = np.flatnonzero(rows >= 0)
        order = order[np.argsort(rows[order], kind="stable")]
        mapping = follow(layout, MappingPointer, pack.mapping_pointer)
        folder = layout.absolute(mapping.samples).parent
        pixels = open_pack(layout, pack)
        trimmed = read_trimmed_thumbs(folder, samples)
        return cls(
            pack,
            mapping,
            samples.iloc[order].reset_index(drop=True),
            pixels,
            read_thumbs(folder, samples, pixels)[order],
            None if trimmed is None else trimmed[order],
        )


@dataclass(frozen=True)
class TrainingImages:
    """The images of a checkpoint's own data set: those it was trained on, those that selected it, and the rest.

    Attributes
    ----------
    images : PackedImages
        All N images.
    training, validation : numpy.ndarray
        bool ``(N,)``.
    """

    images: PackedImages
    training: Mask
    validation: Mask

    def side(self, name: str) -> I64:
        """Return the positions of the training, validation or test images."""
        test = ~(self.training | self.validation)
        masks = {"training": self.training, "validation": self.validation, "test": test}
        return np.flatnonzero(masks[name])


@dataclass(frozen=True)
class TakenOut:
    """Those of N images that a model may have seen.

    Attributes
    ----------
    table : pandas.DataFrame
        A row per image taken out: ``position`` among the N and ``path``; ``reason``, a key of `REASONS`; ``like``, the path
        of the model's own image that is the cause; and for copies ``kind``, ``orientation`` and ``correlation``.
    like : numpy.ndarray
        int64: position of that own image for each row.
    tested : int
        Number of remaining images that are copies of *test* images of the model's own data set, or show their patients.
        The model has not seen them, but they are not independent of its own test score.
    obstacle : str or None
        Why nothing could be taken out; None if that was possible.
    """

    table: pd.DataFrame
    like: I64
    tested: int = 0
    obstacle: str | None = None

    @classmethod
    def nothing(cls, obstacle: str) -> TakenOut:
        """Return the result if it is not possible to find what the model has seen."""
        return cls(pd.DataFrame(columns=TAKEN_COLUMNS), np.zeros(0, np.int64), obstacle=obstacle)

    def counts(self) -> dict[str, int]:
        """Return the number of images taken out by reason, including zeros."""
        found = self.table["reason"].value_counts()
        return {name: int(found.get(name, 0)) for name in REASONS}


def training_images_of(meta: CheckpointMeta, job: Job) -> TrainingImages | str:
    """Find the images that a checkpoint was trained on.

    Parameters
    ----------
    meta : CheckpointMeta
        Its metadata. The pack that they name is taken if it is unchanged, else another pack of the data set with the same
        content.
    job : Job
        The run.

    Returns
    -------
    TrainingImages or str
        The images, or the reason why they are unknown.
    """
    pack = next(packs_trained_on(meta, job.layout), None)
    if pack is None:
        return f"the pack of {meta.dataset} that the checkpoint was trained on is not in this project"
    try:
        images = PackedImages.read(pack, job)
    except (ConfigError, IntegrityError) as error:
        return f"the images that the checkpoint was trained on cannot be read: {str(error).rstrip('.')}"
    validation = validation_of(images.table, meta)
    training = (images.table["split"] == "train").to_numpy(np.bool_) & ~validation
    return TrainingImages(images, training, validation)


def refuse_one_archive(own: PackPointer, other: PackPointer, job: Job) -> None:
    """Raise DataError if two data sets were fetched from the same archive or hold the same files."""
    first, second = (_fetched(pack, job) for pack in (own, other))
    if first is not None and second is not None and first.same_files(second):
        raise DataError(
            f"{other.dataset} was fetched from the same files as {own.dataset}, so it is not another data set; "
            f"its test images are measured by `brainmri evaluate --dataset {own.dataset}`."
        )


def _fetched(pack: PackPointer, job: Job) -> FetchPointer | None:
    try:
        mapping = follow(job.layout, MappingPointer, pack.mapping_pointer)
        return follow(job.layout, FetchPointer, mapping.fetch_pointer) if mapping.fetch_pointer else None
    except (ConfigError, IntegrityError):
        return None


def take_out(learnt: TrainingImages, other: PackedImages, config: CopySearchConfig, job: Job) -> TakenOut:
    """Find the images of another data set that a checkpoint may have seen.

    These are copies, in any orientation that the search tries, of a training or validation image; images of their patients;
    and images of the same patient or group as such a copy, since the copy shows that patient.

    Parameters
    ----------
    learnt : TrainingImages
        The images of the checkpoint's own data set.
    other : PackedImages
        N images of the other data set.
    config : CopySearchConfig
        What counts as a copy.
    job : Job
        The run.
    """
    own = learnt.images
    pairs = _copies(own, other, config).sort_values("correlation", ascending=False, kind="stable")
    reason = np.full(len(other.table), "", object)
    like = np.full(len(reason), -1)
    copy = pd.DataFrame(index=range(len(reason)), columns=["kind", "orientation", "correlation"])
    for side in ("training", "validation"):
        best = pairs[np.isin(pairs["a"], learnt.side(side))].drop_duplicates("b")
        best = best[reason[best["b"].to_numpy()] == ""]
        rows = best["b"].to_numpy(np.int64)
        reason[rows], like[rows] = f"copy_of_{side}", best["a"].to_numpy(np.int64)
        copy.loc[rows] = best[["kind", "orientation", "correlation"]].to_numpy(object)
    copied = np.flatnonzero(reason != "")
    for side in ("training", "validation"):
        rows, partners = _of_patients(own, learnt.side(side), other, job)
        new = reason[rows] == ""
        reason[rows[new]], like[rows[new]] = f"patient_in_{side}", partners[new]
    rows, partners = _relatives(other.table, copied)
    new = reason[rows] == ""
    reason[rows[new]], like[rows[new]] = "related_to_copy", like[partners[new]]
    taken = np.flatnonzero(reason != "")
    table = pd.DataFrame(
        {
            "position": taken,
            "path": other.table["path"].to_numpy(object)[taken],
            "reason": reason[taken],
            "like": own.table["path"].to_numpy(object)[like[taken]],
        }
    ).join(copy.loc[taken].reset_index(drop=True))
    tested = np.union1d(
        pairs["b"][np.isin(pairs["a"], learnt.side("test"))],
        _of_patients(own, learnt.side("test"), other, job)[0],
    )
    return TakenOut(table[TAKEN_COLUMNS], like[taken], int((reason[tested.astype(np.int64)] == "").sum()))


def _copies(own: PackedImages, other: PackedImages, config: CopySearchConfig) -> pd.DataFrame:
    both = own.trimmed is not None and other.trimmed is not None
    return find_copies_across(
        own.table,
        own.thumbs,
        other.table,
        other.thumbs,
        config,
        trimmed=(own.trimmed, other.trimmed) if both else None,  # type: ignore[arg-type]
    )


def _of_patients(own: PackedImages, among: I64, other: PackedImages, job: Job) -> tuple[I64, I64]:
    """Return the positions of the other images whose patient is among our own, and the first own image of each."""
    part = own.table.iloc[among]
    shared = shared_patients(own.mapping, part, other.mapping, other.table, job.layout)
    first: dict[str, int] = {}
    for position, name in zip(among.tolist(), known_patients(part).tolist(), strict=True):
        if name in shared:
            first.setdefault(name, position)
    partner = np.array([first.get(name, -1) for name in known_patients(other.table)], np.int64)
    return np.flatnonzero(partner >= 0), partner[partner >= 0]


def _relatives(table: pd.DataFrame, copied: I64) -> tuple[I64, I64]:
    """Return the positions of images in the same unit as a copied image, and the first copied image of each."""
    units = independent_units(table)
    first: dict[str, int] = {}
    for position in copied.tolist():
        first.setdefault(units[position], position)
    partner = np.array([first.get(name, -1) for name in units], np.int64)
    return np.flatnonzero(partner >= 0), partner[partner >= 0]
