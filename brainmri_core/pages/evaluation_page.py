"""``report.html`` and ``model_card.md`` of an evaluation: self-contained, escaped, readable on a phone and on paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from brainmri_core.config.evaluation import EvaluateConfig
from brainmri_core.evaluation.calibration import probabilities
from brainmri_core.evaluation.explanations import Explained
from brainmri_core.evaluation.galleries import KINDS
from brainmri_core.evaluation.metrics_schema import EvaluationMetrics, Patients
from brainmri_core.evaluation.prediction_table import labels_of, logits_of
from brainmri_core.evaluation.test_ledger import looks_sentence
from brainmri_core.evaluation.tested_data import TestedData
from brainmri_core.evaluation.tested_model import TestedModel
from brainmri_core.pages.environment import rendered, style_sheet
from brainmri_core.pages.validation_page import render_leak_section
from brainmri_core.pictures.figures import curves_figure, reliability_figure
from brainmri_core.pictures.thumbnails import colour_bar, data_uri, overlay, resized
from brainmri_core.project.job import Job
from brainmri_core.project.pointers import CheckpointPointer
from brainmri_core.project.provenance import code_version, environment
from brainmri_core.project.run_schema import read_plan
from brainmri_core.system.checksums import sha256_json
from brainmri_core.system.storage import write_bytes

MAX_PICTURES = 240
ISSUES_SHOWN = 12
TILE = 176
COARSE_GRID = 4
_CHECK_STAGES = {
    "own": "trained model",
    "head": "random head",
    "last block": "random last block",
    "all": "all random",
}


_SUBSET_KINDS = {
    "copies": "By copies in training",
    "patients": "By patient",
    "official": "By the data set’s own folders",
    "size": "By original size",
    "plane": "By image plane",
}


@dataclass(frozen=True)
class Evaluation:
    """The results of one evaluation; `metrics` is the content of ``metrics.json``."""

    metrics: EvaluationMetrics
    table: pd.DataFrame
    galleries: pd.DataFrame
    explained: Explained | None
    issues: pd.DataFrame
    tested_model: TestedModel
    tested_data: TestedData
    checkpoint: CheckpointPointer | None
    config: EvaluateConfig


def write_pages(folder: Path, result: Evaluation, job: Job) -> None:
    """Write ``report.html`` and ``model_card.md``."""
    values = {
        "metrics": result.metrics,
        "meta": result.tested_model.meta,
        "data": _data(result, job),
        "reproduce": _reproduce(result, job),
        "config": result.config,
        "standing": standing(result.metrics.n_units, result.metrics.patients),
        "looks": looks_sentence(looks) if (looks := result.metrics.test_looks) else "",
    }
    write_bytes(folder / "model_card.md", rendered("model_card.md.j2", **values).encode())
    page = rendered(
        "evaluation.html.j2",
        **values,
        style=style_sheet("evaluation.css"),
        leak_style=style_sheet("validation.css"),
        leak_section=render_leak_section(result.tested_data.leak),
        figures=_figures(result, job),
        galleries=_galleries(result),
        bar=data_uri(colour_bar(240, 12), 90),
        check=_check(result),
        check_stages=_CHECK_STAGES,
        coarse_grid=COARSE_GRID,
        subset_kinds=_SUBSET_KINDS,
        issues=_issues(result),
    )
    write_bytes(folder / "report.html", page.encode())


def standing(units: int, patients: Patients, each: str = "test image") -> str:
    """Say how many independent patients or groups a score is based on, and for how many images the patient is unknown."""
    if not patients.known:
        return (
            f"Independent groups of related images behind the score: {units:,}. No image's patient is known."
        )
    if not patients.images_unknown:
        return f"Independent patients behind the score: {units:,}. The patient of every {each} is known."
    return (
        f"Independent patients or groups of related images behind the score: {units:,}. Known patients: "
        f"{patients.known:,}, with {patients.images:,} of the images. Images whose patient is unknown: "
        f"{patients.images_unknown:,}."
    )


def _data(result: Evaluation, job: Job) -> dict[str, Any]:
    """Collect the report's section on the data: source, split and excluded images."""
    tested_data, entry = result.tested_data, job.entry
    samples = tested_data.samples
    counts = samples.groupby(["split", "label"]).size()
    validation = result.table["split"] == "validation"
    by_split = {
        side: {name: int(counts.get((side, name), 0)) for name in tested_data.pack.classes}
        for side in ("train", "test", "excluded")
    }
    inner = result.table.loc[validation, "label"].value_counts()
    excluded = samples.loc[samples["split"] == "excluded", "reason"].replace("", "no reason given")
    fetched, config = tested_data.fetched, tested_data.split_record.get("config", {})
    return {
        "key": job.dataset,
        "title": entry.title,
        "url": entry.url,
        "note": entry.note,
        "source": fetched.source if fetched else "a class-folder tree",
        "version": fetched.version if fetched else None,
        "licence": fetched.licence if fetched else entry.licence,
        "fetched_at": fetched.fetched_at_utc if fetched else None,
        "archive_sha256": fetched.archive_sha256 if fetched else None,
        "data_hash": fetched.content_hash if fetched else None,
        "n_images": len(samples),
        "counts": by_split,
        "validation": {name: int(inner.get(name, 0)) for name in tested_data.pack.classes},
        "excluded": {str(name): int(n) for name, n in excluded.value_counts().items()},
        "strategy": config.get("strategy"),
        "group_by": config.get("group_by"),
        "seed": config.get("seed"),
        "groups": int(samples.loc[samples["split"] != "excluded", "group"].nunique()),
    }


def _reproduce(result: Evaluation, job: Job) -> dict[str, Any]:
    """Collect the report's section on reproducing the numbers."""
    plan_path = job.layout.run_dir(job.run_id) / "plan.json"
    plan = read_plan(plan_path) if plan_path.is_file() else None
    config = result.config.model_dump(mode="json", by_alias=True)
    found = environment()
    return {
        "command": plan and plan.command,
        "code": code_version(),
        "trained_with": result.tested_model.meta.code,
        "environment": found,
        "packages": {name: version for name, version in found["packages"].items() if version},
        "config": config,
        "config_hash": sha256_json(config),
        "train_config": result.tested_model.meta.train_config,
        "checkpoint": job.layout.relative(result.tested_model.weights)
        if result.tested_model.weights.is_relative_to(job.layout.root)
        else result.tested_model.weights.name,
        "checkpoint_sha256": result.checkpoint.checkpoint_sha256 if result.checkpoint else None,
        "pack_hash": result.tested_data.pack.content_hash,
        "pack_sha256": result.tested_data.pack.pack_sha256,
        "mapping_hash": result.tested_data.mapping.content_hash,
        "device": str(result.tested_model.device),
        "precision": result.tested_model.precision,
    }


def _figures(result: Evaluation, job: Job) -> dict[str, str | None]:
    metrics, classes = result.metrics, result.tested_model.classes
    test = result.table[result.table["split"] == "test"]
    calibration = metrics.calibration
    areas = {name: (row.auroc, row.average_precision) for name, row in metrics.per_class.items()}
    curves = result.checkpoint.curves if result.checkpoint else None
    path = job.layout.absolute(curves) if curves else None
    return {
        "curves": curves_figure(labels_of(test), probabilities(logits_of(test, classes)), classes, areas),
        "reliability": reliability_figure(
            calibration.before.model_dump(), calibration.after.model_dump() if calibration.after else None
        ),
        "training": _picture_file(path) if path is not None and path.is_file() else None,
    }


def _picture_file(path: Path) -> str:
    with Image.open(path) as image:
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    return data_uri(flat, 88)


def _galleries(result: Evaluation) -> list[dict[str, Any]]:
    """Return the galleries with their pictures; large galleries are cut to keep the page small."""
    classes = result.tested_model.classes
    per_row = max(1, MAX_PICTURES // (len(KINDS) * len(classes)))
    shown = result.galleries[result.galleries["rank"] <= per_row]
    made: list[dict[str, Any]] = []
    for kind in KINDS:
        part = shown[shown["gallery"] == kind]
        rows = [
            {"class": name, "items": [_card(item, result) for item in group.to_dict("records")]}
            for name, group in ((name, part[part["class"] == name]) for name in classes)
            if len(group)
        ]
        made.append({"kind": kind, "rows": rows})
    return made


def _card(item: Mapping[Any, Any], result: Evaluation) -> dict[str, Any]:
    pixels = result.tested_model.pixels[item["row"]]
    pictures = {"image": data_uri(resized(np.asarray(pixels), TILE))}
    if result.explained is not None:
        position = int(np.searchsorted(result.explained.rows, item["row"]))
        for name, maps in (
            ("gradcam", result.explained.maps.gradcam),
            ("plus", result.explained.maps.gradcam_plus_plus),
        ):
            pictures[name] = data_uri(resized(overlay(np.asarray(pixels), maps[position]), TILE))
    return {**{str(key): value for key, value in item.items()}, "pictures": pictures}


def _check(result: Evaluation) -> list[dict[str, str]]:
    """Return the pictures of the randomisation check, a row per image."""
    if result.explained is None:
        return []
    rows = []
    for position, row in enumerate(result.explained.check_rows.tolist()):
        pixels = np.asarray(result.tested_model.pixels[row])
        pictures = {"image": data_uri(resized(pixels, 128))}
        for stage in _CHECK_STAGES:
            pictures[stage] = data_uri(
                resized(overlay(pixels, result.explained.check_maps[stage][position]), 128)
            )
        rows.append(pictures)
    return rows


def _issues(result: Evaluation) -> list[dict[str, Any]]:
    found = result.issues.head(ISSUES_SHOWN)
    rows = result.table.set_index("path")["row"]
    return [
        {
            **{str(key): value for key, value in item.items()},
            "picture": data_uri(
                resized(np.asarray(result.tested_model.pixels[int(rows[item["path"]])]), 112)
            ),
        }
        for item in found.to_dict("records")
    ]
