from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.special import softmax

from brainmri_core.config import with_seed
from brainmri_core.config.embeddings import EmbeddingsConfig
from brainmri_core.embeddings import embeddings
from brainmri_core.errors import ModelError
from brainmri_core.evaluation.embeddings_schema import read_embeddings_metrics
from brainmri_core.evaluation.frozen_baseline import FROZEN
from brainmri_core.evaluation.metrics_schema import read_metrics
from brainmri_core.evaluation.probe_folds import fit_on_training, fold_predictions
from brainmri_core.evaluation.shift import KINDS
from brainmri_core.gc import collect_garbage
from brainmri_core.learning.encoder import read_features
from brainmri_core.learning.models import build_model
from brainmri_core.project.job import Job
from brainmri_core.project.logs import Record
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.sample_table import read_samples
from brainmri_core.system.json_files import json_text
from brainmri_core.train import train
from tests.core.evaluation_case import Case
from tests.core.learning.training_pack import CLASSES, config, make_pack
from tests.counts import rest

pytestmark = pytest.mark.training


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def embed_config(**blocks: Any) -> EmbeddingsConfig:
    """Return the embeddings of a random network, in fp32."""
    value = {
        "model": {"name": "mobilenet_v3_small", "pretrained": False},
        "precision": "fp32",
        "batch_size": 8,
        "val_frac": 0.25,
        "bootstrap_resamples": 50,
        **blocks,
    }
    filled = with_seed(EmbeddingsConfig.model_validate(value), 42)
    assert isinstance(filled, EmbeddingsConfig)
    return filled


def in_folds(table: pd.DataFrame, folds: int = 2) -> pd.DataFrame:
    """Put the training groups of a pack into folds."""
    group = table["group"].str[1:].astype(int)
    return table.assign(fold=np.where(table["split"] == "train", group // 4 % folds, -1))


def test_embeddings_are_features_of_all_images_and_a_score_of_those_that_train(
    job: Job, passes: list[int]
) -> None:
    pack = make_pack(job, per_class=24, change=in_folds)
    made = embeddings(embed_config(), pack, job)
    features = read_features(job.layout.absolute(made.features).parent)
    assert features.shape == (pack.n_images, made.width) == (96, 1024 + 48 + 24 + 16)
    assert (sum(passes), made.images, made.depths, made.pretrained) == (96, 96, 4, False)

    table = read_samples(job.layout.absolute(pack.samples))
    found = pd.read_parquet(job.layout.absolute(str(made.predictions)))
    assert found["row"].tolist() == table["row"][table["split"] == "train"].tolist(), (
        "no test image is scored"
    )
    held = (table["split"] == "train") & (table["fold"] == 1)
    without = table[table["split"] == "train"].assign(
        split=np.where(held[table["split"] == "train"], "test", "train")
    )
    probe = fit_on_training(features, without, CLASSES, val_frac=0.25, seed=42, balanced=True)
    wanted = softmax(probe.logits(features[table["row"][held]]), axis=1)
    shares = found.loc[found["fold"] == 1, [f"prob_{name}" for name in CLASSES]]
    np.testing.assert_allclose(shares, wanted)

    path = job.layout.absolute(made.metrics)
    assert json_text(read_embeddings_metrics(path).model_dump(mode="json")).encode() == path.read_bytes()
    metrics = json.loads(path.read_text())
    assert metrics["pooled"]["macro_f1"] == made.headline["macro_f1"] > 0.5
    assert set(metrics["folds"]) == {"0", "1"} and metrics["pooled"]["intervals"]["macro_f1"]

    folder = job.layout.absolute(made.folder)
    unlike = pd.read_csv(folder / "outliers.csv")
    assert sorted(unlike["path"]) == sorted(table["path"]) and unlike["score"].is_monotonic_decreasing
    flagged = unlike[unlike["score"] > metrics["outliers"]["threshold"]]["split"].value_counts().to_dict()
    assert flagged == {side: metrics["outliers"][side] for side in flagged}
    assert [item["kind"] for item in metrics["drift"]] == [*KINDS]
    assert not any(item["squared"] > item["threshold"] for item in metrics["drift"]), "they are drawn alike"
    with Image.open(folder / "outliers.png") as sheet:
        assert sheet.width > 5 * 176 and sheet.height > 10 * 176


def test_what_has_been_computed_serves_every_later_use(job: Job, passes: list[int]) -> None:
    pack = write_pointer(job.layout, make_pack(job, per_class=16, change=in_folds))
    first = write_pointer(job.layout, embeddings(embed_config(), pack, job))
    again = write_pointer(job.layout, embeddings(embed_config(), pack, replace(job, run_id="r2")))
    assert (again.features, again.content_hash) == (first.features, first.content_hash)
    assert sum(passes) == pack.n_images
    probed = config(loop={"precision": "fp32"}).model_copy(update={"method": "probe"})
    train(probed, pack, replace(job, run_id="r3"))
    assert sum(passes) == pack.n_images, "the probe reads them, too"
    names = [path.name for path in collect_garbage(job.layout).results]
    assert names == ["r3"], "the training left no pointer here; features on record stay"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda table: in_folds(table).assign(
                fold=lambda item: np.where(item["label"] == "glioma", 0, item["fold"])
            ),
            "The class 'glioma' has 12 of its 12 training images in fold 0 of 2, so that a probe cannot be scored",
        ),
        (
            lambda table: in_folds(table).assign(group="one", patient=""),
            "The training images are of too few patients or groups to keep some for validation",
        ),
        *rest((lambda table: table, "The split has no folds; set split.folds to 2 or more and split again.")),
    ],
)
def test_without_images_of_a_class_in_every_fold_there_are_features_and_no_score(
    job: Job, records: list[Record], change: Any, reason: str
) -> None:
    pack = make_pack(job, per_class=16, change=change)
    made = embeddings(embed_config(), pack, job)
    assert str(made.reason).startswith(reason) and made.headline == {} and made.predictions is None
    assert len(read_features(job.layout.absolute(made.features).parent)) == pack.n_images
    metrics = read_embeddings_metrics(job.layout.absolute(made.metrics))
    assert (metrics.pooled, metrics.folds, metrics.reason) == (None, {}, made.reason)
    assert any(reason in str(item["event"]) for item in records if item["level"] == "WARNING")


@pytest.mark.parametrize(
    ("blocks", "told"),
    [
        (
            {"model": {"name": "timm/vit_tiny_patch16_224", "pretrained": False}, "image_size": 40},
            "patches of 16 px, and 40 is not a multiple of that; set embeddings.image_size to 32 or 48.",
        ),
        (
            {"model": {"name": "vgg16", "pretrained": False}},
            "The model 'vgg16' is not known; did you mean resnet18? (embeddings.model.name)",
        ),
        ({"probe": {"depths": 8}}, "has 5 depths to take features from, and 8 are asked for; lower embeddings.probe.depths."),
        (
            {"model": {"name": "resnet18", "pretrained": False, "weights_package": "no-such-package"}},
            "no-such-package, which embeddings.model.weights_package names, is not installed; ",
        ),
    ],
)  # fmt: skip
def test_an_unusable_encoder_is_refused_with_the_keys_of_the_embeddings(
    job: Job, blocks: dict[str, Any], told: str
) -> None:
    with pytest.raises(ModelError) as caught:
        embeddings(embed_config(**blocks), make_pack(job, per_class=8), job)
    assert told in str(caught.value) and "train." not in str(caught.value)


def test_a_class_that_only_validates_is_refused() -> None:
    table = pd.DataFrame(
        {
            "row": range(8),
            "path": [f"{row}.png" for row in range(8)],
            "label": list("aaaabbbb"),
            "class_index": [0] * 4 + [1] * 4,
            "group": [f"g{row}" for row in range(8)],
            "split": "train",
            "origin": ["validation" if row in (2, 3, 4, 5, 6, 7) else "training" for row in range(8)],
            "fold": [0, 1, -1, -1, -1, -1, -1, -1],
        }
    )
    with pytest.raises(Exception, match=r"The class 'b' has 0 of its 4 training images in fold 0 of 2"):
        fold_predictions(np.zeros((8, 3), np.float32), table, ["a", "b"], val_frac=0.2, seed=0, balanced=True)
    with pytest.raises(Exception, match=r"The class 'b' has no image outside the validation groups"):
        fit_on_training(np.zeros((8, 3), np.float32), table, ["a", "b"], val_frac=0.2, seed=0, balanced=True)


@pytest.mark.full
def test_a_report_compares_the_model_with_frozen_features_where_there_are_some(case: Case) -> None:
    without = case.evaluate("without")
    reasons = read_metrics(case.job.layout.absolute(without.metrics)).reasons
    hint = f"there are no embeddings; `brainmri embeddings --dataset {case.job.dataset}` makes them"
    assert reasons[f"baselines.{FROZEN}"] == hint
    assert hint.replace("`", "") in case.file(without, "report.html").read_text().replace("`", "")

    weights = case.job.layout.root / "weights.pth"
    torch.save(build_model("mobilenet_v3_small", num_classes=1000, in_channels=1).state_dict(), weights)
    options = {"model": {"name": "mobilenet_v3_small", "pretrained": False, "weights_file": str(weights)}}
    write_pointer(
        case.job.layout, embeddings(embed_config(**options), case.pack, replace(case.job, run_id="emb"))
    )
    found = read_metrics(case.job.layout.absolute(case.evaluate("with").metrics))
    (row,) = [item for item in found.baselines if item.name == FROZEN]
    assert row.beaten in ("yes", "no", "unclear") and row.macro_auroc is not None
    assert f"baselines.{FROZEN}" not in found.reasons
