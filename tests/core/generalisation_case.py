"""A matrix of external evaluations with known scores."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from brainmri_core.generalisation import generalise
from brainmri_core.project.catalogue import EVERY
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import Record, StageLog
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import EvaluationPointer, ExternalEvaluationPointer, GeneralisationPointer
from brainmri_core.system.json_files import write_json
from tests.core.evaluation.documents_case import evaluation_document, external_document


class Matrix:
    """A project's external evaluations, written as the asset leaves them."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root=root)
        self.records: list[Record] = []

    def own(self, dataset: str, macro_f1: float) -> str:
        folder = self.layout.root / f"own/{dataset}"
        made = evaluation_document(dataset=dataset)
        intervals = {**made.intervals, "macro_f1": [macro_f1 - 0.02, macro_f1 + 0.02]}
        scored = made.model_copy(update={"macro_f1": macro_f1, "n_images": 50, "intervals": intervals})
        write_json(folder / "metrics.json", scored.model_dump(mode="json"))
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
        reason = "every image was in training" if macro_f1 is None else None
        folder = self.layout.root / f"external/{evaluated_on}/{trained_on}/{run_id}"
        document = external_document(
            evaluated_on, trained_on, macro_f1=macro_f1 or 0.0, own=own, taken_out=taken_out, obstacle=obstacle,
            reason=reason, run_id=run_id,
        )  # fmt: skip
        write_json(folder / "metrics.json", document.model_dump(mode="json"))
        relative = self.layout.relative(folder)
        write_pointer(
            self.layout,
            ExternalEvaluationPointer(
                dataset=evaluated_on, run_id=run_id, content_hash=f"{trained_on} {evaluated_on} {macro_f1}", written_at_utc="",
                trained_on=trained_on, folder=relative, metrics=f"{relative}/metrics.json", predictions=f"{relative}/p",
                report=f"{relative}/r", headline={}, images=document.images.scored, taken_out=taken_out, reason=reason,
                checkpoint_sha256=checkpoint, checkpoint_pointer=None,
                evaluation_pointer=None if own is None else self.own(trained_on, own), pack_pointer=None,
            ),
        )  # fmt: skip

    def generalise(self, run_id: str = "g1") -> tuple[GeneralisationPointer, pd.DataFrame, str]:
        log = StageLog("test", run_id, EVERY.key, [self.records.append])
        pointer = generalise(Job(self.layout, run_id, EVERY, log))
        table = pd.read_csv(self.layout.absolute(pointer.table), keep_default_na=True)
        return pointer, table, self.layout.absolute(pointer.report).read_text()
