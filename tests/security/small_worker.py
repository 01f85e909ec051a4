"""The real worker of fingerprints with less memory, so that a smaller image is too large for it."""

from __future__ import annotations

from brainmri_core.copies.fingerprint_worker import answer
from brainmri_core.images import worker

if __name__ == "__main__":
    worker.MEMORY_LIMIT = 768 << 20
    worker.serve(lambda data, name: [answer(data, name)])
