"""Leaderboard: a table and a plot of the experiments on one data set, ranked without the test split."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd

from brainmri_core.errors import DataError
from brainmri_core.evaluation.external_choice import Evaluations, external_evaluations, together
from brainmri_core.evaluation.metrics import classification_metrics
from brainmri_core.evaluation.selection import BASIS_NAMES, Basis, data_of, folds_of, predictions_for
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import follow
from brainmri_core.project.pointers import (
    CheckpointPointer,
    CrossValidationPointer,
    EvaluationPointer,
    LeaderboardPointer,
    PackPointer,
)
from brainmri_core.system.checksums import sha256_json
from brainmri_core.system.clock import timestamp, utc_now
from brainmri_core.system.storage import atomic_file, write_bytes

ChooseBy = Literal["own", "external_worst", "external_mean"]
Row = dict[str, str | float | None]


@dataclass(frozen=True)
class Entry:
    """The newest evaluation of an experiment."""

    experiment: str
    evaluation: EvaluationPointer


@dataclass(frozen=True)
class _Candidate:
    """An entry with the predictions to rank it by; ``left_out`` says why it cannot be ranked, and is empty where it can."""

    entry: Entry
    checkpoint: CheckpointPointer | None
    predictions: pd.DataFrame
    classes: list[str]
    folds: CrossValidationPointer | None = None
    left_out: str = ""
    elsewhere: Evaluations = field(default_factory=dict)

    def images(self) -> str:
        """Return a hash of the scored images, which is equal for candidates that were scored on the same ones."""
        return sha256_json(self.predictions["path"].tolist())


def rank(entries: list[Entry], job: Job, choose_by: ChooseBy = "own") -> LeaderboardPointer:
    """Rank experiments by macro F1 on images that none of them was trained on, and that are not the test split.

    Parameters
    ----------
    entries : list of Entry
        Newest first. Those trained on other data than the newest, or validated on other images than most, are listed
        last, with the reason.
    job : Job
        The run.
    choose_by : str
        ``external_worst`` and ``external_mean`` rank by the worst or mean macro F1 on other data sets; experiments that
        were measured on other data sets than most are listed last, with the reason.

    Returns
    -------
    LeaderboardPointer
        Its folder holds ``leaderboard.csv`` and ``leaderboard.png``. ``ranked_by`` names the predictions that the order
        rests on: out-of-fold predictions where all ranked experiments have folds, else those of the validation images.
        The test score is shown beside it, but not used.

    Raises
    ------
    DataError
        If there is nothing to rank.
    """
    if not entries:
        raise DataError(f"No evaluation of {job.dataset} is recorded; run `brainmri experiment NAME` first.")
    basis, candidates = _candidates(entries, job.layout, choose_by)
    rows = [_row(item, basis) for item in candidates]
    rows.sort(key=lambda row: (bool(row["left_out"]), -float(row["macro_f1"] or 0.0)))
    ranked = [row for row in rows if not row["left_out"]]
    for row in rows[len(ranked) :]:
        job.log.warning("not ranked", experiment=row["experiment"], reason=row["left_out"])
    target = job.layout.result_dir("leaderboard", job.dataset, job.run_id)
    with job.staged(target) as folder:
        write_bytes(folder / "leaderboard.csv", as_csv(rows).encode())
        with atomic_file(folder / "leaderboard.png") as handle:
            handle.write(_plot(ranked, basis))
    job.log.info(
        "ranked", experiments=len(ranked), by=basis, best=ranked[0]["experiment"] if ranked else None
    )
    return LeaderboardPointer(
        dataset=job.dataset,
        run_id=job.run_id,
        content_hash=sha256_json(
            [basis, [entry.evaluation.content_hash for entry in entries], *_elsewhere(candidates)]
        ),
        written_at_utc=timestamp(utc_now()),
        folder=job.layout.relative(target),
        table=job.layout.relative(target / "leaderboard.csv"),
        plot=job.layout.relative(target / "leaderboard.png"),
        experiments=len(ranked),
        ranked_by=basis,
    )


def _elsewhere(candidates: list[_Candidate]) -> list[list[str]]:
    """Return the content hashes of the external evaluations that the ranking uses."""
    found = [sorted(item.content_hash for item in one.elsewhere.values()) for one in candidates]
    return [hashes for hashes in found if hashes]


def _candidates(entries: list[Entry], layout: Layout, choose_by: ChooseBy) -> tuple[Basis, list[_Candidate]]:
    """Read the predictions of each experiment, and choose the basis of the ranking."""
    known = (data_of(item, layout) for entry in entries if (item := _checkpoint(entry.evaluation, layout)))
    newest = next((data for data in known if data is not None), None)
    found = [_candidate(entry, newest, layout) for entry in entries]
    if choose_by != "own":
        return choose_by, _measured_elsewhere(found, layout)
    usable = [item for item in found if not item.left_out]
    if usable and all(item.folds for item in usable):
        return "out_of_fold", [
            item if item.left_out or item.folds is None else _with_folds(item, item.folds, layout)
            for item in found
        ]
    shared = Counter(item.images() for item in usable).most_common(1)
    images = shared[0][0] if shared else None  # on a tie most_common keeps the order, so the newest wins
    return "validation", [
        item
        if item.left_out or item.images() == images
        else replace(
            item, left_out="validated on other images: its train.data.val_frac, val_seed or seed differs"
        )
        for item in found
    ]


def _measured_elsewhere(found: list[_Candidate], layout: Layout) -> list[_Candidate]:
    """Add the external evaluations of each candidate, and leave out those measured on other data sets than most."""
    measured = [
        replace(item, elsewhere=external_evaluations(item.checkpoint, layout))
        if item.checkpoint is not None and not item.left_out
        else item
        for item in found
    ]
    shared = Counter(tuple(item.elsewhere) for item in measured if item.elsewhere).most_common(1)
    sets = shared[0][0] if shared else ()
    result = []
    for item in measured:
        if not item.left_out and not item.elsewhere:
            item = replace(
                item, left_out="it was not measured on another data set: evaluate its checkpoint there"
            )
        elif not item.left_out and tuple(item.elsewhere) != sets:
            item = replace(
                item, left_out=f"measured on other data sets than most, which were on {', '.join(sets)}"
            )
        result.append(item)
    return result


def _candidate(entry: Entry, newest: str | None, layout: Layout) -> _Candidate:
    evaluation = entry.evaluation
    checkpoint = _checkpoint(evaluation, layout)
    trained = data_of(checkpoint, layout) if checkpoint is not None else None
    table, classes, reason = pd.DataFrame(), list[str](), ""
    if evaluation.checkpoint_pointer is None:
        reason = "its weights came from a file, so what it was trained on is not on record"
    elif trained is None:
        reason = (
            f"the record of {'its training' if checkpoint is None else 'the data it was trained on'} is gone"
        )
    elif trained != newest:
        reason = "trained on other data"
    elif not layout.absolute(evaluation.predictions).is_file():
        reason = "its predictions are gone"
    else:
        table, classes = predictions_for("validation", evaluation, layout)
        reason = "" if len(table) else "no predictions of its validation images"
    folds = folds_of(checkpoint, layout) if checkpoint is not None and not reason else None
    return _Candidate(entry, checkpoint, table, classes, folds, reason)


def _checkpoint(evaluation: EvaluationPointer, layout: Layout) -> CheckpointPointer | None:
    """Return the checkpoint that was evaluated; None where it is not, or no longer, on record."""
    stored = evaluation.checkpoint_pointer
    if stored is None or not layout.absolute(stored).is_file():
        return None
    return follow(layout, CheckpointPointer, stored)


def _with_folds(item: _Candidate, folds: CrossValidationPointer, layout: Layout) -> _Candidate:
    table, classes = predictions_for("out_of_fold", folds, layout)
    return replace(item, predictions=table, classes=classes)


def measured_on(evaluation: EvaluationPointer, layout: Layout) -> tuple[str, str]:
    """Return the content hashes of the pack that a model was measured on and of the pack that it was trained on.

    Two evaluations are comparable only where both hashes agree: a model that was trained on another split may have seen
    the test images. A hash that is not recorded is an empty string.

    Parameters
    ----------
    evaluation : EvaluationPointer
        The evaluation.
    layout : Layout
        The project.

    Returns
    -------
    measured, trained : str
        The two hashes.

    Raises
    ------
    IntegrityError
        If a recorded pointer is missing or damaged.
    """
    trained = ""
    if evaluation.checkpoint_pointer is not None:
        checkpoint = follow(layout, CheckpointPointer, evaluation.checkpoint_pointer)
        trained = follow(layout, PackPointer, checkpoint.pack_pointer).content_hash
    pack = evaluation.pack_pointer
    return follow(layout, PackPointer, pack).content_hash if pack is not None else trained, trained


def _row(item: _Candidate, basis: Basis) -> Row:
    table, score, images = item.predictions, None, len(item.predictions)
    if not item.left_out and (basis == "external_worst" or basis == "external_mean"):
        found = [float(pointer.headline["macro_f1"] or 0.0) for pointer in item.elsewhere.values()]
        score = float(together(np.array(found), basis))
        images = sum(pointer.images for pointer in item.elsewhere.values())
    elif not item.left_out:
        shares = table[[f"prob_{name}" for name in item.classes]].to_numpy(np.float64)
        score = classification_metrics(table["class_index"].to_numpy(np.int64), shares, item.classes)[
            "macro_f1"
        ]
    return {
        "experiment": item.entry.experiment,
        "model": item.checkpoint.model_name if item.checkpoint else "",
        "ranked_by": "" if item.left_out else basis,
        "macro_f1": score,
        "images": None if item.left_out else images,
        "test_macro_f1": item.entry.evaluation.headline.get("macro_f1"),
        "left_out": item.left_out,
        "run_id": item.entry.evaluation.run_id,
    }


def as_csv(rows: list[Row]) -> str:
    """Return rows as CSV; a missing number is an empty cell."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    return buffer.getvalue()


def _plot(rows: list[Row], basis: Basis) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.6 + 0.5 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(rows))
    for column, offset, height, colour, name in (
        ("macro_f1", -0.12, 0.5, "#4c72b0", f"{BASIS_NAMES[basis]} images: the order rests on these"),
        ("test_macro_f1", 0.3, 0.2, "#c4c4c4", "test split: not used for ranking"),
    ):
        scores = [float(row[column] or 0.0) for row in rows]
        bars = axes.barh(places + offset, scores, height, color=colour, label=name)
        ink, points = ("#8a8a8a", 7) if column == "test_macro_f1" else ("black", 10)
        labels = ["undefined" if row[column] is None else f"{row[column]:.3f}" for row in rows]
        axes.bar_label(bars, labels, padding=3, color=ink, fontsize=points)
    axes.set_yticks(places, [str(row["experiment"]) for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08)
    axes.set_xlabel("macro F1")
    figure.legend(loc="outside upper left", fontsize=8, frameon=False, ncols=2)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
