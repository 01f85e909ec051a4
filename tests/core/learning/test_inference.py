from __future__ import annotations

import numpy as np
import pytest

from brainmri_core.learning.inference import Predictions


def test_embeddings_that_were_not_asked_for_are_missed_by_name() -> None:
    logits = np.zeros((2, 3), np.float32)
    found = Predictions(logits, logits[:, :1])
    assert found.asked_embeddings is found.embeddings
    with pytest.raises(ValueError, match="embeddings=True"):
        _ = Predictions(logits, None).asked_embeddings
