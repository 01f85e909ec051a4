"""A matrix of external evaluations with known scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from brainmri_core.generalisation import generalise
from brainmri_core.project.catalogue import EVERY
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import Record, StageLog
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import EvaluationPointer, ExternalEvaluationPointer, GeneralisationPointer
from brainmri_core.system.json_files import write_json


class Matrix:
    """A project's external evaluations, written as the asset leaves them."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root=root)
        self.records: list[Record] = []

    def own(self, dataset: str, macro_f1: float) -> str:
        folder = self.layout.root / f"own/{dataset}"
        write_json(
            folder / "metrics.json",
            {
                "macro_f1": macro_f1,
                "n_images": 50,
                "intervals": {"macro_f1": [macro_f1 - 0.02, macro_f1 + 0.02]},
            },
        )
        relative = self.layout.relative(folder)
        pointer = EvaluationPointer(
            dataset=dataset, run_id="r1", content_hash=f"own {dataset}", written_at_utc="", folder=relative,
            metrics=f"{relative}/metrics.json", predictions=f"{relative}/p", report=f"{relative}/r", headline={},
            checkpoint_pointer=None,
        )  # fmt: skip
        return str(write_pointer(self.layout, pointer).pointer_path)

    def pair(
        self,
        trained_on: str,
        evaluated_on: str,
        macro_f1: float | None,
        *,
        taken_out: int = 0,
        own: float | None = None,
        checkpoint: str = "c" * 64,
        obstacle: str | None = None,
        run_id: str = "r1",
    ) -> None:
        scores: dict[str, Any] | None = None
        comparison: dict[str, Any] = {"reason": "no evaluation"}
        if macro_f1 is not None:
            scores = {
                "macro_f1": macro_f1,
                "intervals": {"macro_f1": [macro_f1 - 0.1, macro_f1 + 0.1]},
                "n_units": 9,
            }
        if macro_f1 is not None and own is not None:
            change = macro_f1 - own
            drop = {
                "own": own,
                "external": macro_f1,
                "difference": change,
                "interval": [change - 0.1, change + 0.1],
            }
            comparison = {"measures": {"macro_f1": drop}}
        reason = "every image was in training" if macro_f1 is None else None
        folder = self.layout.root / f"external/{evaluated_on}/{trained_on}/{run_id}"
        images = {"predicted": 40, "taken_out": taken_out, "never_learnt": 0, "scored": 40 - taken_out}
        write_json(
            folder / "metrics.json",
            {
                "scores": scores,
                "comparison": comparison,
                "images": images,
                "taken_out": {"obstacle": obstacle},
                "reason": reason,
            },
        )
        relative = self.layout.relative(folder)
        write_pointer(
            self.layout,
            ExternalEvaluationPointer(
                dataset=evaluated_on, run_id=run_id, content_hash=f"{trained_on} {evaluated_on} {macro_f1}", written_at_utc="",
                trained_on=trained_on, folder=relative, metrics=f"{relative}/metrics.json", predictions=f"{relative}/p",
                report=f"{relative}/r", headline={}, images=images["scored"], taken_out=taken_out, reason=reason,
                checkpoint_sha256=checkpoint, checkpoint_pointer=None,
                evaluation_pointer=None if own is None else self.own(trained_on, own), pack_pointer=None,
            ),
        )  # fmt: skip

    def generalise(self, run_id: str = "g1") -> tuple[GeneralisationPointer, pd.DataFrame, str]:
        log = StageLog("test", run_id, EVERY.key, [self.records.append])
        pointer = generalise(Job(self.layout, run_id, EVERY, log))
        table = pd.read_csv(self.layout.absolute(pointer.table), keep_default_na=True)
        return pointer, table, self.layout.absolute(pointer.report).read_text()
