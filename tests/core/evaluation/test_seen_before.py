from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from brainmri_core.evaluation.seen_before import seen_in_training
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import StageLog
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import MappingPointer, PackPointer
from brainmri_core.project.sample_table import write_samples
from brainmri_core.system.json_files import write_json

KAGGLE, SECOND, PHANTOM = (
    "sartajbhuvaji/brain-tumor-classification-mri", "masoudnickparvar/brain-tumor-mri-dataset", "brainmri/phantom",
)  # fmt: skip
TRAINED = pd.DataFrame(
    {
        "path": ["a.png", "b.png", "c.png", "d.png"],
        "pixel_sha256": ["a", "b", "", "d"],
        "patient": ["p001", "hashed:0123456789abcdef", None, "p002"],
        "split": ["train", "train", "train", "test"],
    }
)
TEST = pd.DataFrame(
    {
        "pixel_sha256": ["a", "w", "x", "y", "", "z"],
        "patient": ["p001", "p001", "hashed:0123456789abcdef", "p002", None, None],
    }
)


def stored_pack(layout: Layout, dataset: str, run_id: str, sources: dict[str, int]) -> PackPointer:
    """Write the sample table, split record and pointers of a pack whose pixels nobody asks for."""
    folder = layout.root / "data" / run_id
    folder.mkdir(parents=True)
    write_samples(folder / "samples.parquet", TRAINED)
    write_json(folder / "split.json", {"patients": {"sources": sources}})
    stored = layout.relative(folder)
    common: dict[str, Any] = {
        "dataset": dataset, "run_id": run_id, "content_hash": "0" * 64, "written_at_utc": "2026-01-01T00:00:00Z",
        "samples": f"{stored}/samples.parquet", "classes": ["glioma", "notumor"],
    }  # fmt: skip
    mapping = MappingPointer(
        **common, num_classes=2, index_remap=None, path=stored, dataset_root=stored, split_json=f"{stored}/split.json",
        fetch_pointer=None, counts={},
    )  # fmt: skip
    mapping = write_pointer(layout, mapping)
    pack = PackPointer(
        **common, pack=f"{stored}/pack.npy", pack_sha256="0" * 64, size=8, channels=1, n_images=4,
        mapping_pointer=str(mapping.pointer_path), fit="letterbox",
    )  # fmt: skip
    return write_pointer(layout, pack)


@pytest.mark.parametrize(
    ("own", "own_sources", "other", "other_sources", "seen"),
    [
        (KAGGLE, {"catalogue": 3}, SECOND, {"catalogue": 5}, 3),
        (KAGGLE, {"csv": 3}, KAGGLE, {"csv": 5}, 3),
        (KAGGLE, {"catalogue": 2, "pattern": 1}, SECOND, {"catalogue": 5}, 2),
        (KAGGLE, {"catalogue": 3}, SECOND, {"csv": 5}, 2),
        (PHANTOM, {"catalogue": 3}, SECOND, {"catalogue": 5}, 2),
    ],
    ids=["numbers of the package", "one data set", "a pattern's numbers", "a CSV's numbers", "no table"],
)
def test_an_image_whose_patient_was_trained_on_is_seen_where_names_mean_the_same_person(
    tmp_path: Path,
    own: str,
    own_sources: dict[str, int],
    other: str,
    other_sources: dict[str, int],
    seen: int,
) -> None:
    layout = Layout(root=tmp_path)
    trained = stored_pack(layout, own, "trained", own_sources)
    pack = stored_pack(layout, other, "tested", other_sources)
    job = Job(layout, "tested", load_catalogue()[other], StageLog("evaluate", "tested", other, []))
    meta: Any = SimpleNamespace(pack_pointer=trained.pointer_path)
    assert seen_in_training(TEST, pack, meta, job) == seen
