"""``report.html`` of an external evaluation, self-contained and escaped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brainmri_core.config.external import ExternalConfig
from brainmri_core.copies.likeness import orientation_words
from brainmri_core.evaluation.external_schema import CarriedCalibration, ExternalMetrics
from brainmri_core.evaluation.external_scores import LOWER_IS_BETTER
from brainmri_core.evaluation.taken_out import REASONS, PackedImages, TakenOut
from brainmri_core.learning.checkpoint import CheckpointMeta
from brainmri_core.pages.environment import rendered, style_sheet
from brainmri_core.pages.evaluation_page import standing
from brainmri_core.pictures.figures import reliability_figure
from brainmri_core.pictures.thumbnails import data_uri, resized
from brainmri_core.project.job import Job
from brainmri_core.project.provenance import code_version
from brainmri_core.project.run_schema import read_plan
from brainmri_core.system.storage import write_bytes

MEASURE_NAMES = {
    "macro_f1": "Macro F1",
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "macro_auroc": "Macro AUROC",
    "tumour_vs_none.sensitivity": "Sensitivity, tumour or none",
    "tumour_vs_none.specificity": "Specificity, tumour or none",
    "calibration.before.ece_equal_width": "ECE, as the model says",
    "calibration.after.ece_equal_width": "ECE, with its temperature",
    "calibration.after.nll": "NLL, with its temperature",
}
_TILE = 160


@dataclass(frozen=True)
class ExternalEvaluation:
    """The results of one external evaluation; `metrics` is the content of ``metrics.json``.

    Attributes
    ----------
    own : PackedImages or None
        The images of the checkpoint's own data set, if they are known.
    other : PackedImages
        The images that it was evaluated on.
    """

    metrics: ExternalMetrics
    meta: CheckpointMeta
    own: PackedImages | None
    other: PackedImages
    taken: TakenOut
    config: ExternalConfig


def write_external_page(folder: Path, result: ExternalEvaluation, job: Job) -> None:
    """Write ``report.html``."""
    metrics = result.metrics
    scores = metrics.scores
    plan = job.layout.run_dir(job.run_id) / "plan.json"
    page = rendered(
        "external.html.j2",
        metrics=metrics,
        meta=result.meta,
        config=result.config,
        style=style_sheet("evaluation.css"),
        standing=standing(scores.n_units, scores.patients, "image scored") if scores else "",
        drop=metrics.measures.get("macro_f1"),
        reasons=REASONS,
        pairs=_pairs(result),
        names=MEASURE_NAMES,
        lower=LOWER_IS_BETTER,
        figures={"reliability": _reliability(scores.calibration) if scores else None},
        reproduce={
            "command": read_plan(plan).command if plan.is_file() else None,
            "code": code_version(),
            "pack_hash": result.other.pack.content_hash,
        },
    )
    write_bytes(folder / "report.html", page.encode())


def _reliability(calibration: CarriedCalibration) -> str:
    after = calibration.after
    return reliability_figure(calibration.before.model_dump(), after.model_dump() if after else None)


def _pairs(result: ExternalEvaluation) -> list[dict[str, str]]:
    """Return examples of images taken out for each reason, with their pictures."""
    table = result.taken.table
    if result.own is None or not len(table):
        return []
    turn = table.groupby("reason").cumcount()
    order = np.lexsort((table["reason"].map(list(REASONS).index), turn))[: result.config.pairs_shown]
    return [
        _pair(table.iloc[row].to_dict(), int(result.taken.like[row]), result.own, result.other)
        for row in sorted(order.tolist(), key=lambda row: list(REASONS).index(table["reason"].iloc[row]))
    ]


def _pair(item: Mapping[Any, Any], like: int, own: PackedImages, other: PackedImages) -> dict[str, str]:
    row, partner = int(other.table["row"].iloc[item["position"]]), int(own.table["row"].iloc[like])
    copied = item["reason"].startswith("copy")
    words = f"{item['kind']}, {orientation_words(item['orientation'])}, correlation {item['correlation']:.3f}"
    return {
        "text": REASONS[item["reason"]],
        "detail": words if copied else "",
        "path": str(item["path"]),
        "like": str(item["like"]),
        "picture": data_uri(resized(np.asarray(other.pixels[row]), _TILE)),
        "like_picture": data_uri(resized(np.asarray(own.pixels[partner]), _TILE)),
    }
