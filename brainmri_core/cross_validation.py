"""Cross-validation: make the pack of one fold, and score the out-of-fold predictions of all folds together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from brainmri_core.config.evaluation import EvaluateConfig
from brainmri_core.errors import ConfigError, DataError
from brainmri_core.evaluation.calibration import probabilities
from brainmri_core.evaluation.cross_validation_schema import (
    CrossValidationMetrics,
    FoldScores,
    PooledScores,
)
from brainmri_core.evaluation.fold_scores import HEADLINE, pooled_scores, probabilities_of, scores_of
from brainmri_core.evaluation.label_issues import issue_sheet, label_issues, split_without
from brainmri_core.evaluation.metrics_schema import TestLooks
from brainmri_core.evaluation.test_ledger import looks_record, record_look
from brainmri_core.evaluation.trained_folds import check_folds, fold_hash, held_out, load_fold
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.device import choose_device, choose_precision
from brainmri_core.learning.inference import predict
from brainmri_core.project.job import Job
from brainmri_core.project.layout import FOLDS_FOLDER
from brainmri_core.project.pointer_store import history, write_pointer
from brainmri_core.project.pointers import (
    CheckpointPointer,
    CrossValidationPointer,
    EvaluationPointer,
    FoldPackPointer,
    PackPointer,
)
from brainmri_core.project.sample_table import (
    FOLD_REASON,
    RESIZE_COLUMNS,
    SPLIT_COLUMNS,
    known_patients,
    read_samples,
    write_samples,
)
from brainmri_core.system.checksums import sha256_json
from brainmri_core.system.clock import timestamp, utc_now
from brainmri_core.system.json_files import write_json
from brainmri_core.system.storage import staging_folder


def fold_pack(pack: PackPointer, fold: int, job: Job) -> FoldPackPointer:
    """Return the pack of one fold: the fold is the test split, the other folds are for training, the real test split is left out.

    Parameters
    ----------
    pack : PackPointer
        The packed images of a split.
    fold : int
        Index of the fold, from 0.
    job : Job
        The run.

    Returns
    -------
    FoldPackPointer
        The stored pointer, of this or an earlier run. It shares the pixels of `pack` and has a sample table of its own.

    Raises
    ------
    ConfigError
        If the split has no such fold.
    DataError
        If the fold, or what is left for training, has no image of a class.
    """
    layout, shared = (
        job.layout,
        pack.model_dump(exclude={"pointer_path", "samples", "content_hash", "run_id"}),
    )
    for stored in history(layout, FoldPackPointer, job.dataset):
        same = stored.content_hash == fold_hash(pack, fold) and shared.items() <= stored.model_dump().items()
        if same and layout.absolute(stored.samples).is_file():
            return stored
    table = read_samples(layout.absolute(pack.samples), {**SPLIT_COLUMNS, **RESIZE_COLUMNS})
    folds = int(table["fold"].max()) + 1
    if fold >= folds:
        raise ConfigError(
            f"The split of {job.dataset} has {folds} folds, so there is no fold {fold}; set split.folds and split again."
        )
    training = table["split"] == "train"
    for name in pack.classes:
        of_class = table["fold"][training & (table["label"] == name)]
        if not 0 < (of_class == fold).sum() < len(of_class):
            raise DataError(
                f"The class {name!r} of {job.dataset} has {(of_class == fold).sum()} of its {len(of_class)} training images "
                f"in fold {fold}, so the fold cannot measure it; lower split.folds or add images, and split again."
            )
    table.loc[table["split"] == "test", ["split", "reason"]] = ("excluded", FOLD_REASON)
    table.loc[training & (table["fold"] == fold), "split"] = "test"
    target = layout.result_dir("cross_validation", job.dataset, FOLDS_FOLDER) / f"{job.run_id}-{fold}"
    with staging_folder(target) as folder:
        write_samples(folder / "samples.parquet", table)
    seen = FoldPackPointer(
        **shared,
        samples=layout.relative(target / "samples.parquet"),
        content_hash=fold_hash(pack, fold),
        run_id=job.run_id,
    )
    return write_pointer(layout, seen, update_latest=False)


def cross_validate(
    config: EvaluateConfig,
    pack: PackPointer,
    checkpoints: Sequence[CheckpointPointer],
    evaluations: Sequence[EvaluationPointer],
    job: Job,
) -> CrossValidationPointer:
    """Score the models of all folds together.

    Parameters
    ----------
    config : EvaluateConfig
        Batch size, precision, mirror averaging, resamples and seed.
    pack : PackPointer
        The pack whose folds were trained on.
    checkpoints, evaluations : sequence of pointers
        One of each per fold, in order of the folds.
    job : Job
        The run.

    Returns
    -------
    CrossValidationPointer
        ``metrics.json`` has ``pooled`` (every training image predicted by the model that never saw its group, with
        95% intervals over groups), ``folds``, ``mean``, ``spread`` (standard deviation over folds) and ``ensemble``
        (mean probability of all folds on the test split); ``predictions.parquet`` the out-of-fold predictions,
        ``ensemble.parquet`` the ensemble's, ``label_issues.csv`` and ``label_issues.png`` the labels that look wrong,
        ``split_without_label_issues.csv`` the split without them.

    Raises
    ------
    IntegrityError
        If a fold was trained on images other than the pack's.
    """
    table = read_samples(job.layout.absolute(pack.samples), {**SPLIT_COLUMNS, **RESIZE_COLUMNS})
    check_folds(pack, checkpoints, evaluations, job)
    pooled = pd.concat(
        [held_out(item, job)[0].assign(fold=fold) for fold, item in enumerate(evaluations)], ignore_index=True
    )
    ensemble = _ensemble(table, pack, checkpoints, config, job)
    issues = label_issues(pooled, probabilities_of(pooled, pack.classes), pack.classes)
    drawn = config.bootstrap_resamples, config.data.resolved_seed
    together = pooled_scores(ensemble, pack.classes, *drawn) if len(ensemble) else None
    folds = {str(fold): scores_of(part, pack.classes) for fold, part in pooled.groupby("fold")}
    metrics = CrossValidationMetrics(
        classes=pack.classes,
        pooled=pooled_scores(pooled, pack.classes, *drawn),
        folds=folds,
        mean={name: _over_folds(folds, name, np.mean) for name in HEADLINE},
        spread={name: _over_folds(folds, name, np.std) for name in HEADLINE},
        ensemble=together,
        label_issues=len(issues),
        test_looks=_looks(ensemble, together, checkpoints, job) if together is not None else None,
    )
    target = job.layout.result_dir("cross_validation", job.dataset, job.run_id)
    with staging_folder(target) as folder:
        write_json(folder / "metrics.json", metrics.model_dump(mode="json"))
        write_samples(folder / "predictions.parquet", pooled)
        write_samples(folder / "ensemble.parquet", ensemble)
        issues.to_csv(folder / "label_issues.csv", index=False)
        split_without(table, issues).to_csv(folder / "split_without_label_issues.csv", index=False)
        if len(issues):
            issue_sheet(issues, table, open_pack(job.layout, pack)).save(folder / "label_issues.png")
    job.log.info("cross-validated", folds=len(checkpoints), images=len(pooled), label_issues=len(issues))
    return CrossValidationPointer(
        dataset=job.dataset,
        run_id=job.run_id,
        content_hash=sha256_json(
            [pack.content_hash, [item.content_hash for item in (*checkpoints, *evaluations)]]
        ),
        written_at_utc=timestamp(utc_now()),
        folder=job.layout.relative(target),
        metrics=job.layout.relative(target / "metrics.json"),
        predictions=job.layout.relative(target / "predictions.parquet"),
        headline=_headline(metrics),
        fold_checkpoints=[str(item.pointer_path) for item in checkpoints],
        pack_pointer=str(pack.pointer_path),
        recipe=_common([item.recipe for item in checkpoints]),
        inference=_common([item.inference for item in evaluations]),
        test_split=metrics.test_looks.split if metrics.test_looks else None,
    )


def _common(values: Sequence[str | None]) -> str | None:
    """Return the value where it is the same for all folds, else None."""
    return values[0] if len(set(values)) == 1 else None


def _looks(
    ensemble: pd.DataFrame, scores: PooledScores, checkpoints: Sequence[CheckpointPointer], job: Job
) -> TestLooks:
    """Enter the ensemble into the ledger of the test split."""
    found = record_look(
        job.layout,
        job.dataset,
        job.run_id,
        "cross_validation",
        paths=ensemble["path"].tolist(),
        checkpoint=sha256_json([item.content_hash for item in checkpoints]),
        experiment=_common([item.experiment for item in checkpoints]),
    )
    return looks_record(found, (scores.intervals or {}).get("macro_f1"))


def _headline(metrics: CrossValidationMetrics) -> dict[str, float | None]:
    headline = {f"pooled_{name}": getattr(metrics.pooled, name) for name in HEADLINE}
    headline |= {f"spread_{name}": value for name, value in metrics.spread.items()}
    if metrics.ensemble is not None:
        headline |= {f"ensemble_{name}": getattr(metrics.ensemble, name) for name in HEADLINE}
    return headline


def _over_folds(folds: dict[str, FoldScores], name: str, statistic: Any) -> float | None:
    values = [value for item in folds.values() if (value := getattr(item, name)) is not None]
    return float(statistic(values)) if values else None


def _ensemble(
    table: pd.DataFrame,
    pack: PackPointer,
    checkpoints: Sequence[CheckpointPointer],
    config: EvaluateConfig,
    job: Job,
) -> pd.DataFrame:
    """Predict the test split by the mean probability of the models of all folds."""
    test = table[(table["split"] == "test") & (table["row"] >= 0)].sort_values("row", ignore_index=True)
    pixels, device = open_pack(job.layout, pack), choose_device(job.env)
    precision = choose_precision(config.precision, True, device)
    total = np.zeros((len(test), len(pack.classes)))
    for fold, checkpoint in enumerate(checkpoints):
        model, meta = load_fold(checkpoint, fold, device, job)
        logits = predict(
            model,
            pixels,
            test["row"].to_numpy(np.int64),
            meta.preprocessing,
            device=device,
            batch_size=config.data.batch_size,
            precision=precision,
            tta=config.mirror,
        ).logits
        total += probabilities(logits)
    mean = total / len(checkpoints)
    columns = {f"prob_{name}": mean[:, index] for index, name in enumerate(pack.classes)}
    known = test[["row", "path", "group", "label", "class_index"]]
    return known.assign(patient=known_patients(test), **columns)
