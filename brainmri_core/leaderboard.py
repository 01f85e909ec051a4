"""Leaderboard: the newest evaluation of every experiment on one data set, ranked, as a table and a plot."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

from brainmri_core.errors import DataError
from brainmri_core.job import Job
from brainmri_core.layout import Layout, timestamp, utc_now
from brainmri_core.pointers import (
    CheckpointPointer,
    EvaluationPointer,
    LeaderboardPointer,
    PackPointer,
    follow,
)
from brainmri_core.storage import atomic_file, sha256_json, staging_folder, write_bytes

RANKED_BY = "macro_f1"


@dataclass(frozen=True)
class Entry:
    """One experiment's newest evaluation."""

    experiment: str
    evaluation: EvaluationPointer


def rank(entries: list[Entry], job: Job) -> LeaderboardPointer:
    """Rank evaluations of the same test images by macro F1.

    Parameters
    ----------
    entries : list of Entry
        Newest first; those that measured other images than the newest one are left out and named in the log.
    job : Job
        The run.

    Returns
    -------
    LeaderboardPointer
        Its folder holds ``leaderboard.csv`` and ``leaderboard.png``.

    Raises
    ------
    DataError
        If there is nothing to rank.
    """
    if not entries:
        raise DataError(f"No evaluation of {job.dataset} is recorded; run `brainmri experiment NAME` first.")
    data = {entry.experiment: measured_on(entry.evaluation, job.layout) for entry in entries}
    newest = data[entries[0].experiment]
    same = [entry for entry in entries if data[entry.experiment] == newest]
    for entry in entries:
        if entry not in same:
            job.log.warning("measured on other images; left out", experiment=entry.experiment)
    same.sort(key=lambda entry: -(entry.evaluation.headline.get(RANKED_BY) or 0.0))
    rows = [_row(entry, job) for entry in same]
    target = job.layout.root / "outputs" / "leaderboard" / job.dataset / job.run_id
    with staging_folder(target) as folder:
        write_bytes(folder / "leaderboard.csv", as_csv(rows).encode())
        with atomic_file(folder / "leaderboard.png") as handle:
            handle.write(_plot(rows))
    job.log.info("ranked", experiments=len(rows), best=rows[0]["experiment"])
    return LeaderboardPointer(
        dataset=job.dataset,
        run_id=job.run_id,
        content_hash=sha256_json([entry.evaluation.content_hash for entry in same]),
        written_at_utc=timestamp(utc_now()),
        folder=job.layout.relative(target),
        table=job.layout.relative(target / "leaderboard.csv"),
        plot=job.layout.relative(target / "leaderboard.png"),
        experiments=len(rows),
    )


def measured_on(evaluation: EvaluationPointer, layout: Layout) -> tuple[str, str]:
    """Return the content hashes of the pack that was measured on and of the one that was trained on.

    Only where both agree are two evaluations comparable: a model of another split may have seen the test images. What is
    not recorded is an empty text.
    """
    trained = ""
    if evaluation.checkpoint_pointer is not None:
        checkpoint = follow(layout, CheckpointPointer, evaluation.checkpoint_pointer)
        trained = follow(layout, PackPointer, checkpoint.pack_pointer).content_hash
    pack = evaluation.pack_pointer
    return follow(layout, PackPointer, pack).content_hash if pack is not None else trained, trained


def _row(entry: Entry, job: Job) -> dict[str, str | float | None]:
    evaluation = entry.evaluation
    model = ""
    if evaluation.checkpoint_pointer is not None:
        model = follow(job.layout, CheckpointPointer, evaluation.checkpoint_pointer).model_name
    return {
        "experiment": entry.experiment,
        "model": model,
        **evaluation.headline,
        "run_id": evaluation.run_id,
    }


def as_csv(rows: list[dict[str, str | float | None]]) -> str:
    """Return rows as CSV; a missing number is an empty cell."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    return buffer.getvalue()


def _plot(rows: list[dict[str, str | float | None]]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.2 + 0.4 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    names = [str(row["experiment"]) for row in rows]
    scores = [float(row.get(RANKED_BY) or 0.0) for row in rows]
    bars = axes.barh(names, scores, color="#4c72b0")
    axes.bar_label(bars, fmt="%.3f", padding=3)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08)
    axes.set_xlabel("macro F1 on the test split")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
