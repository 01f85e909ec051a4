"""Metadata of the data stages' results, for the Dagster UI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

import dagster as dg

from brainmri_core.escaping import markdown, shared_reason
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import follow
from brainmri_core.project.pointers import (
    EmbeddingsPointer,
    FetchPointer,
    MappingPointer,
    PackPointer,
    ValidationPointer,
)
from brainmri_core.system.json_files import read_json
from brainmri_dagster.defs.metadata import Metadata, numbers, path_of, picture, table

_LEAK_COLUMNS = {
    "test images": "n_test",
    "with a copy in training": "copies",
    "with their patient in training": "patients",
    "of known": "known_patients",
    "look-up accuracy": "accuracy",
    "with a copy or patient": "accuracy_tied",
    "without": "accuracy_untied",
}


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
    """Count the images that a split excluded, by reason; a file that a reason names is removed from it."""
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
    """Count, by reason, the images that resizing left out and the split had not."""
    from brainmri_core.project.sample_table import SPLIT_COLUMNS, read_samples

    mapping = follow(layout, MappingPointer, pointer.mapping_pointer)
    before = read_samples(layout.absolute(mapping.samples), SPLIT_COLUMNS)
    after = read_samples(layout.absolute(pointer.samples))
    dropped = after[(after["row"] < 0) & ~after["path"].isin(before["path"][before["split"] == "excluded"])]
    reasons = (shared_reason(*item) for item in zip(dropped["path"], dropped["reason"], strict=True))
    return dict(Counter(reasons).most_common())


def of_validate(layout: Layout, pointer: ValidationPointer) -> Metadata:
    """Findings by severity, their messages, and how much several ways to split the images leak."""
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


def of_embeddings(layout: Layout, pointer: EmbeddingsPointer) -> Metadata:
    """Shape and origin of the features, the score of the probe on them, outliers and drift."""
    # Imports scikit-learn, which loading the graph must not.
    from brainmri_core.evaluation.embeddings_schema import read_embeddings_metrics

    folder = layout.absolute(pointer.folder)
    metrics = read_embeddings_metrics(layout.absolute(pointer.metrics))
    outliers = metrics.outliers.model_dump(include={"train", "test"}) if metrics.outliers else {}
    folds = {name: item.model_dump() for name, item in metrics.folds.items()}
    drift = {item.kind: item.model_dump(include={"squared", "threshold"}) for item in metrics.drift or []}
    pictures = {
        "label_issues": picture(
            folder / "label_issues.png", "labels that look wrong and the nearest images", 700
        ),
        "outliers": picture(folder / "outliers.png", "outliers and the nearest images", 700),
    }
    return {
        **numbers(pointer.headline),
        "images": pointer.images,
        "features_per_image": pointer.width,
        "model": pointer.model_name,
        "depths": pointer.depths,
        "pretrained": pointer.pretrained,
        **({"folds": table(folds, "fold")} if folds else {}),
        **({"no_score": dg.MetadataValue.md(markdown(pointer.reason))} if pointer.reason else {}),
        **numbers(outliers, "outliers_in_"),
        **({"drift_of_test": table(drift, "kind")} if drift else {}),
        **{name: item for name, item in pictures.items() if item},
        "features": path_of(layout, pointer.features),
        "metrics": path_of(layout, pointer.metrics),
    }
