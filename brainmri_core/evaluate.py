"""Evaluate a checkpoint on the test split: metrics, explanation maps, galleries of errors, and the report of them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd

from brainmri_core.classifier.record import ClassifierFile, write_classifier
from brainmri_core.config.evaluation import EvaluateConfig
from brainmri_core.evaluation.baselines import make_baselines
from brainmri_core.evaluation.calibration import probabilities
from brainmri_core.evaluation.explanations import Explained, explain
from brainmri_core.evaluation.frozen_baseline import FROZEN, frozen_baseline
from brainmri_core.evaluation.galleries import select_galleries, write_overlays, write_sheets
from brainmri_core.evaluation.gradcam import MapError
from brainmri_core.evaluation.label_issues import label_issues, split_without
from brainmri_core.evaluation.metrics_file import (
    Context,
    content_hash,
    evaluation_metrics,
    headline,
    whole_document,
)
from brainmri_core.evaluation.metrics_schema import (
    Measured,
    NoOutlierScore,
    OutlierShare,
    TestLooks,
    Unavailable,
)
from brainmri_core.evaluation.outliers import OutlierModel, fit_outliers
from brainmri_core.evaluation.prediction_table import logits_of, prediction_table
from brainmri_core.evaluation.subsets import subset_masks
from brainmri_core.evaluation.test_ledger import looks_record, record_look
from brainmri_core.evaluation.tested_data import TestedData, gather_tested_data
from brainmri_core.evaluation.tested_model import TestedModel, forward, load_tested_model
from brainmri_core.learning.inference import Predictions
from brainmri_core.pages.evaluation_page import Evaluation, write_pages
from brainmri_core.pictures.figures import write_confusion
from brainmri_core.project.job import Job
from brainmri_core.project.pointers import CheckpointPointer, EvaluationPointer, FoldPackPointer, PackPointer
from brainmri_core.project.sample_table import write_samples
from brainmri_core.splitting.assignment import independent_units
from brainmri_core.system.checksums import sha256_file
from brainmri_core.system.clock import timestamp, utc_now
from brainmri_core.system.json_files import write_json


def evaluate(
    config: EvaluateConfig, checkpoint: CheckpointPointer | None, pack: PackPointer, job: Job
) -> EvaluationPointer:
    """Evaluate a checkpoint on the test rows of a pack.

    Parameters
    ----------
    config : EvaluateConfig
        Its ``data.seed`` must be set.
    checkpoint : CheckpointPointer or None
        The stored pointer; where None, the checkpoint is the file ``config.model.weights_path``.
    pack : PackPointer
        The packed images of a split.
    job : Job
        The run.

    Returns
    -------
    EvaluationPointer
        Its folder holds ``metrics.json``, ``predictions.parquet`` (test rows, and the checkpoint's validation rows,
        marked by ``split``), ``report.html``, ``model_card.md``, ``confusion.png``, ``gradcam.png``, ``galleries/``,
        ``label_issues.csv`` and ``classifier.json``, and appears in one rename.

    Raises
    ------
    ConfigError
        If there is no checkpoint.
    ModelError
        If the checkpoint is missing, damaged, foreign, or of another architecture or input size than configured.
    DataError
        If the classes of checkpoint and pack differ, or the test split is empty.
    """
    clock = [time.perf_counter()]
    tested_model = load_tested_model(config, checkpoint, pack, job)
    found = forward(tested_model)
    clock.append(time.perf_counter())
    weights = checkpoint.content_hash if checkpoint else sha256_file(tested_model.weights)
    tested_data = gather_tested_data(pack, tested_model.pixels, job)
    outliers = _outliers(config, tested_model, found)
    table = _table(tested_model, found, outliers)
    measured = _measure(config, table, tested_model, tested_data, job)
    clock.append(time.perf_counter())
    target = job.layout.evaluation_dir(config.io.eval_out, job.dataset, job.run_id)
    with job.staged(target) as folder:
        write_samples(folder / "predictions.parquet", table)
        write_confusion(folder / "confusion.png", measured.confusion_matrix, tested_model.classes)
        galleries, explained = _pictures(config, folder, table, tested_model, tested_data)
        temperature = measured.calibration.temperature
        issues = _issues(folder, table, tested_model, tested_data, temperature or 1.0)
        metrics = whole_document(
            measured,
            dataset=job.dataset,
            run_id=job.run_id,
            written_at_utc=timestamp(utc_now()),
            outliers=outlier_facts(table, outliers),
            explanations=explained.scores if isinstance(explained, Explained) else explained,
            label_issues=len(issues),
            looks=_looks(table, measured, weights, checkpoint, pack, job),
        )
        write_json(folder / "metrics.json", metrics.model_dump(mode="json"))
        write_classifier(folder, ClassifierFile.of(tested_model, temperature, outliers, target), outliers)
        result = Evaluation(
            metrics,
            table,
            galleries,
            explained if isinstance(explained, Explained) else None,
            issues,
            tested_model,
            tested_data,
            checkpoint,
            config,
        )
        write_pages(folder, result, job)
    for warning in metrics.warnings:
        job.log.warning(warning.text, severity=warning.level)
    clock.append(time.perf_counter())
    steps = ("forward_seconds", "metrics_seconds", "report_seconds")
    job.log.info(
        "evaluated",
        **{name: value for name, value in headline(metrics).items() if value is not None},
        images=len(table),
        **{name: end - start for name, start, end in zip(steps, clock[:-1], clock[1:], strict=True)},
    )
    relative = job.layout.relative
    return EvaluationPointer(
        dataset=job.dataset,
        run_id=job.run_id,
        content_hash=content_hash(metrics, measured, weights, pack.content_hash),
        written_at_utc=metrics.written_at_utc,
        folder=relative(target),
        metrics=relative(target / "metrics.json"),
        predictions=relative(target / "predictions.parquet"),
        report=relative(target / "report.html"),
        headline=headline(metrics),
        checkpoint_pointer=checkpoint.pointer_path if checkpoint else None,
        pack_pointer=pack.pointer_path,
        inference=tested_model.inference,
        test_split=metrics.test_looks.split if metrics.test_looks else None,
    )


def _looks(
    table: pd.DataFrame,
    measured: Measured,
    weights: str,
    checkpoint: CheckpointPointer | None,
    pack: PackPointer,
    job: Job,
) -> TestLooks | None:
    """Enter the evaluation into the ledger of the test split; None where a fold, not the test split, was measured."""
    if isinstance(pack, FoldPackPointer):
        return None
    found = record_look(
        job.layout,
        job.dataset,
        job.run_id,
        "evaluation",
        paths=table.loc[table["split"] == "test", "path"].tolist(),
        checkpoint=weights,
        experiment=checkpoint.experiment if checkpoint else None,
    )
    return looks_record(found, measured.intervals.get("macro_f1"))


def _outliers(config: EvaluateConfig, tested_model: TestedModel, found: Predictions) -> OutlierModel | None:
    samples = tested_model.samples
    validation = (samples["split"] == "validation").to_numpy()
    return fit_outliers(
        found.asked_embeddings[validation],
        samples["class_index"].to_numpy(np.int64)[validation],
        independent_units(samples[validation]),
        config.data.resolved_seed,
    )


def _table(tested_model: TestedModel, found: Predictions, outliers: OutlierModel | None) -> pd.DataFrame:
    none = np.full(len(tested_model.samples), np.nan)
    distance = none if outliers is None else outliers.score(found.asked_embeddings)
    return prediction_table(tested_model.samples, found.logits, tested_model.classes, distance)


def _measure(
    config: EvaluateConfig, table: pd.DataFrame, tested_model: TestedModel, tested_data: TestedData, job: Job
) -> Measured:
    train, test = tested_data.positions("train"), tested_data.positions("test")
    baselines = make_baselines(
        tested_data.samples, tested_data.thumbs, tested_model.pixels, train, test, len(tested_model.classes)
    )
    method, seed = tested_model.meta.train_config.get("method", "finetune"), config.data.resolved_seed
    frozen = frozen_baseline(tested_data, tested_model.classes, method, seed, job) if baselines else ""
    context = Context(
        resamples=config.bootstrap_resamples,
        seed=seed,
        subsets=subset_masks(tested_data.samples, tested_data.copies, test, tested_data.planes),
        baselines=[*baselines, *([] if isinstance(frozen, str) else [frozen])],
        known_copies=tested_data.leak.row("this split").copies or 0,
        seen_in_training=tested_model.seen_in_training,
        known_patients_in_training=tested_data.leak.row("this split").patients or 0,
    )
    measured = evaluation_metrics(table, tested_model.classes, context)
    missing = {f"baselines.{FROZEN}": frozen} if isinstance(frozen, str) and baselines else {}
    return measured.model_copy(update={"reasons": measured.reasons | missing})


def outlier_facts(table: pd.DataFrame, outliers: OutlierModel | None) -> OutlierShare | NoOutlierScore:
    """Return the method and threshold of the outlier score, and the share of the test images that it flags."""
    if outliers is None:
        return NoOutlierScore(reason="too few validation images of this checkpoint are here to fit it")
    test = table.loc[table["split"] == "test", "outlier_score"].to_numpy(np.float64)
    return OutlierShare(
        method="Mahalanobis distance of the embedding to the nearest class mean",
        threshold=outliers.threshold,
        flagged_test_share=float((test > outliers.threshold).mean()),
    )


def _pictures(
    config: EvaluateConfig,
    folder: Path,
    table: pd.DataFrame,
    tested_model: TestedModel,
    tested_data: TestedData,
) -> tuple[pd.DataFrame, Explained | Unavailable]:
    """Write galleries and explanation maps; return the galleries, and the maps with their scores or why there are none."""
    classes = tested_model.classes
    test = table[table["split"] == "test"]
    galleries = select_galleries(test, classes, config.io.top_per_class)
    if config.io.make_galleries:
        (folder / "galleries").mkdir()
        write_sheets(folder / "galleries", galleries, classes, tested_model.pixels)
    if not config.io.make_gradcam:
        return galleries, Unavailable(reason="evaluate.io.make_gradcam is false")
    try:
        explained = explain(tested_model, galleries, test, tested_data, config.data.resolved_seed)
    except MapError as error:
        return galleries, Unavailable(reason=str(error))
    write_overlays(
        folder / "gradcam.png", galleries, classes, tested_model.pixels, explained.rows, explained.maps
    )
    return galleries, explained


def _issues(
    folder: Path, table: pd.DataFrame, tested_model: TestedModel, tested_data: TestedData, temperature: float
) -> pd.DataFrame:
    shares = probabilities(logits_of(table, tested_model.classes), temperature)
    issues = label_issues(table, shares, tested_model.classes)
    issues.to_csv(folder / "label_issues.csv", index=False)
    split_without(tested_data.samples, issues).to_csv(folder / "split_without_label_issues.csv", index=False)
    return issues
