from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from brainmri_core.evaluation.external_warnings import no_score
from brainmri_core.evaluation.taken_out import TakenOut

TABLE = pd.DataFrame({"path": ["a", "b", "c"]})


def taken(*reasons: str) -> TakenOut:
    table = pd.DataFrame({"position": range(len(reasons)), "path": list("abc")[: len(reasons)]})
    return TakenOut(table.assign(reason=list(reasons)), np.zeros(len(reasons), np.int64))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (taken(), "No image is of a class that the model knows"),
        (taken(*["copy_of_training"] * 3), r"3 of the 3 images \(3 .*\): nothing is left"),
        (taken("copy_of_training"), r"1 of the 3 images \(1 .*\), and no other is of a class that it knows"),
    ],
)
def test_why_there_is_no_score_is_one_sentence_with_the_reasons(found: TakenOut, words: str) -> None:
    said = no_score(TABLE, found, 0)
    assert said is not None and re.search(words, said)
    assert no_score(TABLE, found, 1) is None
