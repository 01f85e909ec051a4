"""Batches: from packed pixels to the model's input."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import torch
import torch.nn.functional as F

from brainmri_core.arrays import I64, U8
from brainmri_core.learning.checkpoint import Preprocessing
from brainmri_core.system.threads import threads

_CHUNK = 256


def gather(pack: U8, rows: I64) -> torch.Tensor:
    """Copy some rows of a pack into a uint8 tensor ``(B, C, H, W)``."""
    batch = torch.from_numpy(np.ascontiguousarray(pack[rows]))
    return batch.unsqueeze(1) if batch.ndim == 3 else batch.permute(0, 3, 1, 2)


def shrink(batch: torch.Tensor, size: int) -> torch.Tensor:
    """Resize a uint8 batch ``(B, C, H, W)`` to ``size x size``, antialiased."""
    if batch.shape[-1] == size:
        return batch
    return resample(batch.float(), size).round_().clamp_(0, 255).to(torch.uint8)


def resample(values: torch.Tensor, size: int) -> torch.Tensor:
    """Resize a float batch ``(B, C, H, W)`` to ``size x size``, antialiased."""
    if values.shape[-1] == size:
        return values
    return F.interpolate(values, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def _writable_view(pack: U8) -> U8:
    """Map a read-only pack copy-on-write: torch requires writable memory, and the file stays unchanged."""
    if isinstance(pack, np.memmap) and pack.filename is not None:
        return np.memmap(pack.filename, pack.dtype, "c", pack.offset, pack.shape)
    view = pack.view()
    with suppress(ValueError):  # it is no map, but memory that stays read-only
        view.flags.writeable = True  # a map of several files is copy-on-write
    return view


def resident(pack: U8, rows: I64, size: int) -> torch.Tensor:
    """Return some rows of a pack as one uint8 tensor ``(N, C, size, size)``.

    Where `rows` is the whole pack and `size` the pack's, nothing is copied: the tensor is the memory map.
    """
    if pack.shape[1] == size and len(rows) == len(pack) and bool((rows == np.arange(len(pack))).all()):
        whole = torch.from_numpy(_writable_view(pack))
        return whole.unsqueeze(1) if whole.ndim == 3 else whole.permute(0, 3, 1, 2)
    parts = [
        shrink(gather(pack, rows[start : start + _CHUNK]), size) for start in range(0, len(rows), _CHUNK)
    ]
    return torch.cat(parts)


def read_ahead(
    pixels: torch.Tensor, batches: Sequence[I64], workers: int, device: torch.device
) -> Iterator[tuple[I64, torch.Tensor]]:
    """Yield the rows and uint8 pixels ``(B, C, S, S)`` of each batch, in order.

    Parameters
    ----------
    pixels : torch.Tensor
        uint8, ``(N, C, S, S)``; on the CPU (memory map or not) or on `device`.
    batches : sequence of numpy.ndarray
        int64 rows of each batch.
    workers : int
        Threads that read ahead, for pixels that must come from the disk or go to an accelerator; 0 reads in line.
    """

    def take(rows: I64) -> torch.Tensor:
        batch = pixels[torch.from_numpy(rows).to(pixels.device)]
        return batch.pin_memory() if device.type == "cuda" and not batch.is_cuda else batch

    if workers == 0:
        for rows in batches:
            yield rows, take(rows)
        return
    with threads(workers) as pool:
        waiting = deque(pool.submit(take, rows) for rows in batches[: 2 * workers])
        for position, rows in enumerate(batches):
            batch = waiting.popleft().result()
            if (following := position + 2 * workers) < len(batches):
                waiting.append(pool.submit(take, batches[following]))
            yield rows, batch


def to_float(batch: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a uint8 batch ``(B, C, S, S)`` as float32 in [0, 1] on the device, channels-last."""
    values = batch.to(device, non_blocking=True).float().div_(255)
    return values.contiguous(memory_format=torch.channels_last)


def normalise(values: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Normalise a float batch ``(B, C, S, S)`` with the mean and standard deviation of the training images.

    Where the channels differ from the model's, gray is repeated, and colour is averaged to gray.
    """
    if values.shape[1] == 3 and preprocessing.channels == 1:
        values = values.mean(1, keepdim=True)
    mean = torch.tensor(preprocessing.mean, device=values.device).view(1, -1, 1, 1)
    std = torch.tensor(preprocessing.std, device=values.device).view(1, -1, 1, 1)
    return ((values - mean) / std).contiguous(memory_format=torch.channels_last)


def to_input(batch: torch.Tensor, preprocessing: Preprocessing, device: torch.device) -> torch.Tensor:
    """Turn a uint8 batch of fitted images into the model's input, for evaluation and prediction alike.

    Parameters
    ----------
    batch : torch.Tensor
        uint8, ``(B, C, P, P)`` at the pack's size.
    preprocessing : Preprocessing
        Of the model.
    device : torch.device
        Where the result lies.

    Returns
    -------
    torch.Tensor
        float32, ``(B, channels, image_size, image_size)``, channels-last.
    """
    return normalise(to_float(shrink(batch, preprocessing.image_size), device), preprocessing)


def iterate(
    pack: U8, rows: I64, batch_size: int, preprocessing: Preprocessing, device: torch.device
) -> Iterator[torch.Tensor]:
    """Yield the model's input for rows of a pack, batch by batch, in order.

    Parameters
    ----------
    pack : numpy.ndarray
        Packed images, uint8 ``(N, P, P)`` or ``(N, P, P, 3)``.
    rows : numpy.ndarray
        Rows of the pack, int64.
    batch_size : int
        Number of images per batch; the last may be smaller.
    preprocessing : Preprocessing
        Image size, channels and normalisation of the model.
    device : torch.device
        Device of the batches.
    """
    for start in range(0, len(rows), batch_size):
        yield to_input(gather(pack, rows[start : start + batch_size]), preprocessing, device)
