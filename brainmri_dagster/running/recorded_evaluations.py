"""Recorded evaluations of a data set: the newest of each experiment, and the one before the present one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg

from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import follow, read_pointer
from brainmri_core.project.pointers import CheckpointPointer, EvaluationPointer
from brainmri_dagster.running.stage_run import StageRun
from brainmri_dagster.running.upstream import materializations, pointer_file

if TYPE_CHECKING:
    from brainmri_core.evaluation.regression import Regression

_RECENT = 1000


def recorded_evaluations(
    instance: dg.DagsterInstance, layout: Layout, dataset: str
) -> Iterator[tuple[str, EvaluationPointer]]:
    """Yield the experiment and pointer of recorded evaluations whose pointer is still there, newest first."""
    for record in materializations(instance, "evaluation", dataset, _RECENT):
        made = record.asset_materialization
        name = made.metadata.get("experiment") if made is not None else None
        file = pointer_file(layout, made)
        if name is not None and file is not None:
            yield str(name.value), read_pointer(layout, EvaluationPointer, file)


def newest_evaluations(
    instance: dg.DagsterInstance, layout: Layout, dataset: str
) -> dict[str, EvaluationPointer]:
    """Return each experiment's newest recorded evaluation, newest first."""
    found: dict[str, EvaluationPointer] = {}
    for name, pointer in recorded_evaluations(instance, layout, dataset):
        found.setdefault(name, pointer)
    return found


def regression_of(instance: dg.DagsterInstance, run: StageRun, now: EvaluationPointer) -> Regression | None:
    """Compare an evaluation with the experiment's newest earlier one of another checkpoint on the same data."""
    layout = run.job.layout
    ours = _compared(layout, now)
    if ours is None:
        return None
    for name, before in recorded_evaluations(instance, layout, run.job.dataset):
        theirs = _compared(layout, before) if name == run.experiment else None
        if theirs is not None and theirs[0] != ours[0] and theirs[1] == ours[1]:
            from brainmri_core.evaluation.regression import regression

            found = regression(run.config.evaluate, before, now, layout)
            if found is not None:
                return found
    return None


def _compared(layout: Layout, evaluation: EvaluationPointer) -> tuple[str, tuple[str, str]] | None:
    """Return the hash of the checkpoint that was evaluated, and the hashes of the packs; None if a file is gone."""
    from brainmri_core.leaderboard import measured_on  # imports pandas, which loading the graph must not

    stored = evaluation.checkpoint_pointer
    if stored is None or not all(
        layout.absolute(path).is_file() for path in (stored, evaluation.predictions)
    ):
        return None
    checkpoint = follow(layout, CheckpointPointer, stored)
    packs = (checkpoint.pack_pointer, evaluation.pack_pointer or checkpoint.pack_pointer)
    if not all(layout.absolute(path).is_file() for path in packs):
        return None
    return checkpoint.checkpoint_sha256, measured_on(evaluation, layout)
