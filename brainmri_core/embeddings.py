"""Embeddings: the features of every image from a frozen network, and the cross-validated score of a linear probe on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from brainmri_core.config.embeddings import EmbeddingsConfig
from brainmri_core.errors import DataError, ModelError
from brainmri_core.evaluation.cross_validation_schema import FoldScores, PooledScores
from brainmri_core.evaluation.drift import DriftMeasure
from brainmri_core.evaluation.embeddings_schema import EmbeddingsMetrics, OutlierCounts
from brainmri_core.evaluation.feature_checks import FeaturedImages
from brainmri_core.evaluation.fold_scores import HEADLINE, pooled_scores, probabilities_of, scores_of
from brainmri_core.evaluation.label_issues import label_issues
from brainmri_core.evaluation.metrics_schema import Unavailable
from brainmri_core.evaluation.probe_folds import fold_predictions
from brainmri_core.images.pack import check_pack, open_pack
from brainmri_core.learning.encoder import FEATURES_NAME, RECORD_NAME, Encoder, features_of, load_encoder
from brainmri_core.project.job import Job
from brainmri_core.project.pointers import EmbeddingsPointer, PackPointer
from brainmri_core.project.sample_table import read_samples, write_samples
from brainmri_core.system.checksums import sha256_file, sha256_json
from brainmri_core.system.clock import timestamp, utc_now
from brainmri_core.system.json_files import write_json

_COLUMNS = ("row", "path", "split", "group", "label", "class_index", "fold", "width", "height")


def embeddings(config: EmbeddingsConfig, pack: PackPointer, job: Job) -> EmbeddingsPointer:
    """Compute the features of a pack's images, or reuse those computed before, and score a linear probe on them.

    Parameters
    ----------
    config : EmbeddingsConfig
        Names the network; its ``seed`` must be set.
    pack : PackPointer
        The packed images of a split.
    job : Job
        The run.

    Returns
    -------
    EmbeddingsPointer
        ``features`` is float32 ``(N, D)``, one row per row of the pack, test images included. Its folder holds
        ``metrics.json`` and ``outliers.csv``, which ranks all images by how unlike the training images they are. Where the
        folds could be scored it also holds ``predictions.parquet``, the out-of-fold predictions of the training images, and
        ``label_issues.csv``, the labels that look wrong by them. Two pictures show the first images of both lists, each
        beside the training images nearest to it. The test split is not scored, and its labels are not used.

    Raises
    ------
    IntegrityError
        If the pack is missing or was changed.
    ModelError
        If the network or its weights are not available, or it has fewer depths than asked for.
    """
    check_pack(job.layout, pack)
    encoder = _encoder(config, pack, job)
    features, kept = features_of(encoder, pack, job.layout, job.log, config.batch_size)
    samples = read_samples(job.layout.absolute(pack.samples), dict.fromkeys(_COLUMNS, ""))
    predictions, reason = None, None
    try:
        predictions = fold_predictions(
            features,
            samples,
            pack.classes,
            val_frac=config.val_frac,
            seed=config.resolved_seed,
            balanced=config.class_weights,
        )
    except DataError as error:
        reason = str(error)
        job.log.warning(f"The probe has no score: {reason}")
    target = job.layout.result_dir("embeddings", job.dataset, job.run_id)
    images = FeaturedImages.of(features, samples, open_pack(job.layout, pack))
    with job.staged(target) as folder:
        metrics = _metrics(config, predictions, pack, reason, *_checks(folder, images, config, job))
        write_json(folder / "metrics.json", metrics.model_dump(mode="json"))
        if predictions is not None:
            write_samples(folder / "predictions.parquet", predictions)
            issues = label_issues(predictions, probabilities_of(predictions, pack.classes), pack.classes)
            issues.to_csv(folder / "label_issues.csv", index=False)
            _draw(folder / "label_issues.png", images, "Labels that look wrong", issues["path"].tolist())
    headline = {name: getattr(metrics.pooled, name) for name in HEADLINE} if metrics.pooled else {}
    job.log.info("embeddings", images=len(features), features=features.shape[1], **headline)
    relative = job.layout.relative
    return EmbeddingsPointer(
        dataset=job.dataset,
        run_id=job.run_id,
        content_hash=sha256_json(
            [sha256_file(kept / FEATURES_NAME), pack.content_hash, metrics.model_dump(mode="json")]
        ),
        written_at_utc=timestamp(utc_now()),
        folder=relative(target),
        metrics=relative(target / "metrics.json"),
        predictions=relative(target / "predictions.parquet") if predictions is not None else None,
        features=relative(kept / FEATURES_NAME),
        features_sha256=sha256_file(kept / FEATURES_NAME),
        record=relative(kept / RECORD_NAME),
        model_name=encoder.name,
        depths=encoder.depths,
        pretrained=encoder.pretrained,
        weights_sha256=encoder.weights_sha256,
        images=len(features),
        width=features.shape[1],
        headline=headline,
        reason=reason,
        pack_pointer=str(pack.pointer_path),
        pack_sha256=pack.pack_sha256,
    )


def _encoder(config: EmbeddingsConfig, pack: PackPointer, job: Job) -> Encoder:
    try:
        return load_encoder(
            config.model,
            config.probe.depths,
            image_size=config.image_size or pack.size,
            precision=config.precision,
            seed=config.resolved_seed,
            pack=pack,
            job=job,
        )
    except ModelError as error:  # its text names keys of train, but the user set those of embeddings
        text = str(error).replace("train.data.image_size", "embeddings.image_size")
        for block in ("model", "probe"):
            text = text.replace(f"train.{block}.", f"embeddings.{block}.")
        raise ModelError(text) from error


def _metrics(
    config: EmbeddingsConfig,
    predictions: pd.DataFrame | None,
    pack: PackPointer,
    reason: str | None,
    outliers: OutlierCounts | Unavailable,
    drift: Sequence[DriftMeasure],
) -> EmbeddingsMetrics:
    """Score the probe on all folds together and on each fold, if there are predictions, and assemble the document."""
    pooled: PooledScores | None = None
    folds: dict[str, FoldScores] = {}
    if predictions is not None:
        drawn = config.bootstrap_resamples, config.resolved_seed
        pooled = pooled_scores(predictions, pack.classes, *drawn)
        folds = {str(fold): scores_of(part, pack.classes) for fold, part in predictions.groupby("fold")}
    return EmbeddingsMetrics(pooled=pooled, folds=folds, reason=reason, outliers=outliers, drift=list(drift))


def _checks(
    folder: Path, images: FeaturedImages, config: EmbeddingsConfig, job: Job
) -> tuple[OutlierCounts | Unavailable, Sequence[DriftMeasure]]:
    """Write the outliers among all images; return their counts, and the drift of the test images."""
    drift = images.drift(config.false_alarms, config.resolved_seed)
    unlike = [item.kind for item in drift if item.exceeded]
    if unlike:
        job.log.warning(f"The test images are unlike the training images in {', '.join(unlike)}.")
    found = images.outliers(config.resolved_seed)
    if found is None:
        return Unavailable(reason="too few training images, or all of one group"), drift
    table, threshold = found
    table.to_csv(folder / "outliers.csv", index=False)
    _draw(folder / "outliers.png", images, "Images most unlike the training images", table["path"].tolist())
    flagged = table[table["flagged"]]["split"].value_counts()
    counts = {side: int(flagged.get(side, 0)) for side in ("train", "test")}
    return OutlierCounts(threshold=threshold, **counts), drift


def _draw(path: Path, images: FeaturedImages, title: str, paths: list[str]) -> None:
    if paths:
        images.sheet(f"{title}, each beside the training images nearest to it", paths).save(path)
