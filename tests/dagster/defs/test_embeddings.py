from __future__ import annotations

import json

import pytest

from brainmri_core.project.pointers import EmbeddingsPointer
from brainmri_core.verify import verify
from tests.dagster.conftest import PHANTOM, Workbench, failure_of

pytestmark = pytest.mark.training

TINY = ("embeddings.model.name=mobilenet_v3_small", "embeddings.model.pretrained=false")


def test_the_embeddings_of_a_data_set_are_an_asset_with_the_score_of_a_probe(packed: Workbench) -> None:
    packed.done(["embeddings"], *TINY)
    pointer = packed.pointer("embeddings")
    assert isinstance(pointer, EmbeddingsPointer) and pointer.headline["macro_f1"] is not None
    shown = packed.newest("embeddings").metadata
    assert shown["macro_f1"].value == pointer.headline["macro_f1"]
    assert shown["features_per_image"].value == pointer.width
    manifest = packed.layout.run_dir(pointer.run_id) / "run_manifest.json"
    entry = json.loads(manifest.read_text())["stages"]["embeddings"]
    assert entry["status"] == "success" and pointer.features in entry["output_hashes"]
    assert not verify(packed.layout).problems


def test_without_a_pack_it_says_how_to_get_one(packed: Workbench) -> None:
    other = "masoudnickparvar/brain-tumor-mri-dataset"
    said = failure_of(packed.run(["embeddings"], *TINY, partition=other))
    assert (
        said
        == f"There is no pack of resized images of {other} yet; make it with `brainmri resize --dataset {other}`."
    )


@pytest.mark.full
def test_the_folds_of_a_probe_read_the_features_of_the_embeddings(packed: Workbench) -> None:
    packed.done(["embeddings"], *TINY)
    folders = packed.layout.outputs / "features" / PHANTOM
    kept = sorted(path.name for path in folders.iterdir())
    for fold in ("0", "1"):
        packed.done(["fold_checkpoint"], "train.method=probe", partition=f"{PHANTOM}|{fold}")
    assert sorted(path.name for path in folders.iterdir()) == kept
