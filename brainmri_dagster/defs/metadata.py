"""What the Dagster UI shows of each result: headline numbers, tables and pictures, made from the stored files."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import dagster as dg

from brainmri_core.escaping import markdown, shared_reason
from brainmri_core.evaluation.cross_validation_schema import read_cross_validation
from brainmri_core.evaluation.metrics_schema import EvaluationMetrics, TestLooks, read_metrics
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import follow
from brainmri_core.project.pointers import (
    CheckpointPointer,
    CrossValidationPointer,
    EmbeddingsPointer,
    EvaluationPointer,
    ExternalEvaluationPointer,
    FetchPointer,
    GeneralisationPointer,
    MappingPointer,
    PackPointer,
    ValidationPointer,
)
from brainmri_core.system.storage import read_json

Metadata = dict[str, Any]
_PICTURE_SIDE = 480
_LEAK_COLUMNS = {
    "test images": "n_test",
    "with a copy in training": "copies",
    "with their patient in training": "patients",
    "of known": "known_patients",
    "look-up accuracy": "accuracy",
    "with a copy or patient": "accuracy_tied",
    "without": "accuracy_untied",
}


def numbers(values: Mapping[str, Any], prefix: str = "") -> Metadata:
    """Return the finite numbers of a mapping; NaN and infinity would break the UI and are left out."""
    return {
        f"{prefix}{name}": value
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def path_of(layout: Layout, stored: str) -> dg.PathMetadataValue:
    """Return a stored path as a link."""
    return dg.MetadataValue.path(str(layout.absolute(stored)))


def table(rows: Mapping[str, Mapping[str, Any]], corner: str) -> dg.MarkdownMetadataValue:
    """Return a table of numbers as Markdown; a missing cell is a zero, an undefined one a dash."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [f"| {corner} | {' | '.join(map(_cell, columns))} |", f"|---|{'---:|' * len(columns)}"]
    lines += [
        f"| {_cell(name)} | {' | '.join(_cell(row.get(c, 0)) for c in columns)} |"
        for name, row in rows.items()
    ]
    return dg.MetadataValue.md("\n".join(lines))


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else markdown(str(value))


def picture(path: Path, alt: str, side: int = _PICTURE_SIDE) -> dg.MarkdownMetadataValue | None:
    """Return a picture, made small, as Markdown with a data URI; None if the file is not there."""
    if not path.is_file():
        return None
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return dg.MetadataValue.md(
        f"![{alt}](data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()})"
    )


def sample_table_schema(stage: Literal["fetch", "split", "resize"]) -> dg.TableSchema:
    """Return the columns of a stage's sample table with their types and meaning."""
    from brainmri_core.project.sample_table import (
        COLUMN_MEANING,
        FETCH_COLUMNS,
        OPTIONAL_COLUMNS,
        RESIZE_COLUMNS,
        SPLIT_COLUMNS,
    )

    columns = {**FETCH_COLUMNS}
    if stage != "fetch":
        columns |= SPLIT_COLUMNS | OPTIONAL_COLUMNS
    if stage == "resize":
        columns |= RESIZE_COLUMNS
    return dg.TableSchema(
        [
            dg.TableColumn(name, kind, description=COLUMN_MEANING.get(name, ""))
            for name, kind in columns.items()
        ]
    )


def _sample_table(
    layout: Layout, stored: str, stage: Literal["fetch", "split", "resize"], rows: int | None
) -> Metadata:
    return {
        "samples": path_of(layout, stored),
        "dagster/column_schema": sample_table_schema(stage),
        **({"dagster/row_count": rows} if rows is not None else {}),
    }


def of_fetch(layout: Layout, pointer: FetchPointer) -> Metadata:
    """Counts per class, size and source of a fetched data set."""
    return {
        "images": pointer.n_images,
        "megabytes": round(pointer.total_bytes / 1e6, 1),
        "source": pointer.source,
        "licence": pointer.licence,
        "version": pointer.version if pointer.version is not None else "none",
        "class_counts": table(
            {name: {"images": count} for name, count in pointer.class_counts.items()}, "class"
        ),
        **_sample_table(layout, pointer.samples, "fetch", pointer.n_images),
        "dataset_root": path_of(layout, pointer.dataset_root),
        **({"files": pointer.n_files} if pointer.n_files is not None else {}),
        **_left_out(pointer.left_out),
    }


def _left_out(counts: Mapping[str, int]) -> Metadata:
    """Return how many files or images a stage left out, and why."""
    rows = {name: {"left out": count} for name, count in counts.items()}
    return {
        "left_out": sum(counts.values()),
        **({"left_out_by_reason": table(rows, "reason")} if rows else {}),
    }


def of_split(layout: Layout, pointer: MappingPointer) -> Metadata:
    """Counts per split and class, and the sample table's schema."""
    images = {name: sum(counts.values()) for name, counts in pointer.counts.items()}
    return {
        **{f"{name}_images": count for name, count in images.items()},
        "counts": table(pointer.counts, "split"),
        "classes": ", ".join(pointer.classes),
        **_sample_table(layout, pointer.samples, "split", sum(images.values())),
        "split_json": path_of(layout, pointer.split_json),
        **_left_out(_split_reasons(layout, pointer)),
    }


def _split_reasons(layout: Layout, pointer: MappingPointer) -> dict[str, int]:
    """Count the images that a split excluded by reason, without the file that a reason names."""
    record = read_json(layout.absolute(pointer.split_json))
    excluded: dict[str, str] = record.get("excluded", {})
    return dict(Counter(shared_reason(path, reason) for path, reason in excluded.items()).most_common())


def of_resize(layout: Layout, pointer: PackPointer) -> Metadata:
    """Shape of the pack."""
    return {
        "images": pointer.n_images,
        "size": pointer.size,
        "channels": pointer.channels,
        **{f"scaled by {how}": count for how, count in pointer.scaled_by.items()},
        **{
            f"gray range {depth}": f"{low:g} to {high:g}"
            for depth, (low, high) in pointer.gray_ranges.items()
        },
        **_sample_table(layout, pointer.samples, "resize", None),
        "pack": path_of(layout, pointer.pack),
        **_left_out(_resize_reasons(layout, pointer)),
    }


def _resize_reasons(layout: Layout, pointer: PackPointer) -> dict[str, int]:
    """Count by reason the images that a resize left out and the split before it did not."""
    from brainmri_core.project.sample_table import SPLIT_COLUMNS, read_samples

    mapping = follow(layout, MappingPointer, pointer.mapping_pointer)
    before = read_samples(layout.absolute(mapping.samples), SPLIT_COLUMNS)
    after = read_samples(layout.absolute(pointer.samples))
    dropped = after[(after["row"] < 0) & ~after["path"].isin(before["path"][before["split"] == "excluded"])]
    reasons = (shared_reason(*item) for item in zip(dropped["path"], dropped["reason"], strict=True))
    return dict(Counter(reasons).most_common())


def of_validate(layout: Layout, pointer: ValidationPointer) -> Metadata:
    """Findings by severity, what each says, and what ways to divide the images leak."""
    report = layout.absolute(pointer.report)
    stored = read_json(report)
    rows = {
        item["check"]: {name: item[name] for name in ("severity", "count", "message")}
        for item in stored["findings"]
    }
    leaks = {
        item["split"]: {title: item.get(name) for title, name in _LEAK_COLUMNS.items()}
        for item in stored["leak"]["rows"]
        if item["reason"] is None
    }
    return {
        "passed": pointer.passed,
        **numbers(pointer.severities, "findings_"),
        **({"findings": table(rows, "check")} if rows else {}),
        **({"leaks": table(leaks, "split")} if leaks else {}),
        "report": path_of(layout, pointer.report),
        "page": path_of(layout, pointer.page),
    }


def of_train(layout: Layout, pointer: CheckpointPointer) -> Metadata:
    """Validation score, epochs and the learning curves."""
    curves = picture(layout.absolute(pointer.curves), "learning curves") if pointer.curves else None
    return {
        **numbers({"val_macro_f1": pointer.val_macro_f1}),
        "best_epoch": pointer.best_epoch,
        "epochs_run": pointer.epochs_run,
        "model": pointer.model_name,
        **({"precision": pointer.precision} if pointer.precision else {}),
        "checkpoint": path_of(layout, pointer.checkpoint),
        "history": path_of(layout, pointer.history),
        **({"curves": curves} if curves else {}),
        **({"tracking": _link(layout, pointer.tracking)} if pointer.tracking else {}),
    }


def _link(layout: Layout, place: str) -> dg.MetadataValue[str]:
    """Return a web address as a link, any other place as a path."""
    return dg.MetadataValue.url(place) if "://" in place else path_of(layout, place)


def of_evaluate(layout: Layout, pointer: EvaluationPointer) -> Metadata:
    """Headline numbers, the confusion matrix, a Grad-CAM picture and the report."""
    folder = layout.absolute(pointer.folder)
    metrics = read_metrics(layout.absolute(pointer.metrics))
    found = sorted(folder.rglob("*gradcam*.png"))
    pictures = {
        "confusion_picture": picture(folder / "confusion.png", "confusion matrix", 640),
        "gradcam": picture(found[0], "Grad-CAM overlays", 640) if found else None,
    }
    return {
        **numbers(pointer.headline),
        **_standing(metrics),
        **_looks(metrics.test_looks),
        **_confusion(metrics.confusion_matrix, metrics.classes),
        **_tables(metrics),
        **{name: item for name, item in pictures.items() if item},
        "report": path_of(layout, pointer.report),
        "metrics": path_of(layout, pointer.metrics),
        "predictions": path_of(layout, pointer.predictions),
    }


def _standing(metrics: EvaluationMetrics) -> Metadata:
    """How many independent units stand behind the numbers, and what is known of the patients."""
    patients = metrics.patients
    return {
        "independent_units": metrics.n_units,
        "known_patients": patients.known,
        "images_of_unknown_patient": patients.images_unknown,
        "images_of_patient_in_training": patients.in_training,
    }


def _tables(metrics: EvaluationMetrics) -> Metadata:
    """Classes, baselines and subsets as tables, and the warnings as a list."""
    shown = ("support", "sensitivity", "specificity", "ppv", "f1", "auroc")
    scores = ("macro_f1", "balanced_accuracy", "accuracy")
    per_class = {name: {key: getattr(row, key) for key in shown} for name, row in metrics.per_class.items()}
    baselines = {
        row.name: {**{key: getattr(row, key) for key in scores}, "model's gain": row.macro_f1_gain}
        for row in metrics.baselines
    }
    subsets = {
        row.name: {"images": row.n_images, **{key: getattr(row, key) for key in scores}}
        for row in metrics.subsets
    }
    warnings = "\n".join(f"- **{item.level}**: {markdown(item.text)}" for item in metrics.warnings)
    return {
        "per_class": table(per_class, "class"),
        **({"baselines": table(baselines, "rule")} if baselines else {}),
        "subsets": table(subsets, "subset"),
        "warnings": dg.MetadataValue.md(warnings or "none"),
    }


def of_external(layout: Layout, pointer: ExternalEvaluationPointer) -> Metadata:
    """Headline numbers, what was taken out and why, the rows of scores, and the drop against the model's own test images."""
    folder = layout.absolute(pointer.folder)
    metrics = read_json(layout.absolute(pointer.metrics))
    scores = metrics["scores"]
    confusion = picture(folder / "confusion.png", "confusion matrix", 640)
    taken = {name: {"images": count} for name, count in metrics["taken_out"]["by_reason"].items()}
    shown = ("n_images", "n_units", "macro_f1", "balanced_accuracy", "accuracy")
    rows = {row["name"]: {name: row[name] for name in shown} for row in metrics["rows"]}
    drop = {
        name: {key: item[key] for key in ("own", "external", "difference")}
        for name, item in metrics["comparison"].get("measures", {}).items()
    }
    warnings = "\n".join(f"- **{item['level']}**: {markdown(item['text'])}" for item in metrics["warnings"])
    return {
        **numbers(pointer.headline),
        **numbers(metrics["images"], "images_"),
        "trained_on": pointer.trained_on,
        "taken_out": table(taken, "reason"),
        **({"rows": table(rows, "images")} if rows else {}),
        **({"comparison": table(drop, "measure")} if drop else {}),
        **(_confusion(scores["confusion_matrix"], list(scores["per_class"])) if scores else {}),
        **({"confusion_picture": confusion} if confusion else {}),
        "warnings": dg.MetadataValue.md(warnings or "none"),
        "report": path_of(layout, pointer.report),
        "metrics": path_of(layout, pointer.metrics),
        "predictions": path_of(layout, pointer.predictions),
    }


def of_generalisation(layout: Layout, pointer: GeneralisationPointer) -> Metadata:
    """The heat map, the numbers of every pair, and the model that is best where it is worst."""
    with layout.absolute(pointer.table).open(newline="", encoding="utf-8") as handle:
        rows = {
            f"{row['trained_on']} on {row['evaluated_on']}": {
                name: float(row[name]) if row[name] else None
                for name in ("macro_f1", "low", "high", "difference", "taken_out_share")
            }
            for row in csv.DictReader(handle)
        }
    heat_map = picture(layout.absolute(pointer.plot), "every model on every data set", 900)
    return {
        **numbers(pointer.model_dump(include={"pairs", "scored", "best_worst", "best_mean"})),
        **({"best": pointer.best} if pointer.best else {}),
        "scores": table(rows, "pair"),
        **({"heat_map": heat_map} if heat_map else {}),
        "report": path_of(layout, pointer.report),
        "table": path_of(layout, pointer.table),
    }


def of_embeddings(layout: Layout, pointer: EmbeddingsPointer) -> Metadata:
    """Shape and origin of the features, and what the probe on them scores over the folds, or why it has no score."""
    metrics = read_json(layout.absolute(pointer.metrics))
    return {
        **numbers(pointer.headline),
        "images": pointer.images,
        "features_per_image": pointer.width,
        "model": pointer.model_name,
        "depths": pointer.depths,
        "pretrained": pointer.pretrained,
        **({"folds": table(metrics["folds"], "fold")} if metrics["folds"] else {}),
        **({"no_score": dg.MetadataValue.md(markdown(pointer.reason))} if pointer.reason else {}),
        "features": path_of(layout, pointer.features),
        "metrics": path_of(layout, pointer.metrics),
    }


def of_cross_validation(layout: Layout, pointer: CrossValidationPointer) -> Metadata:
    """Pooled out-of-fold numbers, their spread over folds, the ensemble's, and the labels that look wrong."""
    issues = picture(layout.absolute(pointer.folder) / "label_issues.png", "labels that look wrong")
    metrics = read_cross_validation(layout.absolute(pointer.metrics))
    folds = {name: item.model_dump() for name, item in metrics.folds.items()}
    return {
        **numbers(pointer.headline),
        **_looks(metrics.test_looks),
        "folds": table(folds, "fold"),
        **_confusion(metrics.pooled.confusion_matrix, metrics.pooled.classes),
        "label_issues": dg.MetadataValue.int(metrics.label_issues),
        **({"label_issue_pictures": issues} if issues else {}),
        "metrics": path_of(layout, pointer.metrics),
        "predictions": path_of(layout, pointer.predictions),
    }


def _looks(looks: TestLooks | None) -> Metadata:
    """How often the test split was looked at, and with how many checkpoints; nothing for a fold."""
    if looks is None:
        return {}
    return {"test_split_looks": looks.looks, "test_split_checkpoints": looks.checkpoints}


def _confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Metadata:
    rows = {
        f"is {name}": {f"called {other}": n for other, n in zip(names, row, strict=True)}
        for name, row in zip(names, matrix, strict=True)
    }
    return {"confusion_matrix": table(rows, "")}
