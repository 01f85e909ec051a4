from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from brainmri_core.errors import IntegrityError
from brainmri_core.evaluation.prediction_table import (
    PREDICTION_COLUMNS,
    labels_of,
    logits_of,
    prediction_table,
    read_predictions,
)
from brainmri_core.project.sample_table import write_samples

CLASSES = ["glioma", "no tumour", "pituitary <b>"]


@pytest.fixture
def table() -> pd.DataFrame:
    samples = pd.DataFrame(
        {
            "row": [4, 5, 9],
            "path": ["a.png", 'b,\n"c".png', "é.png"],
            "group": ["g1", "g1", "g2"],
            "split": ["test", "test", "validation"],
            "label": ["glioma", "pituitary <b>", "no tumour"],
            "class_index": [0, 2, 1],
            "width": [1, 2, 3],
        },
        index=[7, 8, 9],
    )
    logits = np.array([[2.0, 1.0, 0.0], [0.5, 3.0, -1.0], [1.0, 1.0, 0.0]], np.float32)
    return prediction_table(samples, logits, CLASSES, np.array([0.5, np.nan, 2.0]))


def test_one_row_holds_all_that_is_known_of_an_image(table: pd.DataFrame) -> None:
    classes = [f"{kind}_{name}" for kind in ("prob", "logit") for name in CLASSES]
    assert set(table.columns) == {*PREDICTION_COLUMNS, "patient", *classes}
    assert table.columns.tolist()[-len(classes) :] == classes
    assert table["predicted"].tolist() == ["glioma", "no tumour", "glioma"], "the first of equals"
    assert table["correct"].tolist() == [True, False, False]
    shares = table[[f"prob_{name}" for name in CLASSES]].to_numpy()
    assert shares == pytest.approx(softmax(logits_of(table, CLASSES), axis=1), rel=1e-6)
    assert shares.sum(axis=1) == pytest.approx(1)
    assert labels_of(table).tolist() == [0, 2, 1]


def test_the_file_gives_back_what_was_written(table: pd.DataFrame, tmp_path: Path) -> None:
    write_samples(tmp_path / "predictions.parquet", table)
    again, classes = read_predictions(tmp_path / "predictions.parquet")
    assert classes == CLASSES
    pd.testing.assert_frame_equal(again, table, check_dtype=False)
    assert logits_of(again, classes).dtype == np.float32
    assert (logits_of(again, classes) == logits_of(table, CLASSES)).all()


def test_a_table_of_something_else_is_refused(table: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    with pytest.raises(IntegrityError, match="is missing"):
        read_predictions(path)
    write_samples(path, table.drop(columns="prob_glioma"))
    with pytest.raises(IntegrityError, match="lacks its class columns"):
        read_predictions(path)
    write_samples(path, table[["path", "split"]])
    with pytest.raises(IntegrityError, match="lacks the column"):
        read_predictions(path)
    path.write_bytes(b"PAR1 not parquet")
    with pytest.raises(IntegrityError, match="cannot be read"):
        read_predictions(path)
