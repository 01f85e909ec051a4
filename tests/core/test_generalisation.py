"""The matrix of all data sets, from external evaluations whose numbers are known."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from brainmri_core.errors import DataError
from brainmri_core.generalisation import COLUMNS
from tests.core.generalisation_case import Matrix

A, B, C = "one/a", "two/<b>", "three/c"


@pytest.fixture
def matrix(tmp_path: Path) -> Matrix:
    return Matrix(tmp_path)


def test_every_pair_and_its_numbers_are_in_the_table(matrix: Matrix) -> None:
    matrix.pair(A, B, 0.8, taken_out=10, own=0.95)
    matrix.pair(A, C, None, taken_out=40, own=0.95)
    matrix.pair(B, A, 0.6)
    pointer, table, _ = matrix.generalise()
    assert list(table.columns) == COLUMNS
    rows = table.set_index(["trained_on", "evaluated_on"])
    found = rows.loc[(A, B)]
    assert found[["macro_f1", "own", "difference", "taken_out_share"]].tolist() == pytest.approx(
        [0.8, 0.95, -0.15, 0.25]
    )
    assert found[["low", "high", "difference_low", "difference_high"]].tolist() == pytest.approx(
        [0.7, 0.9, -0.25, -0.05]
    )
    assert found[["images", "groups", "taken_out"]].tolist() == [30, 9, 10]
    assert rows.loc[(A, C), "reason"] == "every image was in training"
    assert rows.loc[(A, C), ["macro_f1", "difference"]].isna().all()
    assert rows.loc[(B, A), ["own", "difference"]].isna().all()
    assert (pointer.pairs, pointer.scored) == (3, 2)


def test_models_are_ranked_by_their_worst_then_by_the_mean(matrix: Matrix) -> None:
    for trained, scores in ((A, (0.9, 0.5)), (B, (0.6, 0.6)), (C, (0.6, 0.7))):
        for other, score in zip([name for name in (A, B, C) if name != trained], scores, strict=True):
            matrix.pair(trained, other, score)
    pointer, _, page = matrix.generalise()
    models = pd.read_csv(matrix.layout.absolute(pointer.folder) / "models.csv")
    assert models["trained_on"].tolist() == [C, B, A]
    assert models["worst"].tolist() == [0.6, 0.6, 0.5]
    assert models["mean"].tolist() == pytest.approx([0.65, 0.6, 0.7])
    assert models["worst_on"].tolist() == [A, A, C]
    assert (pointer.best, pointer.best_worst, pointer.best_mean) == (C, 0.6, pytest.approx(0.65))
    assert page.count("<b>") > 6 and "two/&lt;b&gt;" in page and "<b></" not in page


def test_a_score_on_images_that_may_have_been_seen_is_not_ranked(matrix: Matrix) -> None:
    matrix.pair(A, B, 0.99, obstacle="its pack is gone")
    matrix.pair(B, A, 0.4)
    pointer, table, page = matrix.generalise()
    assert pointer.best == B
    assert table.loc[table["trained_on"] == A, "obstacle"].tolist() == ["its pack is gone"]
    assert "Nothing was taken out of two/&lt;b&gt;, as its pack is gone." in page


def test_only_the_newest_evaluation_of_a_pair_counts(matrix: Matrix) -> None:
    matrix.pair(A, B, 0.3)
    before = matrix.generalise()[0]
    matrix.pair(A, B, 0.7, run_id="r2")
    after, table, _ = matrix.generalise("g2")
    assert table["macro_f1"].tolist() == [0.7] and table["run_id"].tolist() == ["r2"]
    assert before.content_hash != after.content_hash


def test_a_row_of_several_checkpoints_is_told(matrix: Matrix) -> None:
    matrix.pair(A, B, 0.5)
    matrix.pair(A, C, 0.5, checkpoint="d" * 64)
    _, _, page = matrix.generalise()
    assert "The pairs of one/a were measured with several checkpoints" in page
    assert [record["trained_on"] for record in matrix.records if record["level"] == "WARNING"] == [A]


def test_pairs_without_any_score_are_a_matrix_too(matrix: Matrix) -> None:
    matrix.pair(A, B, None, taken_out=40)
    pointer, table, page = matrix.generalise()
    assert pointer.best is None and pointer.scored == 0 and len(table) == 1
    assert "every image was in training" in page
    with Image.open(matrix.layout.absolute(pointer.plot)) as picture:
        assert picture.format == "PNG" and min(picture.size) > 200


def test_without_an_external_evaluation_there_is_no_matrix(matrix: Matrix) -> None:
    with pytest.raises(DataError, match=r"backfill --select external_evaluation"):
        matrix.generalise()
