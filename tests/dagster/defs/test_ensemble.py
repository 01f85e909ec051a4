from __future__ import annotations

from typing import Any

import dagster as dg
import numpy as np
import pytest
import torch

from brainmri_core.classifier.search import default_checkpoint, recorded_checkpoint
from brainmri_core.ensemble import fold_ensemble
from brainmri_core.errors import BrainMRIError, IntegrityError, ModelError
from brainmri_core.evaluate import evaluate
from brainmri_core.evaluation.calibration import fit_temperature
from brainmri_core.evaluation.prediction_table import labels_of, logits_of, read_predictions
from brainmri_core.evaluation.test_ledger import read_looks
from brainmri_core.evaluation.tested_model import validation_of
from brainmri_core.gc import collect_garbage
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.checkpoint import load_checkpoint, load_model
from brainmri_core.learning.inference import predict
from brainmri_core.predict import Classifier
from brainmri_core.project.pointer_store import follow, write_pointer
from brainmri_core.project.pointers import EvaluationPointer, FoldPackPointer
from brainmri_core.project.sample_table import read_samples
from brainmri_core.splitting.assignment import validation_mask
from brainmri_dagster.defs.model_metadata import of_ensemble
from brainmri_dagster.graph.asset_table import ENSEMBLE_ASSETS, FOLD_ASSETS
from tests.dagster.conftest import PHANTOM, Workbench, failure_of
from tests.dagster.defs.champion_case import pack_of, store_fold

pytestmark = pytest.mark.training
CPU = torch.device("cpu")
DATA = {"val_frac": 0.3, "seed": 42}


def test_folds_become_one_checkpoint_that_is_evaluated_and_predicts_as_any_other(packed: Workbench) -> None:
    layout, pack = packed.layout, pack_of(packed)
    checkpoints, evaluations = zip(store_fold(packed, 0, 2), store_fold(packed, 1, 3), strict=True)
    pointer = fold_ensemble("models", pack, checkpoints, evaluations, packed.job("together"))
    pointer = write_pointer(layout, pointer, update_latest=False)

    assert pointer.checkpoint.startswith("models/ensemble/brainmri/phantom/together/")
    model, meta = load_model(layout.absolute(pointer.checkpoint), CPU)
    record = meta.ensemble
    assert record is not None and record.forward_passes == 2
    assert record.parameters == sum(item.numel() for item in model.parameters())
    assert record.weights_bytes == pytest.approx(layout.absolute(pointer.checkpoint).stat().st_size, rel=0.05)
    rows = np.arange(pack.n_images)
    pixels, shares = open_pack(layout, pack), []
    for number, (member, checkpoint, evaluation) in enumerate(
        zip(record.members, checkpoints, evaluations, strict=True)
    ):
        assert (member.fold, member.checkpoint_pointer) == (number, checkpoint.pointer_path)
        assert member.checkpoint_sha256 == checkpoint.checkpoint_sha256
        table, classes = read_predictions(layout.absolute(evaluation.predictions))
        held = table[table["split"] == "test"]
        assert member.temperature == fit_temperature(logits_of(held, classes), labels_of(held))
        one, how = load_model(layout.absolute(checkpoint.checkpoint), CPU)
        logits = predict(one, pixels, rows, how.preprocessing, device=CPU, batch_size=16).logits
        shares.append(torch.from_numpy(logits / member.temperature).softmax(1))
    together = predict(model, pixels, rows, meta.preprocessing, device=CPU, batch_size=16).logits
    torch.testing.assert_close(torch.from_numpy(together).softmax(1), sum(shares) / 2, rtol=1e-3, atol=1e-4)
    shown = of_ensemble(layout, pointer)
    assert {"members", "parameters", "weights_bytes", "forward_passes", "checkpoint"} <= shown.keys()

    config = packed.config("evaluate.data.seed=1").evaluate
    evaluated = write_pointer(layout, evaluate(config, pointer, pack, packed.job("together-e")))
    looks = [item for item in read_looks(layout.test_ledger(pack.dataset)) if item.run_id == "together-e"]
    assert [item.checkpoint for item in looks] == [pointer.content_hash]
    assert evaluated.test_split == looks[0].split
    report = layout.absolute(evaluated.folder) / "report.html"
    assert f"<h1>{meta.model_name} (ensemble of 2) on brainmri/phantom</h1>" in report.read_text()
    classifier = Classifier.load(layout.absolute(pointer.checkpoint))
    assert classifier.evaluation == layout.absolute(evaluated.folder) and classifier.temperature is not None
    (answer,) = classifier.predict([np.asarray(pixels[0])])
    calibrated = torch.from_numpy(together[0] / classifier.temperature).softmax(0)
    assert list(answer.probabilities.values()) == pytest.approx(calibrated.tolist(), abs=1e-4)
    assert recorded_checkpoint(layout, layout.absolute(pointer.checkpoint), pack.dataset) == pointer
    assert not collect_garbage(layout).results


def test_no_member_of_an_ensemble_was_trained_on_its_validation_images(packed: Workbench) -> None:
    pack = pack_of(packed)
    checkpoints, evaluations = zip(store_fold(packed, 0, 5), store_fold(packed, 1, 6), strict=True)
    pointer = fold_ensemble("models", pack, checkpoints, evaluations, packed.job("unseen"))
    meta, _ = load_checkpoint(packed.layout.absolute(pointer.checkpoint))
    table = read_samples(packed.layout.absolute(pack.samples))
    whole = table[table["row"] >= 0].sort_values("row", ignore_index=True)
    judging = set(whole["path"][validation_of(whole, meta)])
    assert judging
    seen: set[str] = set()
    for checkpoint in checkpoints:
        own = follow(packed.layout, FoldPackPointer, checkpoint.pack_pointer)
        part = read_samples(packed.layout.absolute(own.samples))
        part = part[part["row"] >= 0]
        trained = (part["split"] == "train") & ~validation_mask(part, DATA["val_frac"], 42)
        seen |= set(part["path"][trained])
    assert judging == set(whole["path"][whole["split"] == "train"]) - seen


def refused(bench: Workbench, folds: list[tuple[Any, Any]], run_id: str) -> BrainMRIError:
    checkpoints, evaluations = zip(*folds, strict=True)
    with pytest.raises((IntegrityError, ModelError)) as caught:
        fold_ensemble("models", pack_of(bench), checkpoints, evaluations, bench.job(run_id))
    assert not (bench.layout.root / "models/ensemble/brainmri/phantom" / run_id).exists()
    return caught.value


@pytest.mark.full
@pytest.mark.parametrize(
    ("wrong", "how", "words"),
    [
        (
            10,
            {"classes": ["a", "b", "c", "d"]},
            "knows the classes a, b, c, d, but that of fold 0 knows the classes glioma",
        ),
        (11, {"model_name": "resnet18"}, "is a resnet18 whose head sees 1 depth"),
        (12, {"image_size": 48}, "sees images of 48 px, but that of fold 0 sees images of 32 px"),
        (13, {"fit": "stretch"}, "prepares images by"),
        (14, {"gray_ranges": {"16-bit": (0.0, 9.0)}}, "prepares images by"),
    ],
)
def test_members_that_cannot_stand_for_one_another_are_refused(
    packed: Workbench, wrong: int, how: dict[str, Any], words: str
) -> None:
    found = refused(
        packed, [store_fold(packed, 0, wrong), store_fold(packed, 1, wrong, **how)], f"refused-{wrong}"
    )
    assert isinstance(found, ModelError)
    assert f"The checkpoint of fold 1 {words}" in str(
        found
    ) and "they make no ensemble; run `brainmri backfill" in str(found)


@pytest.mark.full
def test_a_fold_that_is_missing_changed_or_of_another_recipe_is_named(packed: Workbench) -> None:
    pairs = [store_fold(packed, 0, 8), store_fold(packed, 1, 9)]
    assert "has 2 folds, but there are checkpoints of 1; run `brainmri backfill" in str(
        refused(packed, pairs[:1], "x1")
    )
    other = [pairs[0], (pairs[1][0].model_copy(update={"recipe": "0" * 64}), pairs[1][1])]
    assert "fold 1 was trained with other settings, but that of fold 0" in str(refused(packed, other, "x2"))
    file = packed.layout.absolute(pairs[1][0].checkpoint)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"x")
    assert f"The checkpoint of fold 1 {file} was changed after it was recorded" in str(
        refused(packed, pairs, "x3")
    )
    file.unlink()
    assert f"The checkpoint of fold 1 {file} is missing" in str(refused(packed, pairs, "x4"))


def test_an_ensemble_without_all_folds_says_which_are_missing(packed: Workbench) -> None:
    message = failure_of(packed.run(["fold_ensemble"]))
    assert message.startswith(
        "The fold_checkpoint of brainmri/phantom is missing for the folds 0, 1, 2, 3, 4; make them"
    )
    assert failure_of(packed.run(["ensemble_evaluation"])) == (
        "There is no ensemble of folds of brainmri/phantom yet; make it with `brainmri ensemble --dataset brainmri/phantom`."
    )


@pytest.mark.full
def test_the_graph_makes_and_evaluates_an_ensemble_of_the_folds_on_record(packed: Workbench) -> None:
    sizes = ("fetch.phantom.subjects_per_class=8", "split.folds=5")
    packed.done(["raw_dataset", "dataset_split", "resized_images"], *sizes)
    for number in range(5):
        made = zip(FOLD_ASSETS, store_fold(packed, number, 20), strict=True)
        for asset, pointer in made:
            kept = pointer if pointer.pointer_path else write_pointer(packed.layout, pointer)
            packed.instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    asset,
                    partition=dg.MultiPartitionKey({"dataset": PHANTOM, "fold": str(number)}),
                    metadata={"pointer_path": dg.MetadataValue.path(str(kept.pointer_path))},
                )
            )
    claim = [*sizes, "evaluate.challenger=fold_ensemble"]
    packed.done(ENSEMBLE_ASSETS[:1], *sizes)
    assert "There is no evaluation of the ensemble of folds" in failure_of(packed.run(["champion"], *claim))
    packed.done(ENSEMBLE_ASSETS, *sizes)
    shown = packed.newest("fold_ensemble").metadata
    assert shown["forward_passes"].value == 5 and str(shown["members"].value).count("outputs/pointers") == 5
    assert packed.newest("ensemble_evaluation").metadata["test_split_looks"].value == 1
    ensemble = packed.pointer("fold_ensemble")
    assert ensemble is not None
    evaluation = packed.pointer("ensemble_evaluation")
    assert isinstance(evaluation, EvaluationPointer)
    assert evaluation.checkpoint_pointer == ensemble.pointer_path
    packed.done(["champion"], *claim)
    in_use = Classifier.load(default_checkpoint(packed.layout, "models", PHANTOM))
    assert in_use.meta.ensemble is not None and in_use.temperature is not None
    packed.done(["champion"], *claim)
    assert str(packed.newest("champion").metadata["reason"].value) == "It is the champion already."
