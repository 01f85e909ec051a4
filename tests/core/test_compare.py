from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from brainmri_core.compare import PREDICTIONS_NAME, compare, find_evaluation
from brainmri_core.errors import DataError, MissingUpstreamError
from brainmri_core.evaluation.prediction_table import prediction_table
from brainmri_core.pages.comparison_page import comparison_lines, write_comparison
from brainmri_core.project.layout import ROOT_VARIABLE, Layout
from brainmri_core.project.sample_table import write_samples
from brainmri_dagster.cli import app

CLASSES = ["glioma", "notumor"]
RIGHT, WRONG = 2.0, -2.0


def make_folder(
    folder: Path,
    right: list[bool],
    classes: list[str] = CLASSES,
    name: str = "i{}.png",
    groups: int = 1,
    patients: int | None = None,
) -> Path:
    """Write an evaluation whose images are predicted right or wrong as `right` says.

    Every `groups` images form one group, and every `patients` are of one known patient.
    """
    n = len(right)
    truth = np.arange(n) % 2
    margin = np.where(right, RIGHT, WRONG) * np.where(truth == 0, 1, -1)
    logits = np.stack([margin, -margin], axis=1).astype(np.float32)
    samples = pd.DataFrame(
        {
            "row": np.arange(n),
            "path": [name.format(number) for number in range(n)],
            "group": [f"g{number // groups}" for number in range(n)],
            "split": "test",
            "label": np.asarray(classes)[truth],
            "class_index": truth,
        }
    )
    if patients is not None:
        samples["patient"] = [f"p{number // patients}" for number in range(n)]
    folder.mkdir(parents=True)
    table = prediction_table(samples, logits, classes, np.full(n, np.nan))
    write_samples(folder / PREDICTIONS_NAME, table.sample(frac=1, random_state=len(str(folder))))
    return folder


def test_hand_counted_case(tmp_path: Path) -> None:
    a = make_folder(tmp_path / "a", [True] * 10 + [False] * 10)
    b = make_folder(tmp_path / "bb", [True] * 9 + [False] + [True] * 8 + [False] * 2)
    found = compare(a, b, ("a", "b"), resamples=500, seed=1)
    assert (found.both, found.only_a, found.only_b, found.neither) == (9, 1, 8, 2)
    assert found.p_value == pytest.approx(2 * (1 + 9) / 2**9), "exact, two-sided, of 1 in 9"
    accuracy = next(item for item in found.differences if item.key == "accuracy")
    assert (accuracy.a, accuracy.b) == (0.5, 0.85)
    assert accuracy.interval is not None
    assert accuracy.interval[0] < 0.35 < accuracy.interval[1]
    assert accuracy.verdict == "B is better"
    loss = next(item for item in found.differences if item.key == "calibration.before.nll")
    assert loss.difference < 0
    assert loss.verdict == "B is better", "a lower loss is the better one"
    assert len(found.changed) == 9
    assert set(found.changed.columns) == {"path", "truth", "a", "b", "prob_a", "prob_b"}


def test_both_are_scored_on_the_same_draws(tmp_path: Path) -> None:
    right = (np.random.default_rng(3).random(200) < 0.7).tolist()
    a = make_folder(tmp_path / "a", right)
    b = make_folder(tmp_path / "bb", right)
    found = compare(a, b, ("a", "b"), resamples=300, seed=1)
    assert found.p_value is None
    for item in found.differences:
        assert item.interval == [0.0, 0.0], item.key
        assert item.verdict == "no difference beyond noise"
    *_, mcnemar, purpose = comparison_lines(found)
    assert "nothing to count" in mcnemar
    assert "choose by validation or out-of-fold scores" in purpose


def test_groups_are_resampled_not_images(tmp_path: Path) -> None:
    right = [True] * 40 + [False] * 40
    better = [True] * 60 + [False] * 20
    widths = []
    for groups in (1, 20):
        a = make_folder(tmp_path / f"a{groups}", right, groups=groups)
        b = make_folder(tmp_path / f"bb{groups}", better, groups=groups)
        item = compare(a, b, ("a", "b"), resamples=1000, seed=1).differences[2]
        assert item.key == "accuracy"
        assert item.interval is not None
        widths.append(item.interval[1] - item.interval[0])
    assert widths[1] > 2 * widths[0]


@pytest.mark.parametrize(("known_a", "known_b"), [(20, 20), (20, None), (None, 20)])
def test_patients_are_resampled_where_one_evaluation_knows_them(
    tmp_path: Path, known_a: int | None, known_b: int | None
) -> None:
    a = make_folder(tmp_path / "a", [True] * 40 + [False] * 40, patients=known_a)
    b = make_folder(tmp_path / "bb", [True] * 60 + [False] * 20, patients=known_b)
    assert compare(a, b, ("a", "b"), resamples=100, seed=1).groups == 4


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"classes": ["glioma", "pituitary"]}, "they cannot be compared"),
        ({"name": "other{}.png"}, "0 images in common, 8 only in the first, 8 only in the second"),
        ({"groups": 2}, "different groups"),
    ],
)
def test_different_test_sets_are_refused(tmp_path: Path, change: dict, sentence: str) -> None:
    a = make_folder(tmp_path / "a", [True] * 8)
    b = make_folder(tmp_path / "bb", [True] * 8, **change)
    with pytest.raises(DataError, match=sentence):
        compare(a, b, ("a", "b"), resamples=100, seed=1)


def test_an_unknown_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingUpstreamError, match="There is no evaluation 'first' in"):
        find_evaluation(Layout(root=tmp_path), "first")


def test_the_page_is_self_contained_and_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = '"><img src=x onerror=alert(1)>{}.png'
    a = make_folder(tmp_path / "<b>a", [True, False] * 10, name=hostile)
    b = make_folder(tmp_path / "<i>bb", [True] * 20, name=hostile)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "project"))
    done = CliRunner().invoke(app, ["compare", str(a), str(b), "--resamples", "200"])
    assert done.exit_code == 0, done.output
    assert "B is better" in done.stdout
    page = Path(done.stdout.splitlines()[-1].removeprefix("page: ")).read_text()
    assert "<img" not in page
    assert "<b>a" not in page
    assert "http" not in page
    assert "onerror=alert(1)&gt;1.png" in page
    assert "Research software, not a medical device" in page
    found = compare(a, b, ("a", "b"), resamples=100, seed=1)
    write_comparison(tmp_path / "again.html", found)
    assert (tmp_path / "again.html").stat().st_size > 1000


def test_a_refusal_is_one_sentence(tmp_path: Path) -> None:
    a = make_folder(tmp_path / "a", [True] * 8)
    b = make_folder(tmp_path / "bb", [True] * 8, name="x{}.png")
    done = CliRunner().invoke(app, ["compare", str(a), str(b)])
    assert done.exit_code == 4
    assert done.stderr.count("\n") == 1
