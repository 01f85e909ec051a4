"""The program of a worker process that splits DICOM, NIfTI and MATLAB files into slices; run by `isolation`.

It answers each slice as a PNG, so that later stages read it like any image. Of a header, it passes on only hashes of the
patient and study ids, which the parent process hashes again with the project's secret key.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from brainmri_core.config.data import SlicesConfig
from brainmri_core.escaping import printable
from brainmri_core.images.decode import DecodeError
from brainmri_core.images.isolation import MAX_ANSWER, message
from brainmri_core.images.medical import Slice, medical_kind, medical_slices
from brainmri_core.images.worker import serve


def answers(data: bytes, name: str, rule: SlicesConfig, any_modality: bool) -> Iterator[bytes]:
    """Yield a message per slice of a file that `rule` chooses, then one with their count; or one with a reason."""
    title = printable(name)
    try:
        kind = medical_kind(data, name)
        if kind is None:
            raise DecodeError(f"{title} is neither DICOM, NIfTI nor MATLAB.")
        used, blank, count, volumes = 0, 0, 0, 1
        for number, found in enumerate(medical_slices(data, name, kind, any_modality=any_modality), 1):
            count, volumes = found.count, found.volumes
            if number - 1 not in rule.chosen(count):
                continue
            if found.pixels.min() == found.pixels.max():
                blank += 1
                continue
            used += 1
            yield _encoded(found, number, title)
        if not used:
            raise DecodeError(f"{title} holds no slice that shows anything.")
        yield message({"slices": count, "used": used, "blank": blank, "volumes": volumes})
    except DecodeError as error:
        yield message({"reason": str(error)})


def _encoded(found: Slice, number: int, title: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(found.pixels).save(buffer, "PNG", compress_level=3)
    png = buffer.getvalue()
    mask = b"" if found.mask is None else np.packbits(found.mask).tobytes()
    if len(png) + len(mask) > MAX_ANSWER:
        raise DecodeError(
            f"{title} has slices that are too large; at most {MAX_ANSWER >> 20} MiB each are kept."
        )
    header: dict[str, Any] = {
        "more": True,
        "slice": number,
        "png": len(png),
        "label": found.label,
        "patient": _digest(found.patient),
        "study": _digest(found.study),
        "mask": None if found.mask is None else found.mask.shape,
    }
    return message(header, png, mask)


def _digest(name: str | None) -> str | None:
    return None if name is None else hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    chosen = SlicesConfig.model_validate(settings["rule"])
    serve(lambda data, name: answers(data, name, chosen, settings["any_modality"]))
