"""Generalisation: the scores of all models on all data sets as one matrix, from the recorded external evaluations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from brainmri_core.errors import DataError
from brainmri_core.evaluation.external_schema import read_external_metrics
from brainmri_core.evaluation.metrics_schema import read_metrics
from brainmri_core.pages.generalisation_page import write_generalisation_page
from brainmri_core.pictures.matrix import write_matrix
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import follow, places, read_pointer
from brainmri_core.project.pointers import EvaluationPointer, ExternalEvaluationPointer, GeneralisationPointer
from brainmri_core.system.checksums import sha256_json
from brainmri_core.system.clock import timestamp, utc_now
from brainmri_core.system.storage import atomic_file

COLUMNS = [
    "trained_on", "evaluated_on", "macro_f1", "low", "high", "own", "difference", "difference_low", "difference_high",
    "images", "groups", "taken_out", "taken_out_share", "obstacle", "reason", "run_id", "checkpoint",
]  # fmt: skip


def generalise(job: Job) -> GeneralisationPointer:
    """Put the newest external evaluation of every pair of data sets into one table, heat map and page.

    Parameters
    ----------
    job : Job
        The run; its data set is the catalogue entry that means all data sets together.

    Returns
    -------
    GeneralisationPointer
        Its folder holds ``generalisation.csv`` (`COLUMNS`, a row per pair), ``models.csv``, ``generalisation.png`` and
        ``report.html``, and appears in one rename.

    Raises
    ------
    DataError
        If no external evaluation is on record.
    IntegrityError
        If a file of an external evaluation is missing or damaged.
    """
    layout = job.layout
    found = list(newest_pairs(layout))
    if not found:
        raise DataError(
            "No external evaluation is on record; make them with `brainmri evaluate --trained-on A --dataset B` or, for all "
            "pairs, `brainmri backfill --select external_evaluation`."
        )
    table = pd.DataFrame([_row(pointer, layout) for pointer in found], columns=COLUMNS)
    table = table.sort_values(["trained_on", "evaluated_on"], ignore_index=True)
    own = {pointer.trained_on: _own(pointer, layout) for pointer in found}
    models = rank_models(table)
    mixed = [str(name) for name, part in table.groupby("trained_on") if part["checkpoint"].nunique() > 1]
    for name in mixed:
        job.log.warning("the pairs are of several checkpoints; evaluate them again", trained_on=name)
    target = layout.result_dir("generalisation", job.dataset, job.run_id)
    with job.staged(target) as folder:
        for name, part in (("generalisation", table), ("models", models)):
            with atomic_file(folder / f"{name}.csv") as handle:
                part.to_csv(handle, index=False)
        write_matrix(folder / "generalisation.png", table, own)
        write_generalisation_page(folder / "report.html", table, models, own, mixed)
    best = models[models["sets"] > 0].head(1).to_dict("records")
    scored = int(table["macro_f1"].notna().sum())
    job.log.info("pairs of data sets", scored=scored, without_a_score=len(table) - scored)
    return GeneralisationPointer(
        dataset=job.dataset,
        run_id=job.run_id,
        content_hash=sha256_json(sorted(pointer.content_hash for pointer in found)),
        written_at_utc=timestamp(utc_now()),
        folder=layout.relative(target),
        table=layout.relative(target / "generalisation.csv"),
        plot=layout.relative(target / "generalisation.png"),
        report=layout.relative(target / "report.html"),
        pairs=len(table),
        scored=scored,
        best=best[0]["trained_on"] if best else None,
        best_worst=best[0]["worst"] if best else None,
        best_mean=best[0]["mean"] if best else None,
    )


def newest_pairs(layout: Layout) -> Iterator[ExternalEvaluationPointer]:
    """Yield the newest external evaluation of each pair of data sets."""
    for place in places(layout, ExternalEvaluationPointer):
        folder = layout.pointer_dir(ExternalEvaluationPointer.kind, place)
        yield read_pointer(layout, ExternalEvaluationPointer, folder)


def rank_models(table: pd.DataFrame) -> pd.DataFrame:
    """Rank the models by their worst macro F1 on other data sets, then by their mean.

    Parameters
    ----------
    table : pandas.DataFrame
        A row per pair of data sets, with `COLUMNS`.

    Returns
    -------
    pandas.DataFrame
        A row per ``trained_on``: the number of data sets with a score (``sets``), the ``worst`` score and its data set
        (``worst_on``), and the ``mean`` over data sets. A score does not count where the images that the model has seen
        could not be taken out. A model without a score comes last.
    """
    rows = []
    for name, part in table.groupby("trained_on"):
        scored = part[part["obstacle"] == ""].dropna(subset=["macro_f1"])
        least = scored.loc[scored["macro_f1"].idxmin()] if len(scored) else None
        rows.append(
            {
                "trained_on": name,
                "sets": len(scored),
                "worst": None if least is None else float(least["macro_f1"]),
                "worst_on": "" if least is None else least["evaluated_on"],
                "mean": None if least is None else float(scored["macro_f1"].mean()),
            }
        )
    frame = pd.DataFrame(rows).astype({"worst": "float64", "mean": "float64"})
    return frame.sort_values(["worst", "mean"], ascending=False, ignore_index=True)


def _row(pointer: ExternalEvaluationPointer, layout: Layout) -> dict[str, Any]:
    metrics = read_external_metrics(layout.absolute(pointer.metrics))
    scores, drop, images = metrics.scores, metrics.measures.get("macro_f1"), metrics.images
    low, high = (scores.intervals.get("macro_f1") if scores else None) or (None, None)
    drop_low, drop_high = (drop.interval if drop else None) or (None, None)
    return {
        "trained_on": pointer.trained_on,
        "evaluated_on": pointer.dataset,
        "macro_f1": scores.macro_f1 if scores else None,
        "low": low,
        "high": high,
        "own": drop.own if drop else None,
        "difference": drop.difference if drop else None,
        "difference_low": drop_low,
        "difference_high": drop_high,
        "images": images.scored,
        "groups": scores.n_units if scores else 0,
        "taken_out": images.taken_out,
        "taken_out_share": images.taken_out / max(images.predicted, 1),
        "obstacle": metrics.taken_out.obstacle or "",
        "reason": pointer.reason or "",
        "run_id": pointer.run_id,
        "checkpoint": pointer.checkpoint_sha256[:12],
    }


def _own(pointer: ExternalEvaluationPointer, layout: Layout) -> dict[str, Any]:
    """Return macro F1 and its interval on the model's own test images; an empty dict where no evaluation is recorded."""
    if pointer.evaluation_pointer is None:
        return {}
    home = follow(layout, EvaluationPointer, pointer.evaluation_pointer)
    metrics = read_metrics(layout.absolute(home.metrics))
    low, high = metrics.intervals.get("macro_f1") or (None, None)
    return {"macro_f1": metrics.macro_f1, "low": low, "high": high, "images": metrics.n_images}
