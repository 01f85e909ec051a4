"""Metadata of trainings and evaluations, for the Dagster UI."""

from __future__ import annotations

import csv
from collections.abc import Sequence

import dagster as dg

from brainmri_core.escaping import markdown
from brainmri_core.evaluation.cross_validation_schema import read_cross_validation
from brainmri_core.evaluation.metrics_schema import EvaluationMetrics, ReaderWarning, TestLooks, read_metrics
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointers import (
    CheckpointPointer,
    CrossValidationPointer,
    EvaluationPointer,
    ExternalEvaluationPointer,
    FoldEnsemblePointer,
    GeneralisationPointer,
)
from brainmri_dagster.defs.metadata import Metadata, numbers, path_of, picture, table


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


def of_ensemble(layout: Layout, pointer: FoldEnsemblePointer) -> Metadata:
    """The members with their temperatures and validation scores, and what the ensemble costs."""
    from brainmri_core.learning.checkpoint import (
        load_checkpoint,
    )  # imports torch, which loading the graph must not

    record = load_checkpoint(layout.absolute(pointer.checkpoint))[0].ensemble
    assert record is not None
    rows = {str(item.fold): item.model_dump(exclude={"fold"}) for item in record.members}
    cost = record.model_dump(include={"parameters", "weights_bytes", "forward_passes"})
    return {**of_train(layout, pointer), **cost, "members": table(rows, "fold")}


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
    """How many independent units the numbers rest on, and what is known of the patients."""
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
    return {
        "per_class": table(per_class, "class"),
        **({"baselines": table(baselines, "rule")} if baselines else {}),
        "subsets": table(subsets, "subset"),
        "warnings": _warnings(metrics.warnings),
    }


def _warnings(found: Sequence[ReaderWarning]) -> dg.MarkdownMetadataValue:
    lines = "\n".join(f"- **{item.level}**: {markdown(item.text)}" for item in found)
    return dg.MetadataValue.md(lines or "none")


def of_external(layout: Layout, pointer: ExternalEvaluationPointer) -> Metadata:
    """Headline numbers, images taken out by reason, rows of scores, and the drop against the model's own test images."""
    # Imports scikit-learn, which loading the graph must not.
    from brainmri_core.evaluation.external_schema import read_external_metrics

    folder = layout.absolute(pointer.folder)
    metrics = read_external_metrics(layout.absolute(pointer.metrics))
    scores = metrics.scores
    confusion = picture(folder / "confusion.png", "confusion matrix", 640)
    taken = {name: {"images": count} for name, count in metrics.taken_out.by_reason.items()}
    shown = ("n_images", "n_units", "macro_f1", "balanced_accuracy", "accuracy")
    rows = {row.name: {name: getattr(row, name) for name in shown} for row in metrics.rows}
    drop = {name: item.model_dump(exclude={"interval"}) for name, item in metrics.measures.items()}
    return {
        **numbers(pointer.headline),
        **numbers(metrics.images.model_dump(), "images_"),
        "trained_on": pointer.trained_on,
        "taken_out": table(taken, "reason"),
        **({"rows": table(rows, "images")} if rows else {}),
        **({"comparison": table(drop, "measure")} if drop else {}),
        **(_confusion(scores.confusion_matrix, list(scores.per_class)) if scores else {}),
        **({"confusion_picture": confusion} if confusion else {}),
        "warnings": _warnings(metrics.warnings),
        "report": path_of(layout, pointer.report),
        "metrics": path_of(layout, pointer.metrics),
        "predictions": path_of(layout, pointer.predictions),
    }


def of_generalisation(layout: Layout, pointer: GeneralisationPointer) -> Metadata:
    """The heat map, the numbers of every pair, and the model whose worst score is the best."""
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
        f"true {name}": {f"predicted {other}": n for other, n in zip(names, row, strict=True)}
        for name, row in zip(names, matrix, strict=True)
    }
    return {"confusion_matrix": table(rows, "")}
