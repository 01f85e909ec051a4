"""The batch predictions asset with its drift check, and what the UI shows of them."""

# No postponed annotations here: Dagster reads the type of `context` from the function itself.

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from brainmri_core.escaping import markdown
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointers import BatchPredictionPointer, FetchPointer
from brainmri_core.system.json_files import read_json
from brainmri_dagster.defs import metadata
from brainmri_dagster.defs.assets import stage_asset
from brainmri_dagster.running.stage_run import stage_run
from brainmri_dagster.running.upstream import require

_FEATURES_SHOWN = 6
DRIFT_CHECK = dg.AssetCheckSpec(
    "drift",
    asset="batch_predictions",
    description="The images look like the validation images of the model that predicted them, in size, intensity, edges and "
    "embedding.",
)


# After the champion if one run makes both, because the champion predicts.
@stage_asset("batch_predictions", "incoming", {"pytorch", "parquet"}, ("champion",), [DRIFT_CHECK])
def batch_predictions(
    context: dg.AssetExecutionContext, raw_dataset: FetchPointer | None
) -> Iterator[dg.MaterializeResult[BatchPredictionPointer]]:
    """Predictions of every image of a data set, labelled or not, by the model in use; only new images are computed."""
    with stage_run(context) as run:
        fetched = require(raw_dataset, "raw_dataset", run.job)
        from brainmri_core.batch_predict import batch_predict

        pointer = batch_predict(run.config.batch_predict, fetched, run.job)
        report = read_json(run.job.layout.absolute(pointer.report))
        headline = {"images": pointer.images, "unusable": pointer.unusable, "flagged": pointer.flagged}
        yield run.result(pointer, shown(run.job.layout, pointer, report), headline, [drift_result(report)])


def shown(layout: Layout, pointer: BatchPredictionPointer, report: Mapping[str, Any]) -> dict[str, Any]:
    """Return counts, drift and the path of the predictions, for the UI."""
    shares = _shares(report)
    return {
        "images": pointer.images,
        "unusable": pointer.unusable,
        "done_before": report["reused"],
        "model_of": pointer.trained_on,
        "model_sha256": pointer.model_sha256[:12],
        "classes": metadata.table(shares, "class"),
        **drift_numbers(report),
        **_drift_tables(report["drift"]),
        "caveats": dg.MetadataValue.md("\n".join(f"- {markdown(text)}" for text in report["caveats"])),
        "predictions": metadata.path_of(layout, pointer.predictions),
        "report": metadata.path_of(layout, pointer.report),
        "dagster/row_count": pointer.images,
    }


def _shares(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return for each class the number of images predicted as it, and its estimated share among the newest images."""
    labels = report["drift"]["labels"] or {}
    estimated, intervals = labels.get("estimated") or {}, labels.get("intervals") or {}
    rows: dict[str, dict[str, Any]] = {}
    for name, count in report["predicted"].items():
        low, high = intervals.get(name, (None, None))
        rows[name] = {
            "images": count,
            "estimated share of the newest": estimated.get(name),
            "from": low,
            "to": high,
        }
    return rows


def drift_numbers(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers to plot over time; what was not measured is left out."""
    newest, flagged = report["newest"]["images"], report["newest"]["flagged"]
    found: dict[str, Any] = {
        "newest_images": newest,
        "flagged_share": flagged / newest if newest and flagged is not None else None,
    }
    drift = report["drift"]
    for item in drift["measures"]:
        found |= {f"drift_{item['kind']}": item["squared"], f"limit_{item['kind']}": item["threshold"]}
    if drift["shift"] is not None:
        found |= {f"p_{item['kind']}": item["p_value"] for item in drift["shift"]["discrepancies"]}
        found["origin_auroc"] = drift["shift"]["origin"]["auroc"]
    return metadata.numbers(found)


def _drift_tables(drift: Mapping[str, Any]) -> dict[str, Any]:
    if drift["shift"] is None:
        return {}
    features = {
        item["feature"]: {
            "kind": item["kind"],
            **{name: item[name] for name in ("reference", "other", "auroc")},
        }
        for item in drift["shift"]["features"][:_FEATURES_SHOWN]
    }
    return {
        "most_telling_features": metadata.table(features, "feature"),
        "shift": dg.MetadataValue.md(markdown(drift["shift"]["summary"])),
    }


def drift_result(report: Mapping[str, Any]) -> dg.AssetCheckResult:
    """Turn the drift of a batch into the result of its check: a warning if there is drift or it was not measured."""
    from brainmri_core.evaluation.drift import DriftReport

    found = DriftReport.model_validate(report["drift"])
    passed = found.measured and not found.drifted
    return dg.AssetCheckResult(
        check_name=DRIFT_CHECK.name,
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=found.sentence(),
        metadata={
            "partition": report["dataset"],
            "images": report["images"],
            "model_of": report["model"]["trained_on"],
            **drift_numbers(report),
        },
    )
