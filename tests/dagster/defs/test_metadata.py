from __future__ import annotations

from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from brainmri_core.evaluation.baselines import Baseline
from brainmri_core.evaluation.metrics_file import Context, evaluation_metrics, headline, whole_document
from brainmri_core.evaluation.metrics_schema import NoOutlierScore, Unavailable
from brainmri_core.pictures.figures import write_confusion
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointers import (
    CheckpointPointer,
    EmbeddingsPointer,
    EvaluationPointer,
    ValidationPointer,
)
from brainmri_core.system.json_files import write_json
from brainmri_dagster.defs.data_metadata import of_embeddings, of_validate
from brainmri_dagster.defs.model_metadata import of_evaluate, of_train
from tests.core.evaluation.documents_case import embeddings_document
from tests.core.evaluation.metrics_case import CLASSES, made_up, table_of, votes

pytestmark = pytest.mark.training


def test_the_ui_shows_numbers_tables_pictures_and_warnings(tmp_path: Path) -> None:
    labels, logits = made_up(n=90, k=2)
    logits = [[*row, -9.0] for row in logits.tolist()]  # the third class is neither there nor called
    table = table_of(labels, np.asarray(logits), CLASSES)
    table["patient"] = [f"p{i // 6}" if i < 60 else "" for i in range(90)]
    masks = iter([("all", "whole test split", labels >= 0)])
    perfect = Baseline("nearest | neighbour", "remembers", votes(labels.tolist()), False)
    metrics = whole_document(
        evaluation_metrics(table, CLASSES, Context(20, 1, masks, [perfect], 0, 0)), dataset="a/b", run_id="r",
        written_at_utc="2026-01-01T00:00:00Z", outliers=NoOutlierScore(reason="none"),
        explanations=Unavailable(reason="none"), label_issues=0, looks=None,
    )  # fmt: skip
    write_json(tmp_path / "metrics.json", metrics.model_dump(mode="json"))
    write_confusion(tmp_path / "confusion.png", metrics.confusion_matrix, CLASSES)
    pointer = EvaluationPointer(
        dataset="a/b", run_id="r", content_hash="0", written_at_utc="2026-01-01T00:00:00Z", folder=".",
        metrics="metrics.json", predictions="predictions.parquet", report="report.html", headline=headline(metrics),
        checkpoint_pointer=None,
    )  # fmt: skip
    found = of_evaluate(Layout(root=tmp_path), pointer)
    assert found["macro_f1"] == metrics.macro_f1
    assert all(value == value for value in found.values() if isinstance(value, float))
    text = {
        name: value.md_str for name, value in found.items() if isinstance(value, dg.MarkdownMetadataValue)
    }
    recall = metrics.per_class["glioma"].sensitivity
    assert f"| glioma | {metrics.per_class['glioma'].support} | {recall:.4f} |" in text["per_class"]
    assert "| pituitary | 0 | – |" in text["per_class"]
    assert "nearest \\| neighbour | 1.0000" in text["baselines"]
    assert "| whole test split | 90 |" in text["subsets"]
    assert "**red**: The model does not beat every simple rule" in text["warnings"]
    assert text["confusion_picture"].startswith("![confusion matrix](data:image/")
    assert "predicted notumor" in text["confusion_matrix"]
    assert (found["independent_units"], found["known_patients"], found["images_of_unknown_patient"]) == (
        25,
        10,
        30,
    )


def test_the_ui_shows_how_much_each_way_to_split_leaks(tmp_path: Path) -> None:
    made = {"n_test": 9, "copies": 0, "patients": 3, "known_patients": 8, "accuracy": 0.5, "reason": None}
    rows = [{"split": "this split", **made}, {"split": "official folders", "reason": "there are none"}]
    write_json(tmp_path / "report.json", {"findings": [], "leak": {"rows": rows}})
    pointer = ValidationPointer(
        dataset="a/b", run_id="r", content_hash="0", written_at_utc="2026-01-01T00:00:00Z", report="report.json",
        passed=True, severities={"error": 0, "warning": 0, "info": 0}, pack_pointer="pack.json",
    )  # fmt: skip
    shown = of_validate(Layout(root=tmp_path), pointer)["leaks"].md_str.splitlines()
    assert "with their patient in training" in shown[0]
    assert shown[2:] == ["| this split | 9 | 0 | 3 | 8 | 0.5000 | – | – |"]


def test_embeddings_of_an_older_version_are_shown_without_outliers_and_drift(tmp_path: Path) -> None:
    document = embeddings_document()
    pointer = EmbeddingsPointer(
        dataset="a/b", run_id="r", content_hash="0", written_at_utc="2026-01-01T00:00:00Z", folder=".",
        metrics="metrics.json", predictions=None, features="features.npy", features_sha256="0", record="record.json",
        model_name="resnet18", depths=4, pretrained=True, weights_sha256="0", images=60, width=8, headline={},
        pack_pointer="pack.json", pack_sha256="0",
    )  # fmt: skip
    shown = []
    for change in ({}, {"outliers": None, "drift": None}):
        stored = document.model_copy(update=change).model_dump(mode="json")
        write_json(tmp_path / "metrics.json", stored)
        shown.append(of_embeddings(Layout(root=tmp_path), pointer))
    now, before = shown
    assert (now["outliers_in_train"], now["outliers_in_test"]) == (1, 0)
    assert now["drift_of_test"].md_str.splitlines()[2:] == ["| size | 0.1000 | 0.2000 |", "| edges | – | – |"]
    assert now.keys() - before.keys() == {"outliers_in_train", "outliers_in_test", "drift_of_test"}
    assert before["folds"] == now["folds"]


@pytest.mark.parametrize(
    ("tracking", "kind"),
    [("outputs/mlruns/1/2", dg.PathMetadataValue), ("http://127.0.0.1:5000/#/runs/2", dg.UrlMetadataValue)],
)
def test_a_training_shows_its_arithmetic_and_where_it_is_tracked(
    tmp_path: Path, tracking: str, kind: type
) -> None:
    pointer = CheckpointPointer(
        dataset="a/b", run_id="r", content_hash="0", written_at_utc="2026-01-01T00:00:00Z", checkpoint="best.pth",
        checkpoint_sha256="0", history="history.parquet", curves=None, model_name="resnet18", best_epoch=1, epochs_run=2,
        val_macro_f1=0.5, precision="bf16", pack_pointer="pack.json", tracking=tracking,
    )  # fmt: skip
    found = of_train(Layout(root=tmp_path), pointer)
    link = found["tracking"]
    assert isinstance(link, kind)
    assert str(link.value).endswith(tracking)
    assert found["precision"] == "bf16"
