"""Find the checkpoint that a path or setting means, and its evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from brainmri_core.classifier.record import CLASSIFIER_NAME, ClassifierFile, read_classifier
from brainmri_core.errors import ConfigError, IntegrityError, MissingUpstreamError
from brainmri_core.evaluation.outliers import OutlierModel
from brainmri_core.learning.checkpoint import CheckpointMeta, known_hashes
from brainmri_core.project.layout import Layout, projects_above
from brainmri_core.project.pointer_store import follow, history, latest_pointer, places, read_pointer
from brainmri_core.project.pointers import (
    ChampionPointer,
    CheckpointPointer,
    EvaluationPointer,
    FoldEnsemblePointer,
    PackPointer,
)
from brainmri_core.system.checksums import check_sha256, sha256_file


def find_classifier(path: Path) -> tuple[Path, Path | None, ClassifierFile | None, OutlierModel | None]:
    """Return the checkpoint that a path means, and its evaluation if there is one.

    Parameters
    ----------
    path : pathlib.Path
        A checkpoint, or an evaluation's folder or ``classifier.json``.

    Returns
    -------
    weights : pathlib.Path
        The checkpoint's file.
    evaluation : pathlib.Path or None
        The evaluation's folder.
    described : ClassifierFile or None
        Its ``classifier.json``.
    outliers : OutlierModel or None
        Its outlier model.

    Raises
    ------
    IntegrityError
        If an evaluation's files are damaged, or its checkpoint was replaced.
    """
    folder = path if path.is_dir() else path.parent if path.name == CLASSIFIER_NAME else None
    if folder is not None:
        described, outliers = read_classifier(folder)
        weights = (folder / described.checkpoint).resolve()
        if weights.is_file() and sha256_file(weights) != described.checkpoint_sha256:
            raise IntegrityError(
                f"The checkpoint {weights} is not the one that {folder} evaluated; run evaluate again."
            )
        return weights, folder, described, outliers
    if path.is_file():
        hashes = known_hashes(path)
        for candidate in _evaluations(path.resolve()):
            described, outliers = read_classifier(candidate)
            if described.checkpoint_sha256 in hashes:
                return path, candidate, described, outliers
    return path, None, None, None


def _evaluations(weights: Path) -> Iterator[Path]:
    """Yield folders that may hold the evaluation of a checkpoint: its own, then those of its project, newest first."""
    if (weights.parent / CLASSIFIER_NAME).is_file():
        yield weights.parent
    for layout in projects_above(weights):
        if layout.url is None and not layout.pointers(EvaluationPointer.kind).is_dir():
            continue
        for pointer in history(layout, EvaluationPointer):
            folder = layout.absolute(pointer.folder)
            if (folder / CLASSIFIER_NAME).is_file():
                yield folder
        return


def default_checkpoint(layout: Layout, out_models: str, dataset: str | None = None) -> Path:
    """Return the checkpoint in use: the champion, else the best checkpoint of the newest training.

    Parameters
    ----------
    layout : Layout
        The project.
    out_models : str
        ``train.io.out_models``.
    dataset : str or None
        Data set of the champion; None if only one data set has a champion.

    Raises
    ------
    ConfigError
        If several data sets have a champion and none is named.
    MissingUpstreamError
        If there is no model.
    """
    if layout.url is not None:
        return model_in_use(layout, dataset, "--dataset")
    holders = [name for name in places(layout, ChampionPointer) if dataset in (None, name)]
    if len(holders) > 1:
        raise ConfigError(
            f"There are champions of several data sets ({', '.join(holders)}); choose one with --dataset."
        )
    champion = latest_pointer(layout, ChampionPointer, holders[0]) if holders else None
    if champion is not None:
        return layout.absolute(champion.weights)
    best = layout.configured(out_models) / "best.pth"
    if not best.is_file():
        raise MissingUpstreamError(
            f"There is no model in {layout.root} yet; make one with `brainmri pipeline`, or name a file with --checkpoint."
        )
    return best


def checkpoint_in_use(
    layout: Layout, champion: ChampionPointer | None, newest: CheckpointPointer | None, dataset: str
) -> Path:
    """Return the checkpoint of a data set that is in use: its champion, else its newest checkpoint.

    Raises
    ------
    MissingUpstreamError
        If there is neither.
    IntegrityError
        If the file is not the recorded one.
    """
    if champion is not None:
        holder = follow(layout, CheckpointPointer, champion.champion_checkpoint)
        path = layout.absolute(champion.weights)
    elif newest is not None:
        holder, path = newest, layout.absolute(newest.checkpoint)
    else:
        raise MissingUpstreamError(
            f"There is no checkpoint of {dataset} yet; make one with `brainmri train --dataset {dataset}`, or name a file "
            "with --checkpoint."
        )
    check_sha256(path, holder.checkpoint_sha256, "checkpoint")
    return path


def model_in_use(layout: Layout, dataset: str | None, setting: str) -> Path:
    """Return the checkpoint in use of a data set.

    Parameters
    ----------
    dataset : str or None
        The data set; None if only one data set has a champion or, without champions, only one has a checkpoint.
    setting : str
        Name of the setting that chooses the data set, for messages.

    Raises
    ------
    ConfigError
        If several data sets have a model and none is named.
    MissingUpstreamError
        If there is no model.
    IntegrityError
        If its file is missing, or not the recorded one.
    """
    name = dataset or _only_dataset(layout, setting)
    champion = latest_pointer(layout, ChampionPointer, name)
    return checkpoint_in_use(layout, champion, latest_pointer(layout, CheckpointPointer, name), name)


def _only_dataset(layout: Layout, setting: str) -> str:
    for pointer_type in (ChampionPointer, CheckpointPointer):
        names = places(layout, pointer_type)
        if len(names) > 1:
            raise ConfigError(
                f"There are models of several data sets ({', '.join(names)}); choose one with {setting}."
            )
        if names:
            return names[0]
    raise MissingUpstreamError(
        f"There is no model in {layout.where} yet; make one with `brainmri pipeline`, or name a file with --checkpoint."
    )


def own_evaluation(layout: Layout, weights: Path, meta: CheckpointMeta) -> EvaluationPointer | None:
    """Return the newest evaluation of a checkpoint on the test images of its own pack, or None."""
    hashes = known_hashes(weights)
    for found in history(layout, EvaluationPointer, meta.dataset):
        folder = layout.absolute(found.folder)
        if (folder / CLASSIFIER_NAME).is_file() and read_classifier(folder)[0].checkpoint_sha256 in hashes:
            pack = layout.absolute(found.pack_pointer or "")
            if not pack.is_file() or read_pointer(layout, PackPointer, pack).content_hash == meta.data_hash:
                return found
    return None


def recorded_checkpoint(layout: Layout, weights: Path, dataset: str) -> CheckpointPointer | None:
    """Return the pointer of the training that made a checkpoint; None if no training of this project did."""
    hashes = known_hashes(weights)
    trainings = (history(layout, kind, dataset) for kind in (CheckpointPointer, FoldEnsemblePointer))
    return next((item for item in chain(*trainings) if item.checkpoint_sha256 in hashes), None)
