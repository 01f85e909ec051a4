"""The program of a worker process that decodes images and fits them to a model's size; run by `isolation`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from brainmri_core.images.decode import DecodeError
from brainmri_core.images.fit import Fit, decode_fitted, fit_image
from brainmri_core.images.isolation import message
from brainmri_core.images.levels import GrayRange
from brainmri_core.images.medical import medical_kind, medical_slices
from brainmri_core.images.worker import serve
from brainmri_core.text import printable


def answers(
    data: bytes, name: str, size: int, fit: Fit, gray: bool, gray_ranges: dict[str, GrayRange]
) -> Iterator[bytes]:
    """Encode the fitted pixels of each slice of a file (an ordinary image has one), or the reason why there are none."""
    try:
        kind = medical_kind(data, name)
        if kind is None:
            decoded, pixels = decode_fitted(
                data, name=name, size=size, fit=fit, gray=gray, gray_ranges=gray_ranges
            )
            yield message({"slices": 1, "colourfulness": decoded.colourfulness}, pixels.tobytes())
            return
        header: dict[str, Any] = {"reason": f"{printable(name)} holds no image."}
        body = b""
        for number, (count, flat) in enumerate(medical_slices(data, name, kind), 1):
            if (
                number > 1
            ):  # a file may hold fewer slices than it says: only the last one found ends the answer
                yield message({**header, "more": True}, body)
            pixels = fit_image(flat, size, fit)
            body = (pixels if gray else np.repeat(pixels[..., None], 3, axis=2)).tobytes()
            header = {"slices": count, "slice": number, "colourfulness": 0.0}
        yield message(header, body)
    except DecodeError as error:
        yield message({"reason": str(error)})


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    serve(lambda data, name: answers(data, name, **settings))
