"""Asset checks: the findings of validation and evaluation as Dagster shows them, and the one that blocks later assets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from brainmri_core.evaluation.metrics_schema import Unavailable
from brainmri_core.validation.findings import BLOCKING_CHECKS, CHECKS

if TYPE_CHECKING:
    from brainmri_core.evaluation.external_schema import ExternalMetrics
    from brainmri_core.evaluation.metrics_schema import EvaluationMetrics
    from brainmri_core.evaluation.regression import Regression
    from brainmri_core.validation.finding import Finding
    from brainmri_core.validation.report import ValidationReport

_FILES_SHOWN = 20
PASSED = "validation_passed"


def _specs(
    asset: str, descriptions: Mapping[str, str], blocking: Collection[str] = ()
) -> list[dg.AssetCheckSpec]:
    return [
        dg.AssetCheckSpec(name, asset=asset, description=description, blocking=name in blocking)
        for name, description in descriptions.items()
    ]


VALIDATION_CHECKS = _specs(
    "validation_report",
    {
        PASSED: "No finding is blocking or as severe as validate.fail_on.",
        **{name: description for name, (description, _) in CHECKS.items()},
    },
    # Automation waits for every blocking check, even if it only warns. So no check that may only warn is blocking.
    blocking=(PASSED, *BLOCKING_CHECKS),
)
EVALUATION_CHECKS = _specs(
    "evaluation",
    {
        "beats_baselines": "Macro F1 is above that of every baseline, and so is the whole 95% interval of the gain.",
        "calibration": "The expected calibration error is at most evaluate.max_ece.",
        "no_regression": "Macro F1 is not below that of the previous checkpoint beyond noise, on the same images outside the test split.",
    },
)
EXTERNAL_CHECKS = _specs(
    "external_evaluation",
    {
        "unseen_images": "The images that the model may have seen are known and were taken out, and some are left to score.",
        "external_calibration": "The expected calibration error, with the temperature of the model's own data, is at most external.max_ece.",
        "generalises": "Macro F1 is not below that on the model's own test images beyond noise.",
    },
)


def validation_results(report: ValidationReport) -> list[dg.AssetCheckResult]:
    """Turn a validation report into one result per check, and one for the whole; checks that did not run get none.

    A finding that fails validation (blocking, or as severe as `fail_on`) is an ERROR, any other a WARN; a finding of
    severity info passes, with its message.
    """
    from brainmri_core.validation.report import failure_sentence

    whole = dg.AssetCheckResult(
        check_name=PASSED,
        passed=report.passed,
        description=failure_sentence(report),
        metadata={"partition": report.dataset, "fail_on": report.fail_on},
    )
    return [whole, *(_validation_result(name, report.finding(name), report) for name in report.checks)]


def _validation_result(name: str, finding: Finding | None, report: ValidationReport) -> dg.AssetCheckResult:
    if finding is None:
        return dg.AssetCheckResult(
            check_name=name, passed=True, description=CHECKS[name][0], metadata={"partition": report.dataset}
        )
    fails = finding.fails(report.fail_on)
    return dg.AssetCheckResult(
        check_name=name,
        passed=finding.severity == "info",
        severity=dg.AssetCheckSeverity.ERROR if fails else dg.AssetCheckSeverity.WARN,
        description=finding.message,
        metadata={
            "partition": report.dataset,
            "count": finding.count,
            "files": dg.MetadataValue.json(finding.files[:_FILES_SHOWN]),
        },
    )


def evaluation_results(
    metrics: EvaluationMetrics, max_ece: float, previous: Regression | None
) -> list[dg.AssetCheckResult]:
    """Turn ``metrics.json`` and the comparison with the previous checkpoint, if there is one, into one result per check."""
    about = {"partition": metrics.dataset, "macro_f1": metrics.macro_f1}
    before, after = metrics.calibration.before, metrics.calibration.after
    return [
        _baselines(metrics, about),
        _calibration(about, before.ece_equal_width, after.ece_equal_width if after else None, max_ece),
        _no_regression(about, previous),
    ]


def _result(
    name: str,
    about: Mapping[str, Any],
    description: str,
    severity: dg.AssetCheckSeverity | None,
    **metadata: float | str,
) -> dg.AssetCheckResult:
    """Return a result that passes if it has no severity; `about` is the metadata that all checks of an evaluation share."""
    return dg.AssetCheckResult(
        check_name=name,
        passed=severity is None,
        severity=severity or dg.AssetCheckSeverity.ERROR,
        description=description,
        metadata={**about, **metadata},
    )


def _baselines(metrics: EvaluationMetrics, about: Mapping[str, Any]) -> dg.AssetCheckResult:
    rows = metrics.baselines
    if not rows:
        message = f"There is no baseline to beat: {metrics.reasons['baselines']}."
        return _result("beats_baselines", about, message, dg.AssetCheckSeverity.WARN)
    best = max(rows, key=lambda row: row.macro_f1)
    figures: dict[str, float | str] = {
        "best_baseline": best.name,
        "best_baseline_macro_f1": best.macro_f1,
    }
    for verdict, severity, message in (
        ("no", dg.AssetCheckSeverity.ERROR, "The model does not beat"),
        ("unclear", dg.AssetCheckSeverity.WARN, "The model is not clearly better than"),
    ):
        names = [row.name for row in rows if row.beaten == verdict]
        if names:
            return _result("beats_baselines", about, f"{message} {', '.join(names)}.", severity, **figures)
    message = f"The model beats all {len(rows)} baselines; the best is {best.name} with {best.macro_f1:.3f}."
    return _result("beats_baselines", about, message, None, **figures)


def _calibration(
    about: Mapping[str, Any], before: float, after: float | None, bound: float, check: str = "calibration"
) -> dg.AssetCheckResult:
    when, error = ("before", before) if after is None else ("after", after)
    message = f"The calibration error {when} temperature scaling is {error:.3f}; the bound is {bound:.3f}."
    severity = None if error <= bound else dg.AssetCheckSeverity.WARN
    return _result(check, about, message, severity, ece=error, bound=bound)


def _no_regression(about: Mapping[str, Any], found: Regression | None) -> dg.AssetCheckResult:
    if found is None:
        message = "No other checkpoint with the same data and validation images was evaluated before."
        return _result("no_regression", about, message, None)
    between = (
        "none: too few resamples" if found.interval is None else "{:+.3f} to {:+.3f}".format(*found.interval)
    )
    message = (
        f"Macro F1 {found.now:.3f} after {found.before:.3f} on the same {found.images} {found.images_of} images; 95% interval of the "
        f"difference: {between}."
    )
    severity = dg.AssetCheckSeverity.ERROR if found.worse else None
    return _result("no_regression", about, message, severity, previous_macro_f1=found.before)


def external_results(metrics: ExternalMetrics, max_ece: float) -> list[dg.AssetCheckResult]:
    """Turn ``metrics.json`` of an external evaluation into one result per check; without a score only the first has one."""
    results = [_unseen_images(metrics)]
    if (scores := metrics.scores) is not None:
        before, after = scores.calibration.before, scores.calibration.after
        error = after.ece_equal_width if after else None
        about = _about_external(metrics)
        calibrated = _calibration(about, before.ece_equal_width, error, max_ece, "external_calibration")
        results += [calibrated, _generalises(metrics)]
    return results


def _about_external(metrics: ExternalMetrics) -> dict[str, Any]:
    return {
        "partition": f"{metrics.dataset}|{metrics.trained_on}",
        "macro_f1": metrics.scores.macro_f1 if metrics.scores else None,
    }


def _unseen_images(metrics: ExternalMetrics) -> dg.AssetCheckResult:
    images, obstacle = metrics.images, metrics.taken_out.obstacle
    severity = None
    message = (
        f"{images.taken_out:,} of {images.predicted:,} images were taken out; {images.scored:,} are scored."
    )
    if obstacle is not None:
        message, severity = f"Nothing could be taken out: {obstacle}.", dg.AssetCheckSeverity.WARN
    if metrics.reason is not None:
        message, severity = metrics.reason, dg.AssetCheckSeverity.ERROR
    return _result("unseen_images", _about_external(metrics), message, severity, **images.model_dump())


def _generalises(metrics: ExternalMetrics) -> dg.AssetCheckResult:
    item = metrics.measures.get("macro_f1")
    if item is None or item.interval is None:
        compared = metrics.comparison
        reason = (
            compared.reason if isinstance(compared, Unavailable) else "too few resamples define a difference"
        )
        message = f"There is nothing to compare with: {reason}."
        return _result("generalises", _about_external(metrics), message, dg.AssetCheckSeverity.WARN)
    low, high = item.interval
    message = (
        f"Macro F1 {item.external:.3f}, against {item.own:.3f} on its own test images; 95% interval of the difference: "
        f"{low:+.3f} to {high:+.3f}."
    )
    severity = dg.AssetCheckSeverity.WARN if high < 0 else None
    return _result("generalises", _about_external(metrics), message, severity, difference=item.difference)
