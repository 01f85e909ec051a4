"""Batch prediction: predict every image of a data set, labelled or not, and measure its drift from the model's own data."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from brainmri_core.arrays import Mask
from brainmri_core.classifier.finished_work import (
    FIRST,
    KEY,
    FinishedWork,
    embeddings_of,
    features_of,
    pass_on,
    public,
    take_in,
)
from brainmri_core.classifier.prediction import Prediction
from brainmri_core.classifier.record import CLASSIFIER_NAME, OUTLIERS_NAME
from brainmri_core.classifier.reference import validation_reference
from brainmri_core.classifier.search import model_in_use, recorded_checkpoint
from brainmri_core.cluster.shard_files import Arrays
from brainmri_core.cluster.shards import evenly
from brainmri_core.cluster.workers import workers_of
from brainmri_core.config import EnvConfig
from brainmri_core.config.batch import BatchPredictConfig
from brainmri_core.errors import IntegrityError
from brainmri_core.escaping import printable
from brainmri_core.evaluation.drift import DriftReport, measure_drift
from brainmri_core.evaluation.label_shift import estimate_label_shift
from brainmri_core.evaluation.shift import ImageSet, measure_shift
from brainmri_core.predict import Classifier
from brainmri_core.project.foreign_names import shown_name
from brainmri_core.project.job import Job
from brainmri_core.project.layout import RESUME_FOLDER
from brainmri_core.project.pointer_store import latest_pointer
from brainmri_core.project.pointers import (
    BatchPredictionPointer,
    ChampionPointer,
    CheckpointPointer,
    FetchPointer,
)
from brainmri_core.project.sample_table import (
    FETCH_COLUMNS,
    known_patients,
    known_scans,
    read_samples,
    write_samples,
)
from brainmri_core.splitting.assignment import joined
from brainmri_core.system.checksums import sha256_file, sha256_json
from brainmri_core.system.clock import timestamp, utc_now
from brainmri_core.system.json_files import write_json
from brainmri_core.system.locks import exclusive
from brainmri_core.system.storage import staging_folder

# Version of the prediction rules: work that an earlier version left is done again.
_RULES = 1
_PART = 256
"""Images per part that is written to the disk: the most that a killed run loses."""

_SAY_EVERY_S = 10.0
_SHARD = 1024
_Key = tuple[str, str]
_Answer = tuple[_Key, Prediction]


@dataclass(frozen=True)
class _Model:
    path: Path
    classifier: Classifier
    sha256: str
    identity: str
    record: CheckpointPointer | None


def batch_predict(config: BatchPredictConfig, fetched: FetchPointer, job: Job) -> BatchPredictionPointer:
    """Predict all images of a data set.

    Parameters
    ----------
    config : BatchPredictConfig
        Names the model; its seed must be set.
    fetched : FetchPointer
        The data set. Its labels, if it has any, are not used.
    job : Job
        The run.

    Returns
    -------
    BatchPredictionPointer
        Its folder holds ``predictions.parquet``, a row per image, and ``report.json``, with the drift of the newest images
        from the model's validation images.

    Raises
    ------
    ConfigError, MissingUpstreamError
        If it is not clear which model is meant, or there is none.
    ModelError, IntegrityError
        If the checkpoint is gone, damaged or not the one on record.
    """
    model = _load(config, job)
    meta = model.classifier.meta
    if job.entry.labelled:
        job.log.warning(
            "the labels of this data set are not looked at; evaluate or external_evaluation measure a model on them"
        )
    table = read_samples(job.layout.absolute(fetched.samples), FETCH_COLUMNS).sort_values(
        "path", ignore_index=True
    )
    place = job.layout.configured(config.out_dir) / job.dataset
    with exclusive(job.layout.lock("batch_predict", job.dataset)):
        job.clear_stale(place)
        work = FinishedWork(place / RESUME_FOLDER / model.identity, tuple(meta.classes))
        take_in(work, job.layout)
        rows, reused = _predicted(model, work, table, job.layout.absolute(fetched.dataset_root), job)
        report = _report(config, model, rows, table, reused, job)
        target = place / job.run_id
        with staging_folder(target) as folder:
            write_samples(folder / "predictions.parquet", _described(rows, table))
            write_json(folder / "report.json", report)
        work.complete(rows)
        pass_on(work, job.layout)
    counts = {key: report[key] for key in ("images", "unusable", "flagged")}
    job.log.info("predicted all images", **counts, reused=reused, drifted=report["drifted"])
    return BatchPredictionPointer(
        dataset=job.dataset,
        run_id=job.run_id,
        content_hash=sha256_json(
            [
                fetched.content_hash,
                model.identity,
                config.drift_images,
                config.false_alarms,
                config.resolved_seed,
            ]
        ),
        written_at_utc=report["written_at_utc"],
        folder=job.layout.relative(target),
        predictions=job.layout.relative(target / "predictions.parquet"),
        predictions_sha256=sha256_file(target / "predictions.parquet"),
        report=job.layout.relative(target / "report.json"),
        fetch_pointer=str(fetched.pointer_path),
        checkpoint_pointer=model.record.pointer_path if model.record else None,
        model_sha256=model.sha256,
        trained_on=meta.dataset,
        predicted=report["predicted"],
        drifted=report["drifted"],
        **counts,
    )


def _load(config: BatchPredictConfig, job: Job) -> _Model:
    if config.checkpoint is not None:
        path = job.layout.given(config.checkpoint)
    else:
        kinds = (ChampionPointer, CheckpointPointer)
        own = any(latest_pointer(job.layout, kind, job.dataset) is not None for kind in kinds)
        trained_on = config.model_of or (job.dataset if own else None)
        path = model_in_use(job.layout, trained_on, "batch_predict.model_of")
    classifier = Classifier.load(path, env=job.env)
    digest, identity = _identity(classifier)
    job.log.info(
        "model in use", file=classifier.weights.name, sha256=digest[:12], trained_on=classifier.meta.dataset
    )
    for caveat in classifier.caveats()[1:]:
        job.log.warning(caveat)
    record = recorded_checkpoint(job.layout, classifier.weights, classifier.meta.dataset)
    return _Model(path, classifier, digest, identity, record)


def _identity(classifier: Classifier) -> tuple[str, str]:
    """Return the hash of a model's weights, and that of everything its predictions depend on."""
    digest = sha256_file(classifier.weights)
    evaluation = classifier.evaluation
    files = [] if evaluation is None else [evaluation / name for name in (CLASSIFIER_NAME, OUTLIERS_NAME)]
    described = [sha256_file(file) for file in files if file.is_file()]
    # everything else that the predictions depend on is in the checkpoint
    return digest, sha256_json([_RULES, digest, described, str(classifier.inference.device)])[:16]


def _predicted(
    model: _Model, work: FinishedWork, table: pd.DataFrame, root: Path, job: Job
) -> tuple[pd.DataFrame, int]:
    """Return a row for each image of the table, in its order, and how many were predicted by earlier runs."""
    known, damaged = work.read()
    for path in damaged:
        job.log.warning("predictions that a run left are damaged; they are made again", file=path.name)
    # an image that could not be read the last time may be readable now
    known = known[known["error"] == ""].merge(table[KEY], on=KEY)
    missing = table[KEY].merge(known[KEY], on=KEY, how="left", indicator=True)
    todo = missing[missing["_merge"] == "left_only"]
    job.log.info("predicting", images=len(table), done_before=len(known), to_do=len(todo))
    parts, done, said = [known], len(known), time.monotonic()
    found = _new_rows(model, work, list(todo[KEY].itertuples(index=False, name=None)), root, job)
    with (
        closing(found),
        tqdm(total=len(table), initial=done, desc="predicting", unit="image", disable=None) as bar,
    ):
        for rows in found:
            work.add(rows)
            parts.append(rows)
            done += len(rows)
            bar.update(len(rows))
            if time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                job.log.info("predicted", done=done, of=len(table))
    filled = [part for part in parts if len(part)] or parts
    rows = table[KEY].merge(pd.concat(filled, ignore_index=True), on=KEY, how="left")
    lost = rows["path"][rows["error"].isna()]
    if len(lost):
        raise IntegrityError(
            f"The fetched file {shown_name(lost.iloc[0])} of {job.dataset} is gone; delete {root} and fetch again."
        )
    return rows[work.columns], len(known)


def _new_rows(
    model: _Model, work: FinishedWork, keys: list[_Key], root: Path, job: Job
) -> Generator[pd.DataFrame, None, None]:
    """Yield the rows of images, some at a time, from the workers of a cluster or from this process, the same to the bit."""
    now = timestamp(utc_now())
    if not keys:
        return
    with workers_of(job) as workers:
        if workers is None:
            answers = _answers(model.classifier, keys, root)
            with closing(answers):
                while part := list(islice(answers, _PART)):
                    yield work.rows([key for key, _ in part], [item for _, item in part], now)
            return
        env = job.env.model_dump()
        pieces = [
            (str(model.path), env, model.identity, keys[shard], str(root), now)
            for shard in evenly(len(keys), workers.threads, _SHARD)
        ]
        with closing(workers.map("predicting", predict_shard, pieces)) as results:
            for found in results:
                yield work.unpacked(found["parquet"].tobytes())


_mine = threading.local()  # the hooks of a model serve one thread at a time


def predict_shard(
    path: str, env: dict[str, Any], identity: str, keys: list[_Key], root: str, now: str
) -> Arrays:
    """Predict some images: what a worker does, with a copy of the model for each of its threads.

    Raises
    ------
    IntegrityError
        If the model that the worker finds, or the device it runs on, is not that of the run.
    """
    if getattr(_mine, "identity", None) != identity:
        classifier = Classifier.load(path, env=EnvConfig(**env))
        if _identity(classifier)[1] != identity:
            raise IntegrityError(
                f"A Dask worker that predicts on {classifier.inference.device} does not have the model, or not the device, of "
                f"this run in {path}; give all machines the same kind of device, and run again."
            )
        _mine.identity, _mine.classifier = identity, classifier
    found = list(_answers(_mine.classifier, keys, Path(root), workers=1))
    work = FinishedWork(Path(root), tuple(_mine.classifier.meta.classes))
    rows = work.rows([key for key, _ in found], [item for _, item in found], now)
    return {"parquet": np.frombuffer(work.packed(rows), np.uint8)}


def _answers(
    classifier: Classifier, keys: list[_Key], root: Path, workers: int | None = None
) -> Generator[_Answer, None, None]:
    """Yield each image's key with its prediction; error texts do not hold the folder on this machine."""
    names = {str(root / path): (path, digest) for path, digest in keys}
    shown = f"{printable(str(root))}/"
    for item in classifier.stream(list(names), traces=True, workers=workers):
        if item.name not in names or item.slice not in (None, 1):
            continue
        error = item.error and item.error.replace(shown, "")
        if item.slice is not None:  # fetch makes slices of scans, so a fetched file must not be a scan
            error = f"{printable(names[item.name][0])} holds {item.slices} slices; fetch the data set again."
        yield names[item.name], item if error is None else Prediction(item.name, error=error)


def _described(rows: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Return the predictions with the patient and scan of each image, where the data set gives them."""
    found = public(rows)
    for place, name in enumerate(("patient", "scan"), len(KEY)):
        if name in table.columns:
            found.insert(place, name, table[name])
    return found


def _report(
    config: BatchPredictConfig, model: _Model, rows: pd.DataFrame, table: pd.DataFrame, reused: int, job: Job
) -> dict[str, Any]:
    classifier = model.classifier
    usable = (rows["error"] == "").to_numpy()
    recent = _recent(rows, len(rows) - reused, config.drift_images)[usable]
    called = rows["predicted"][usable].value_counts()
    flagged = None if classifier.outliers is None else int(rows["outlier"][usable].sum())
    newest = rows[usable][recent]
    drift = _drift(config, model, newest, table[usable][recent], job)
    return {
        "dataset": job.dataset,
        "run_id": job.run_id,
        "written_at_utc": timestamp(utc_now()),
        "model": {
            "sha256": model.sha256,
            "architecture": classifier.meta.model_name,
            "trained_on": classifier.meta.dataset,
            "run_id": classifier.meta.run_id,
            "temperature": classifier.temperature,
            "outlier_threshold": None if classifier.outliers is None else classifier.outliers.threshold,
        },
        "caveats": classifier.caveats(),
        "images": len(rows),
        "unusable": int((~usable).sum()),
        "reused": reused,
        "flagged": flagged,
        "predicted": {name: int(called.get(name, 0)) for name in classifier.classes},
        "newest": {
            "images": len(newest),
            "flagged": None if classifier.outliers is None else int(newest["outlier"].sum()),
        },
        "drifted": list(drift.drifted) if drift.measured else None,
        "drift": drift.model_dump(mode="json"),
    }


def _recent(rows: pd.DataFrame, added: int, least: int) -> Mask:
    """Mark the newest images: all that this run has added, and at least `least` where there are so many.

    In a folder that grows, the many old images would hide a drift of the newest; a few images alone would show nothing.
    """
    order = rows.sort_values([FIRST, "file_sha256"], ascending=[False, True]).index[: max(added, least)]
    chosen = np.zeros(len(rows), np.bool_)
    chosen[order] = True
    return chosen


def _drift(
    config: BatchPredictConfig, model: _Model, rows: pd.DataFrame, table: pd.DataFrame, job: Job
) -> DriftReport:
    """Measure the drift of images from the validation images of the model's training."""
    if not len(rows):
        return DriftReport(reason="no image could be predicted")
    reference = validation_reference(model.classifier.inference, job.layout, job.log)
    if isinstance(reference, str):
        return DriftReport(reason=reference)
    groups = tuple(map(str, joined(known_patients(table), known_scans(table)).tolist()))
    images = ImageSet(features_of(rows), groups, embeddings_of(rows))
    classes = model.classifier.classes
    names = (f"the validation images of {model.classifier.meta.dataset}", job.dataset)
    return DriftReport(
        measures=measure_drift(
            reference.images, images, false_alarms=config.false_alarms, seed=config.resolved_seed
        ),
        shift=measure_shift(reference.images, images, names, seed=config.resolved_seed),
        labels=estimate_label_shift(
            reference.labels,
            reference.probabilities,
            reference.images.groups,
            rows[[f"prob_{name}" for name in classes]].to_numpy(np.float64),
            groups,
            classes,
            seed=config.resolved_seed,
        ),
    )
