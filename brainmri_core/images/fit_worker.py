"""The program of a worker process that decodes images and fits them to a model's size; run by `isolation`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from brainmri_core.arrays import U8, U16
from brainmri_core.escaping import printable
from brainmri_core.images.decode import DecodeError
from brainmri_core.images.fit import Fit, decode_fitted, fit_image
from brainmri_core.images.isolation import message
from brainmri_core.images.levels import GrayRange, gray_levels, own_range
from brainmri_core.images.medical import medical_kind, medical_slices
from brainmri_core.images.worker import serve


def answers(
    data: bytes,
    name: str,
    size: int,
    fit: Fit,
    gray: bool,
    gray_ranges: dict[str, GrayRange],
    any_modality: bool = False,
) -> Iterator[bytes]:
    """Yield a message per slice of a file (an ordinary image has one) with its fitted pixels, or one with a reason.

    Parameters
    ----------
    data, name
        Content and name of the file.
    size, fit, gray, gray_ranges
        As in `fit.decode_fitted`.
    any_modality
        As in `medical.medical_slices`.
    """
    header: dict[str, Any]
    try:
        kind = medical_kind(data, name)
        if kind is None:
            decoded, pixels = decode_fitted(
                data, name=name, size=size, fit=fit, gray=gray, gray_ranges=gray_ranges
            )
            header = {"slices": 1, "colourfulness": decoded.colourfulness}
            header |= {"width": decoded.width, "height": decoded.height}
            yield message(header, pixels.tobytes())
            return
        header = {"reason": f"{printable(name)} holds no image."}
        body = b""
        for number, found in enumerate(medical_slices(data, name, kind, any_modality=any_modality), 1):
            # A file may hold fewer slices than it declares, so only the end of the loop tells which one is the last.
            if number > 1:
                yield message({**header, "more": True}, body)
            pixels = fit_image(_levels(found.pixels, gray_ranges), size, fit)
            body = (pixels if gray else np.repeat(pixels[..., None], 3, axis=2)).tobytes()
            height, width = found.pixels.shape[:2]
            header = {"slices": found.count, "slice": number, "colourfulness": 0.0}
            header |= {"width": width, "height": height}
        yield message(header, body)
    except DecodeError as error:
        yield message({"reason": str(error)})


def _levels(pixels: U8 | U16, gray_ranges: dict[str, GrayRange]) -> U8:
    """Return the gray levels of a slice; 16-bit values are scaled by the range that `resize` measured."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    values = pixels.astype(np.float32)
    return gray_levels(values, gray_ranges.get("16-bit") or own_range(values, whole=True))


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    serve(lambda data, name: answers(data, name, **settings))
