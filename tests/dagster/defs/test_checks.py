from __future__ import annotations

import re

import pytest
from dagster import AssetCheckSeverity

from brainmri_core.evaluation.baselines import Baseline
from brainmri_core.evaluation.metrics_schema import EvaluationMetrics
from brainmri_core.evaluation.regression import Regression, regression
from brainmri_dagster.defs.checks import evaluation_results
from tests.core.evaluation.documents_case import evaluation_document
from tests.core.evaluation.metrics_case import votes
from tests.dagster.conftest import PHANTOM, Workbench, checks_of
from tests.dagster.defs.champion_case import contender, pack_of

pytestmark = pytest.mark.training

ERROR, WARN = AssetCheckSeverity.ERROR, AssetCheckSeverity.WARN


def metrics(*beaten: str, before: float = 0.3, after: float | None = 0.1) -> EvaluationMetrics:
    """The metrics of an evaluation with these verdicts and calibration errors; what no check reads is arbitrary."""
    rules = [Baseline(f"rule {place}", "", votes([0] * 60), False) for place in range(len(beaten))]
    made = evaluation_document(rules, PHANTOM)
    rows = [
        row.model_copy(update={"macro_f1": 0.5 + place / 10, "beaten": verdict})
        for place, (row, verdict) in enumerate(zip(made.baselines, beaten, strict=True))
    ]
    errors = {
        name: None if value is None else made.calibration.before.model_copy(update={"ece_equal_width": value})
        for name, value in {"before": before, "after": after}.items()
    }
    calibration = made.calibration.model_copy(update=errors)
    return made.model_copy(update={"macro_f1": 0.75, "baselines": rows, "calibration": calibration})


@pytest.mark.parametrize(
    ("beaten", "passed", "severity", "message"),
    [
        (("yes", "yes"), True, None, "The model beats all 2 baselines; the best is rule 1 with 0.600."),
        (("yes", "unclear"), False, WARN, "The model is not clearly better than rule 1."),
        (("no", "unclear"), False, ERROR, "The model does not beat rule 0."),
        ((), False, WARN, "There is no baseline to beat: there is no training image to fit them on."),
    ],
)
def test_baselines_must_be_beaten(
    beaten: tuple[str, ...], passed: bool, severity: AssetCheckSeverity | None, message: str
) -> None:
    found = evaluation_results(metrics(*beaten), 0.15, None)[0]
    assert (found.check_name, found.passed, found.description) == ("beats_baselines", passed, message)
    assert passed or found.severity is severity


@pytest.mark.parametrize(
    ("before", "after", "bound", "passed"),
    [(0.3, 0.1, 0.15, True), (0.1, 0.3, 0.15, False), (0.1, None, 0.15, True), (0.3, None, 0.15, False)],
)
def test_the_calibration_error_after_scaling_is_held_to_the_bound(
    before: float, after: float | None, bound: float, passed: bool
) -> None:
    found = evaluation_results(metrics("yes", before=before, after=after), bound, None)[1]
    assert (found.check_name, found.passed) == ("calibration", passed)
    assert ("after" if after is not None else "before") in str(found.description)


def test_only_a_fall_beyond_noise_is_a_regression() -> None:
    below = Regression(0.5, 0.7, [-0.3, -0.1], 40)
    unsure = Regression(0.5, 0.7, [-0.3, 0.1], 40)
    assert [evaluation_results(metrics("yes"), 1.0, item)[2].passed for item in (below, unsure)] == [
        False,
        True,
    ]


@pytest.mark.full
def test_an_evaluation_is_compared_with_the_checkpoint_before_and_ranked(evaluated: Workbench) -> None:
    stages = ["model_checkpoint", "evaluation"]
    first = checks_of(evaluated.done(stages, "train.data.seed=5", "train.data.val_seed=42"))
    message = first["no_regression"].description
    assert re.search(r"on the same \d+ validation images", message), (
        "the first run's checkpoint is compared with"
    )
    again = checks_of(evaluated.done(["evaluation"]))
    assert again["no_regression"].description == message, "the same checkpoint is not compared with itself"
    other = checks_of(evaluated.done(["evaluation"], "evaluate.mirror=true"))["no_regression"].description
    assert other.startswith("No other checkpoint"), "what was predicted otherwise is not compared"
    seeds = ("train.data.seed=43", "train.data.val_seed=42")
    joined = evaluated.done([*stages, "leaderboard"], *seeds, experiment="seed-43")
    message = checks_of(joined)["no_regression"].description
    assert message.startswith("No other checkpoint"), "experiments go by themselves"
    shown = joined.asset_materializations_for_node("leaderboard")[0].metadata
    assert (shown["experiments"].value, shown["ranked_by"].value) == (2, "validation")
    assert {"default", "seed-43"} <= {cell.strip() for cell in str(shown["leaderboard"].value).split("|")}
    assert "data:image/jpeg;base64," in str(shown["plot"].value)
    made = joined.asset_materializations_for_node("evaluation")[0].metadata
    assert (made["test_split_looks"].value, made["test_split_checkpoints"].value) == (5, 3)


def test_a_model_that_is_worse_on_validation_only_is_a_regression(packed: Workbench) -> None:
    pack = pack_of(packed)
    (_, good), (_, worse), (_, better) = (
        contender(packed, f"fall-{place}", place, knows=True, pack=pack, wrong_on=wrong)
        for place, wrong in enumerate([None, "validation", "test"])
    )
    config = packed.config("evaluate.data.seed=1", "evaluate.bootstrap_resamples=200").evaluate
    fallen = regression(config, good, worse, packed.layout)
    assert fallen is not None
    assert (fallen.worse, fallen.now, fallen.before, fallen.basis) == (True, 0.0, 1.0, "validation")
    kept = regression(config, good, better, packed.layout)
    assert kept is not None
    assert not kept.worse
