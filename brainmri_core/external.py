"""External evaluation: measure a checkpoint on another data set, without the images it may have seen.

The temperature and the outlier limit are those of the checkpoint's evaluation on its own data; nothing is fitted again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from brainmri_core.arrays import Mask
from brainmri_core.classifier.record import ClassifierFile, read_classifier
from brainmri_core.classifier.search import own_evaluation, recorded_checkpoint
from brainmri_core.config.external import ExternalConfig
from brainmri_core.errors import ConfigError, DataError
from brainmri_core.evaluation.contender import Contender
from brainmri_core.evaluation.external_schema import (
    ExternalMeasured,
    ExternalMetrics,
    ImageCounts,
    Prevalence,
    TakenOutCounts,
)
from brainmri_core.evaluation.external_scores import (
    Carried,
    compare_with_own,
    external_headline,
    flag_rates,
    full_scores,
    score_rows,
)
from brainmri_core.evaluation.external_shift import ExternalPredictions, describe_shift, predict_external
from brainmri_core.evaluation.external_warnings import external_warnings, no_score
from brainmri_core.evaluation.metrics_schema import Identity, Unavailable
from brainmri_core.evaluation.outliers import OutlierModel
from brainmri_core.evaluation.prediction_table import labels_of, logits_of, prediction_table, read_predictions
from brainmri_core.evaluation.recalibration import plan_recalibration
from brainmri_core.evaluation.shift import ShiftReport
from brainmri_core.evaluation.taken_out import (
    PackedImages,
    TakenOut,
    TrainingImages,
    refuse_one_archive,
    take_out,
    training_images_of,
)
from brainmri_core.images.pack import check_pack
from brainmri_core.learning.checkpoint import CheckpointMeta, known_hashes, load_model, twin_sha256
from brainmri_core.learning.device import choose_device
from brainmri_core.pages.external_page import ExternalEvaluation, write_external_page
from brainmri_core.pictures.figures import write_confusion
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.foreign_names import compared
from brainmri_core.project.job import Job
from brainmri_core.project.pointers import EvaluationPointer, ExternalEvaluationPointer, PackPointer
from brainmri_core.project.sample_table import write_samples
from brainmri_core.splitting.assignment import independent_units
from brainmri_core.system.checksums import sha256_json
from brainmri_core.system.clock import timestamp, utc_now
from brainmri_core.system.json_files import write_json

BARE_BATCH_SIZE = 32


@dataclass(frozen=True)
class _ExternalModel:
    """A checkpoint to measure on another data set, with the temperature and outlier model of its own evaluation."""

    weights: Path
    model: Contender
    carried: Carried
    outliers: OutlierModel | None
    evaluation: EvaluationPointer | None

    @property
    def meta(self) -> CheckpointMeta:
        return self.model.meta


def evaluate_elsewhere(
    config: ExternalConfig, trained_on: str, weights: Path, pack: PackPointer, job: Job
) -> ExternalEvaluationPointer:
    """Evaluate a checkpoint of one data set on the images of another.

    Parameters
    ----------
    config : ExternalConfig
        Its ``seed`` must be set.
    trained_on : str
        Key of the data set that the checkpoint was trained on.
    weights : pathlib.Path
        The checkpoint, in torch's format or as safetensors.
    pack : PackPointer
        The packed images of the job's data set, of any split. They are prepared as the checkpoint records; where the pack
        was prepared in another way, they are read again from their files.
    job : Job
        The run.

    Returns
    -------
    ExternalEvaluationPointer
        Its folder holds ``metrics.json``, ``predictions.parquet`` (all images; the column ``taken_out`` says why an image
        does not count), ``taken_out.csv``, ``report.html`` and, where there is a score, ``confusion.png``, and appears in
        one rename. Its ``reason`` says why there is no score.

    Raises
    ------
    ConfigError
        If both data sets are the same, or the checkpoint was trained on neither of them.
    DataError
        If they have no class in common, the images have no labels, or both data sets came from one archive.
    ModelError
        If the checkpoint is missing, damaged or foreign.
    IntegrityError
        If the pack was changed.
    """
    check_pair(trained_on, job)
    external_model = _load(weights, trained_on, job)
    known = _known_classes(external_model.meta, pack)
    learnt = training_images_of(external_model.meta, job)
    if isinstance(learnt, TrainingImages):
        refuse_one_archive(learnt.images.pack, pack, job)
    check_pack(job.layout, pack)
    other = PackedImages.read(pack, job)
    taken = (
        take_out(learnt, other, config.copies, job)
        if isinstance(learnt, TrainingImages)
        else TakenOut.nothing(learnt)
    )
    job.log.info("taken out as seen", images=len(taken.table), of=len(other.table), **taken.counts())
    seen = predict_external(external_model.model, _named(other.table, known, external_model.meta), pack)
    table = _table(external_model, seen, taken)
    shift, prevalence = describe_shift(
        config, external_model.model, external_model.carried, learnt, seen, _scored(table), job
    )
    measured = _measure(config, external_model, table, known, taken, shift, prevalence)
    return _write(config, external_model, table, measured, learnt, other, taken, job)


def check_pair(trained_on: str, job: Job) -> None:
    """Refuse an external evaluation on the data set that the model was trained on, or on one without labels.

    Parameters
    ----------
    trained_on : str
        Key of the data set that the model was trained on.
    job : Job
        The run, on the data set to measure on.

    Raises
    ------
    ConfigError
        If both data sets are the same.
    DataError
        If the job's data set has no labels.
    """
    if trained_on == job.dataset:
        raise ConfigError(
            f"{trained_on} is what the model was trained on; its own test images are measured by the asset evaluation: "
            f"`brainmri evaluate --dataset {trained_on}`."
        )
    job.entry.require_labels("an external evaluation")


def _load(weights: Path, trained_on: str, job: Job) -> _ExternalModel:
    """Load a checkpoint with the temperature, outlier model and predictions of its newest evaluation on its own data."""
    device = choose_device(job.env)
    model, meta = load_model(weights, device)
    if meta.dataset != trained_on:
        raise ConfigError(
            f"The checkpoint {weights} was trained on {meta.dataset}, not on {trained_on}; say --trained-on {meta.dataset}."
        )
    found = own_evaluation(job.layout, weights, meta)
    described: ClassifierFile | None = None
    outliers: OutlierModel | None = None
    if found is None:
        why = "the checkpoint was not evaluated on its own data in this project"
        carried = Carried(reason=why)
        job.log.warning(f"{why}; run `brainmri evaluate --dataset {trained_on}` for the comparison")
    else:
        described, outliers = read_classifier(job.layout.absolute(found.folder))
        limit = None if outliers is None else outliers.threshold
        own = read_predictions(job.layout.absolute(found.predictions))[0]
        carried = Carried(described.temperature, limit, own)
    batch_size = described.batch_size if described else BARE_BATCH_SIZE
    precision, mirror = (described.precision, described.mirror) if described else ("fp32", False)
    contender = Contender(model, meta, device, precision, mirror, batch_size, job)
    return _ExternalModel(weights, contender, carried, outliers, found)


def _known_classes(meta: CheckpointMeta, pack: PackPointer) -> dict[str, str]:
    """Return the classes of a pack that a checkpoint knows, by the model's name for them, in the model's order.

    Raises
    ------
    DataError
        If there is none.
    """
    entry = load_catalogue().get(meta.dataset)
    same = {compared(name): name for name in meta.classes}
    names = {
        name: (entry.canonical(name) if entry is not None else None) or same.get(compared(name), "")
        for name in pack.classes
    }
    known = {name: target for name, target in names.items() if target in meta.classes}
    if not known:
        raise DataError(
            f"{pack.dataset} ({', '.join(pack.classes)}) and the checkpoint of {meta.dataset} ({', '.join(meta.classes)}) have "
            "no class in common; add an alias to the catalogue where a class only has another name."
        )
    return dict(sorted(known.items(), key=lambda item: meta.classes.index(item[1])))


def _named(samples: pd.DataFrame, known: dict[str, str], meta: CheckpointMeta) -> pd.DataFrame:
    """Rename the images' classes to the model's names; a class that it never learnt keeps its name and has the index -1."""
    labels = samples["label"].astype(object)
    index = {name: meta.classes.index(target) for name, target in known.items()}
    return samples.assign(
        label=[known.get(name, name) for name in labels],
        class_index=[index.get(name, -1) for name in labels],
        split="external",
    )


def _table(external_model: _ExternalModel, seen: ExternalPredictions, taken: TakenOut) -> pd.DataFrame:
    """Make the prediction table; the column ``taken_out`` says why an image was taken out, and is empty for the others."""
    none = np.full(len(seen.table), np.nan)
    distance = none if external_model.outliers is None else external_model.outliers.score(seen.embeddings)
    table = prediction_table(seen.table, seen.logits, external_model.meta.classes, distance)
    reasons = dict(zip(taken.table["path"], taken.table["reason"], strict=True))
    table["taken_out"] = [reasons.get(path, "") for path in table["path"]]
    return table


def _scored(table: pd.DataFrame) -> Mask:
    """Mark the images that are scored: those of a class that the model knows and that were not taken out."""
    known = table["class_index"].to_numpy(np.int64) >= 0
    return np.asarray(known & (table["taken_out"] == "").to_numpy(np.bool_), np.bool_)


def _measure(
    config: ExternalConfig,
    external_model: _ExternalModel,
    table: pd.DataFrame,
    known: dict[str, str],
    taken: TakenOut,
    shift: ShiftReport | Unavailable,
    prevalence: Prevalence | Unavailable,
) -> ExternalMeasured:
    classes, carried = external_model.meta.classes, external_model.carried
    common = list(dict.fromkeys(known.values()))
    counts = _scored(table)
    learnt = (table["class_index"] >= 0).to_numpy(np.bool_)
    left = (table["taken_out"] == "").to_numpy(np.bool_)
    scored = table[counts].reset_index(drop=True)
    reason = no_score(table, taken, len(scored))
    return ExternalMeasured(
        trained_on=external_model.meta.dataset,
        classes=list(classes),
        common_classes=common,
        never_learnt=sorted(set(table["label"][~learnt])),
        images=ImageCounts(
            predicted=len(table),
            taken_out=int((~left).sum()),
            never_learnt=int((left & ~learnt).sum()),
            scored=len(scored),
        ),
        taken_out=TakenOutCounts(
            by_reason=taken.counts(), obstacle=taken.obstacle, left_but_in_own_test=taken.tested
        ),
        reason=reason,
        out_of_distribution=flag_rates(
            table[left].reset_index(drop=True), learnt[left], carried, classes, config
        ),
        rows=score_rows(table[learnt].reset_index(drop=True), counts[learnt], classes, common, config),
        scores=full_scores(scored, classes, carried, config) if reason is None else None,
        comparison=compare_with_own(scored, classes, carried, config)
        if reason is None
        else Unavailable(reason=reason),
        recalibration=plan_recalibration(
            logits_of(scored, classes),
            labels_of(scored),
            independent_units(scored),
            config.recalibration_images,
            temperature=carried.temperature or 1.0,
            resamples=config.recalibration_resamples,
            seed=config.resolved_seed,
        )
        if reason is None
        else [],
        shift=shift,
        prevalence=prevalence,
    )


def _write(
    config: ExternalConfig,
    external_model: _ExternalModel,
    table: pd.DataFrame,
    measured: ExternalMeasured,
    learnt: TrainingImages | str,
    other: PackedImages,
    taken: TakenOut,
    job: Job,
) -> ExternalEvaluationPointer:
    layout = job.layout
    target = layout.evaluation_dir(config.out, job.dataset, job.run_id)
    metrics = ExternalMetrics(
        dataset=job.dataset,
        run_id=job.run_id,
        written_at_utc=timestamp(utc_now()),
        **dict(measured),
        warnings=external_warnings(measured, external_model.meta, taken),
    )
    with job.staged(target) as folder:
        write_samples(folder / "predictions.parquet", table)
        taken.table.drop(columns="position").to_csv(folder / "taken_out.csv", index=False)
        if metrics.scores is not None:
            write_confusion(folder / "confusion.png", metrics.scores.confusion_matrix, metrics.classes)
        write_json(folder / "metrics.json", metrics.model_dump(mode="json"))
        images = learnt.images if isinstance(learnt, TrainingImages) else None
        write_external_page(
            folder, ExternalEvaluation(metrics, external_model.meta, images, other, taken, config), job
        )
    for warning in metrics.warnings:
        job.log.warning(warning.text, severity=warning.level)
    training = recorded_checkpoint(layout, external_model.weights, external_model.meta.dataset)
    headline = external_headline(metrics)
    job.log.info(
        "evaluated elsewhere",
        images=len(table),
        **{name: value for name, value in headline.items() if value is not None},
    )
    return ExternalEvaluationPointer(
        dataset=job.dataset,
        run_id=job.run_id,
        content_hash=sha256_json(
            [
                sorted(known_hashes(external_model.weights)),
                other.pack.content_hash,
                metrics.model_dump(mode="json", exclude={*Identity.model_fields}),
            ]
        ),
        written_at_utc=metrics.written_at_utc,
        trained_on=external_model.meta.dataset,
        folder=layout.relative(target),
        metrics=layout.relative(target / "metrics.json"),
        predictions=layout.relative(target / "predictions.parquet"),
        report=layout.relative(target / "report.html"),
        headline=headline,
        images=metrics.images.scored,
        taken_out=metrics.images.taken_out,
        reason=metrics.reason,
        checkpoint_sha256=twin_sha256(external_model.weights),
        checkpoint_pointer=training.pointer_path if training else None,
        evaluation_pointer=external_model.evaluation.pointer_path if external_model.evaluation else None,
        pack_pointer=other.pack.pointer_path,
    )
