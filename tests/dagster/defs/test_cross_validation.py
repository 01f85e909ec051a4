from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from brainmri_core.cross_validation import cross_validate, fold_pack
from brainmri_core.errors import ConfigError, IntegrityError
from brainmri_core.evaluation.calibration import probabilities
from brainmri_core.evaluation.label_issues import split_without
from brainmri_core.evaluation.test_ledger import read_looks
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.checkpoint import load_model
from brainmri_core.learning.inference import predict
from brainmri_core.project.pointers import PackPointer
from brainmri_core.project.sample_table import read_samples
from brainmri_core.system.json_files import read_json
from brainmri_dagster.defs.model_metadata import of_cross_validation
from tests.dagster.conftest import Workbench, failure_of
from tests.dagster.defs.champion_case import pack_of, store_fold

pytestmark = pytest.mark.training


def test_a_fold_is_the_test_side_and_the_real_test_side_is_left_out(packed: Workbench) -> None:
    pack = pack_of(packed)
    whole = read_samples(packed.layout.absolute(pack.samples))
    for fold in range(2):
        seen = read_samples(packed.layout.absolute(fold_pack(pack, fold, packed.job(f"fold-{fold}")).samples))
        inside = (whole["split"] == "train") & (whole["fold"] == fold)
        assert 0 < inside.sum() < (whole["split"] == "train").sum()
        assert (seen["split"] == "test").equals(inside)
        assert (seen["split"] == "train").equals((whole["split"] == "train") & ~inside)
        assert set(seen.loc[whole["split"] == "test", "split"]) == {"excluded"}
        assert not set(seen.loc[inside, "group"]) & set(seen.loc[seen["split"] == "train", "group"])
    with pytest.raises(ConfigError, match="has 2 folds, so there is no fold 2"):
        fold_pack(pack, 2, packed.job("fold-2"))


def test_the_report_pools_the_folds_and_lets_them_vote_on_the_test_split(packed: Workbench) -> None:
    pack = pack_of(packed)
    pairs = [store_fold(packed, 0, 0), store_fold(packed, 1, 3)]
    config = packed.config("evaluate.data.seed=1").evaluate
    checkpoints, evaluations = zip(*pairs, strict=True)
    pointer = cross_validate(config, pack, checkpoints, evaluations, packed.job("cv"))  # type: ignore[arg-type]
    metrics = read_json(packed.layout.absolute(pointer.metrics))
    whole = read_samples(packed.layout.absolute(pack.samples))
    training, testing = ((whole["split"] == side) & (whole["row"] >= 0) for side in ("train", "test"))

    pooled = read_samples(packed.layout.absolute(pointer.predictions))
    assert sorted(pooled["path"]) == sorted(whole.loc[training, "path"]), "each training image exactly once"
    images = [metrics["folds"][name]["images"] for name in ("0", "1")]
    assert sum(images) == training.sum()
    accuracies = [1.0, 1 - 3 / images[1]]
    assert metrics["pooled"]["accuracy"] == pytest.approx(1 - 3 / training.sum())
    assert metrics["mean"]["accuracy"] == pytest.approx(np.mean(accuracies))
    assert metrics["spread"]["accuracy"] == pytest.approx(np.std(accuracies))
    low, high = metrics["pooled"]["intervals"]["accuracy"]
    assert low < metrics["pooled"]["accuracy"] <= high
    ensemble = read_samples(packed.layout.absolute(pointer.folder) / "ensemble.parquet")
    assert sorted(ensemble["path"]) == sorted(whole.loc[testing, "path"])
    shares = ensemble[[f"prob_{name}" for name in pack.classes]].to_numpy()
    assert np.allclose(shares.sum(axis=1), 1)
    assert pointer.headline["pooled_accuracy"] == metrics["pooled"]["accuracy"]
    assert pointer.inference == "fp32"
    (look,) = (
        item
        for item in read_looks(packed.layout.test_ledger(pointer.dataset))
        if item.run_id == pointer.run_id
    )
    assert (look.what, look.split, look.images) == ("cross_validation", pointer.test_split, testing.sum())
    assert metrics["test_looks"]["split"] == look.split
    folder = packed.layout.absolute(pointer.folder)
    issues = pd.read_csv(folder / "label_issues.csv")
    assert len(issues) == metrics["label_issues"] > 0
    with Image.open(folder / "label_issues.png") as sheet:
        assert sheet.width > 176 * min(len(issues), 8)
    assert {"label_issues", "label_issue_pictures", "test_split_looks"} <= of_cross_validation(
        packed.layout, pointer
    ).keys()
    cleaned = pd.read_csv(folder / "split_without_label_issues.csv")
    of_path = cleaned.set_index("path")["split"]
    assert set(of_path[whole.loc[testing, "path"]]) == {"test"}
    assert set(of_path[issues["path"]]) == {"excluded"}
    assert (of_path == "train").sum() == training.sum() - len(issues)
    seen = read_samples(packed.layout.absolute(fold_pack(pack, 0, packed.job("fold-csv")).samples))
    assert split_without(seen, issues).equals(cleaned), "a fold's own table gives the whole split back"


def test_the_ensemble_averages_mirror_images_where_evaluations_do(packed: Workbench) -> None:
    pack, layout = pack_of(packed), packed.layout
    checkpoints, evaluations = zip(*[store_fold(packed, 0, 5), store_fold(packed, 1, 6)], strict=True)
    config = packed.config("evaluate.data.seed=1", "evaluate.mirror=true").evaluate
    pointer = cross_validate(config, pack, checkpoints, evaluations, packed.job("cv-mirror"))
    ensemble = read_samples(layout.absolute(pointer.folder) / "ensemble.parquet")
    device, wanted = torch.device("cpu"), {True: 0.0, False: 0.0}
    for checkpoint in checkpoints:
        model, meta = load_model(layout.absolute(checkpoint.checkpoint), device)
        for mirror in wanted:
            logits = predict(
                model,
                open_pack(layout, pack),
                ensemble["row"].to_numpy(),
                meta.preprocessing,
                device=device,
                batch_size=32,
                tta=mirror,
            ).logits
            wanted[mirror] = wanted[mirror] + probabilities(logits) / 2
    shares = ensemble[[f"prob_{name}" for name in pack.classes]].to_numpy()
    np.testing.assert_allclose(shares, wanted[True], atol=1e-6)
    assert np.abs(shares - wanted[False]).max() > 1e-3


def test_folds_of_other_pixels_are_refused(packed: Workbench) -> None:
    checkpoint, evaluation = store_fold(packed, 0, 1)
    other: PackPointer = pack_of(packed).model_copy(
        update={"pack_sha256": "0" * 64, "content_hash": "0" * 64}
    )
    config = packed.config("evaluate.data.seed=1").evaluate
    with pytest.raises(IntegrityError, match="was trained on other images or another split than the newest"):
        cross_validate(config, other, [checkpoint], [evaluation], packed.job("cv-other"))  # type: ignore[list-item]


def test_folds_of_another_split_or_evaluated_before_are_refused(packed: Workbench) -> None:
    pairs = [store_fold(packed, 0, 2), store_fold(packed, 1, 4)]
    config, pack = packed.config("evaluate.data.seed=1").evaluate, pack_of(packed)
    checkpoints, evaluations = zip(*pairs, strict=True)
    split_anew = pack.model_copy(update={"content_hash": "1" * 64})  # the same pixels on other sides
    swapped, mixed = checkpoints[::-1], evaluations[::-1]
    for number, arguments in enumerate(
        [(split_anew, checkpoints, evaluations), (pack, swapped, mixed), (pack, checkpoints, mixed)]
    ):
        with pytest.raises(IntegrityError, match="or was not evaluated since"):
            cross_validate(config, *arguments, packed.job(f"cv-refused-{number}"))  # type: ignore[arg-type]


def test_a_report_without_all_folds_says_which_are_missing(packed: Workbench) -> None:
    message = failure_of(packed.run(["cross_validation_report"]))
    assert message.startswith(
        "The fold_checkpoint of brainmri/phantom is missing for the folds 0, 1, 2, 3, 4; make them"
    )
    assert "brainmri backfill --select fold_evaluation --dataset brainmri/phantom" in message
