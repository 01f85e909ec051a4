"""External evaluations with known scores, stored as the stage stores them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from brainmri_core.evaluation.prediction_table import prediction_table
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import ExternalEvaluationPointer
from brainmri_core.project.sample_table import write_samples
from brainmri_core.system.json_files import write_json
from tests.core.evaluation.documents_case import external_document

CLASSES = ["glioma", "notumor"]


HOME, FAR, NEAR = "our/set", "far/set", "near/set"


def measured(
    layout: Layout,
    model: str,
    dataset: str,
    wrong: list[int],
    *,
    sha256: str | None = None,
    images: int = 40,
    taken_out: tuple[int, ...] = (),
    never_learnt: tuple[int, ...] = (),
    classes: list[str] = CLASSES,
    obstacle: str | None = None,
    reason: str | None = None,
    run_id: str = "r1",
) -> None:
    """Store an external evaluation: images alternate between two classes, two per patient; those in `wrong` are predicted wrong."""
    truth = np.arange(images) % 2
    calls = truth.copy()
    calls[wrong] = 1 - truth[wrong]
    samples = pd.DataFrame(
        {
            "path": [f"{n}.png" for n in range(images)], "label": np.array(CLASSES)[truth], "class_index": truth,
            "split": "external", "group": [f"g{n // 2}" for n in range(images)], "row": range(images), "patient": "",
            "origin": "none",
        }
    )  # fmt: skip
    table = prediction_table(samples, np.eye(2, dtype=np.float32)[calls] * 4, classes, np.zeros(images))
    table["taken_out"] = ""
    table.loc[list(taken_out), "taken_out"] = "copy_of_training"
    table.loc[list(never_learnt), "class_index"] = -1
    folder = layout.root / "external" / dataset / model / run_id
    folder.mkdir(parents=True)
    write_samples(folder / "predictions.parquet", table)
    document = external_document(dataset, HOME, obstacle=obstacle, reason=reason, run_id=run_id)
    write_json(folder / "metrics.json", document.model_dump(mode="json"))
    relative = layout.relative(folder)
    write_pointer(
        layout,
        ExternalEvaluationPointer(
            dataset=dataset, run_id=run_id, content_hash=f"{model}{dataset}", written_at_utc="", trained_on=HOME,
            folder=relative, metrics=f"{relative}/metrics.json", predictions=f"{relative}/predictions.parquet",
            report=f"{relative}/r", headline={"macro_f1": 1 - len(wrong) / images}, images=images, taken_out=len(taken_out), reason=reason,
            checkpoint_sha256=sha256 or model * 64, checkpoint_pointer=None, evaluation_pointer=None, pack_pointer=None,
        ),
    )  # fmt: skip
