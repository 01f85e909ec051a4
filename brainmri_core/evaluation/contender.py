"""A contender: the model of a checkpoint, which predicts any images of a data set with its own preprocessing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from brainmri_core.arrays import I64, U8, Mask
from brainmri_core.config.base import Precision
from brainmri_core.config.evaluation import EvaluateConfig
from brainmri_core.errors import IntegrityError
from brainmri_core.evaluation.tested_model import packs_trained_on, validation_of
from brainmri_core.images.pack import open_pack
from brainmri_core.images.preparation import prepared_images
from brainmri_core.learning.checkpoint import CheckpointMeta, load_model
from brainmri_core.learning.device import choose_device, choose_precision
from brainmri_core.learning.inference import Predictions, predict_evenly
from brainmri_core.project.job import Job
from brainmri_core.project.pointer_store import follow
from brainmri_core.project.pointers import CheckpointPointer, MappingPointer, PackPointer
from brainmri_core.project.sample_table import (
    FETCH_COLUMNS,
    RESIZE_COLUMNS,
    SPLIT_COLUMNS,
    known_patients,
    read_samples,
)
from brainmri_core.system.checksums import check_sha256

_CHUNK_BYTES = 256 << 20


@dataclass(frozen=True)
class Contender:
    """A checkpoint's model, and the arithmetic that is the same for both models of a comparison."""

    model: nn.Module
    meta: CheckpointMeta
    device: torch.device
    precision: Precision
    mirror: bool
    batch_size: int
    job: Job

    @classmethod
    def load(cls, checkpoint: CheckpointPointer, file: Path, config: EvaluateConfig, job: Job) -> Contender:
        """Load a checkpoint from a file.

        Raises
        ------
        IntegrityError
            If the file is not the recorded one.
        """
        check_sha256(file, checkpoint.checkpoint_sha256, "checkpoint")
        device = choose_device(job.env)
        model, meta = load_model(file, device)
        precision = choose_precision(config.precision, True, device)
        return cls(model, meta, device, precision, config.mirror, config.data.batch_size, job)

    def predicted_classes(self, table: pd.DataFrame, pack: PackPointer, classes: list[str]) -> I64:
        """Predict images of a pack: from its pixels if their preprocessing is the model's, else from their files.

        Parameters
        ----------
        table : pandas.DataFrame
            N rows of the pack's sample table.
        pack : PackPointer
            The pack.
        classes : list of str
            Class names by index of the result, a permutation of the model's.

        Returns
        -------
        numpy.ndarray
            int64 ``(N,)``: the class of each image; -1 where its file cannot be decoded.

        Raises
        ------
        StorageError, IntegrityError
            If a file is missing or was changed.
        """
        called = np.full(len(table), -1, np.int64)
        for positions, _, found in self.outputs(table, pack):
            called[positions] = found.logits.argmax(axis=1)
        order = np.array([*map(classes.index, self.meta.classes), -1], np.int64)
        return np.asarray(order[called], np.int64)

    def outputs(self, table: pd.DataFrame, pack: PackPointer) -> Iterator[tuple[I64, U8, Predictions]]:
        """Yield, in chunks, positions in the table, the model's input pixels and its predictions.

        Parameters
        ----------
        table, pack
            As in `calls`. Images whose file cannot be decoded are left out.
        """
        how = self.meta.preprocessing
        wanted = (how.pack_size, how.fit, how.colour, how.gray_ranges)
        alike = wanted == (pack.size, pack.fit, pack.channels == 3, pack.gray_ranges)
        for positions, pixels in self._packed(table, pack) if alike else self._prepared(table, pack):
            found = predict_evenly(
                self.model,
                pixels,
                np.arange(len(pixels)),
                how,
                device=self.device,
                batch_size=self.batch_size,
                precision=self.precision,
                tta=self.mirror,
            )
            yield positions, pixels, found

    def _packed(self, table: pd.DataFrame, pack: PackPointer) -> Iterator[tuple[I64, U8]]:
        pixels = open_pack(self.job.layout, pack)
        rows, most = table["row"].to_numpy(np.int64), self._most()
        for start in range(0, len(rows), most):
            part = rows[start : start + most]
            yield np.arange(start, start + len(part)), np.asarray(pixels[part])

    def _most(self) -> int:
        """Return the number of images per chunk, which are in memory at once."""
        how = self.meta.preprocessing
        return max(1, _CHUNK_BYTES // (how.pack_size**2 * (3 if how.colour else 1)))

    def _prepared(self, table: pd.DataFrame, pack: PackPointer) -> Iterator[tuple[I64, U8]]:
        """Yield, in chunks, positions in the table and the images with the model's preprocessing."""
        how = self.meta.preprocessing
        mapping = follow(self.job.layout, MappingPointer, pack.mapping_pointer)
        images = prepared_images(
            self.job.layout.absolute(mapping.dataset_root),
            table,
            size=how.pack_size,
            fit=how.fit,
            channels=3 if how.colour else 1,
            gray_ranges=how.gray_ranges,
        )
        while part := list(islice(images, self._most())):
            yield np.array([position for position, _ in part]), np.stack([pixels for _, pixels in part])


def packed_samples(pack: PackPointer, job: Job) -> pd.DataFrame:
    """Return the packed images of a sample table, in pack order."""
    columns = {**FETCH_COLUMNS, **SPLIT_COLUMNS, **RESIZE_COLUMNS}
    table = read_samples(job.layout.absolute(pack.samples), columns)
    return table[table["row"] >= 0].sort_values("row", ignore_index=True)


def trained_on(
    table: pd.DataFrame,
    packed: pd.DataFrame,
    pack: PackPointer,
    checkpoint: CheckpointPointer,
    meta: CheckpointMeta,
    job: Job,
) -> Mask:
    """Mark the images that a checkpoint was trained on, or whose group or patient it was trained on.

    Parameters
    ----------
    table, packed : pandas.DataFrame
        Rows to mark, and all packed rows, of the sample table whose groups count.
    pack : PackPointer
        The pack of that table.
    checkpoint, meta
        The checkpoint, which may have been trained on another split or version of the data set, and its metadata.
    job : Job
        The run.

    Returns
    -------
    numpy.ndarray
        bool ``(N,)`` for the rows of `table`.

    Raises
    ------
    IntegrityError
        If it is not recorded which images the checkpoint was trained on.
    """
    own = (
        packed
        if meta.data_hash == pack.content_hash
        else packed_samples(_pack_of(checkpoint, meta, job), job)
    )
    trained = own[(own["split"] == "train") & ~validation_of(own, meta)]
    # Compare files, too: the pixel hash of a JPEG is that of a reduced scale, which another version may have chosen differently.
    seen = packed["file_sha256"].isin(set(trained["file_sha256"]))
    seen |= packed["pixel_sha256"].isin(set(trained["pixel_sha256"]) - {""})
    patients = known_patients(table)
    known = (patients != "") & np.isin(patients, known_patients(trained))
    return np.asarray(table["group"].isin(set(packed.loc[seen, "group"])) | known, np.bool_)


def _pack_of(checkpoint: CheckpointPointer, meta: CheckpointMeta, job: Job) -> PackPointer:
    for pack in packs_trained_on(meta, job.layout, checkpoint.pack_pointer):
        if job.layout.absolute(pack.samples).is_file():
            return pack
    raise IntegrityError(
        f"The record of the data that the checkpoint {checkpoint.checkpoint} was trained on is missing, so it is unknown which "
        "images it has seen; split and resize again with the same settings as then."
    )
