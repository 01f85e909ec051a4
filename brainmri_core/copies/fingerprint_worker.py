"""The program of a worker process that fingerprints images; run by `isolation`."""

from __future__ import annotations

from brainmri_core.copies.fingerprint import fingerprint
from brainmri_core.images.decode import DecodeError
from brainmri_core.images.isolation import message
from brainmri_core.images.worker import serve


def answer(data: bytes, name: str) -> bytes:
    """Fingerprint one image and encode the result, or the reason why there is none."""
    try:
        found = fingerprint(data, name)
    except DecodeError as error:
        return message({"reason": str(error)})
    header = {"pixel_sha256": found.pixel_sha256, "colourfulness": found.colourfulness, "depth": found.depth}
    return message(header, found.thumb.tobytes(), found.trimmed_thumb.tobytes())


if __name__ == "__main__":
    serve(lambda data, name: [answer(data, name)])
