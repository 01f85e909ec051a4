from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score

from brainmri_core.classifier.record import read_classifier
from brainmri_core.config.data import ResizeConfig, SplitConfig
from brainmri_core.errors import ConfigError, DataError, IntegrityError
from brainmri_core.evaluation.calibration import calibration_scores
from brainmri_core.evaluation.contender import packed_samples
from brainmri_core.evaluation.external_schema import read_external_metrics
from brainmri_core.evaluation.prediction_table import labels_of, logits_of, read_predictions
from brainmri_core.evaluation.tested_model import validation_of
from brainmri_core.learning.checkpoint import load_checkpoint, save_checkpoint
from brainmri_core.project.catalogue import DatasetEntry
from brainmri_core.project.pointer_store import follow, write_pointer
from brainmri_core.project.pointers import ExternalEvaluationPointer, MappingPointer
from brainmri_core.resize import resize
from brainmri_core.system.json_files import json_text
from tests.core.external_case import (
    AWAY,
    FOLDERS,
    HOME,
    NEVER_LEARNT,
    PLANTED,
    TESTED,
    TwoSites,
    away_entry,
    pack_folder,
    two_sites,
)
from tests.counts import rest

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> TwoSites:
    return two_sites(tmp_path_factory.mktemp("sites") / "project")


@pytest.fixture(scope="module")
def found(sites: TwoSites) -> ExternalEvaluationPointer:
    return sites.measure("x1")


@pytest.fixture(scope="module")
def metrics(sites: TwoSites, found: ExternalEvaluationPointer) -> dict[str, Any]:
    return read(sites, found)


@pytest.fixture(scope="module")
def table(sites: TwoSites, found: ExternalEvaluationPointer) -> pd.DataFrame:
    return read_predictions(sites.home.layout.absolute(found.predictions))[0]


def read(sites: TwoSites, pointer: ExternalEvaluationPointer) -> dict[str, Any]:
    """Return the content of its ``metrics.json``, which, read as its model and written again, is the same bytes."""
    path = sites.home.layout.absolute(pointer.metrics)
    document = read_external_metrics(path)
    assert json_text(document.model_dump(mode="json")).encode() == path.read_bytes()
    return json.loads(path.read_text())


def page(sites: TwoSites, pointer: ExternalEvaluationPointer) -> str:
    return sites.home.layout.absolute(pointer.report).read_text()


def rewritten(sites: TwoSites, path: Path, **changes: Any) -> Path:
    """Write the checkpoint with another record of itself, so that nothing knows it."""
    meta, weights = load_checkpoint(sites.home.layout.absolute(sites.checkpoint.checkpoint))
    save_checkpoint(path, weights, meta.model_copy(update=changes))
    return path


def test_planted_images_are_taken_out_with_their_reason_and_no_others_are(
    sites: TwoSites, found: ExternalEvaluationPointer, metrics: dict[str, Any]
) -> None:
    assert metrics["taken_out"]["by_reason"] == PLANTED
    assert metrics["taken_out"]["left_but_in_own_test"] == TESTED
    assert metrics["images"]["taken_out"] == found.taken_out == sum(PLANTED.values())
    listed = pd.read_csv(sites.home.layout.absolute(found.folder) / "taken_out.csv")
    copies = listed[listed["reason"].str.startswith("copy")]
    for item in copies.itertuples():
        side, how, _ = Path(item.path).stem.split()
        assert item.reason == f"copy_of_{side}"
        assert item.orientation == {"mirrored": "mirrored", "turned": "turned"}.get(how, "identity")
        assert item.kind == {"file": "exact", "brighter": "re-encoded"}.get(how, "turned")
    others = listed[~listed["reason"].str.startswith("copy")]
    assert others["kind"].isna().all() and others["path"].str.contains("/new ").all()


def test_each_image_is_counted_once(sites: TwoSites, metrics: dict[str, Any], table: pd.DataFrame) -> None:
    images = metrics["images"]
    assert images["predicted"] == len(table) == sum(sites.images.values())
    assert images["never_learnt"] == sites.images[NEVER_LEARNT]
    assert images["scored"] == images["predicted"] - images["taken_out"] - images["never_learnt"]
    assert metrics["common_classes"] == list(FOLDERS) and metrics["never_learnt"] == [NEVER_LEARNT]


def test_the_scores_are_those_of_the_unseen_images_of_known_classes(
    metrics: dict[str, Any], table: pd.DataFrame
) -> None:
    classes = metrics["classes"]
    known = table[table["class_index"] >= 0]
    unseen = known[known["taken_out"] == ""]
    common = [f"logit_{name}" for name in metrics["common_classes"]]
    among = unseen[common].to_numpy().argmax(axis=1)
    expected = {
        "unseen": (unseen, unseen["predicted"]),
        "common": (unseen, np.array(metrics["common_classes"])[among]),
        "all": (known, known["predicted"]),
    }
    for row in metrics["rows"]:
        part, called = expected[row["kind"]]
        present = sorted(set(part["label"]))
        assert row["accuracy"] == pytest.approx(accuracy_score(part["label"], called)), row["kind"]
        assert row["macro_f1"] == pytest.approx(
            f1_score(part["label"], called, labels=present, average="macro", zero_division=0)
        )
    assert metrics["scores"]["macro_f1"] == metrics["rows"][0]["macro_f1"]
    assert metrics["rows"][0]["intervals"]["macro_f1"] == pytest.approx(
        metrics["scores"]["intervals"]["macro_f1"]
    )
    low, high = metrics["scores"]["intervals"]["macro_f1"]
    assert low < metrics["scores"]["macro_f1"] < high
    assert [len(set(row["support"])) for row in metrics["rows"]] == [len(classes)] * 3


def test_temperature_and_limit_are_those_of_the_evaluation_at_home(
    sites: TwoSites, metrics: dict[str, Any], table: pd.DataFrame
) -> None:
    described, _ = read_classifier(sites.home.layout.absolute(sites.evaluation.folder))
    scored = table[(table["class_index"] >= 0) & (table["taken_out"] == "")]
    labels, logits = labels_of(scored), logits_of(scored, metrics["classes"])
    calibration = metrics["scores"]["calibration"]
    assert calibration["temperature"] == described.temperature is not None
    assert calibration["before"] == calibration_scores(logits, labels)
    assert calibration["after"] == calibration_scores(logits, labels, described.temperature)
    flags = metrics["out_of_distribution"]
    flagged = scored["outlier_score"] > described.outlier_threshold
    assert flags["flagged_share"] == pytest.approx(flagged.mean())
    assert flags["flagged"]["images"] == flagged.sum()
    assert flags["unflagged"]["accuracy"] == pytest.approx(scored["correct"][~flagged].mean())
    never = flags["never_learnt"][NEVER_LEARNT]
    other = table[table["label"] == NEVER_LEARNT]
    assert never["images"] == len(other) == sum(never["called"].values())
    assert never["flagged_share"] == pytest.approx(
        (other["outlier_score"] > described.outlier_threshold).mean()
    )


def test_the_drop_is_against_the_own_test_images_of_the_same_classes(
    sites: TwoSites, found: ExternalEvaluationPointer, metrics: dict[str, Any]
) -> None:
    own = read_predictions(sites.home.layout.absolute(sites.evaluation.predictions))[0]
    own = own[(own["split"] == "test") & own["label"].isin(list(FOLDERS))]
    compared = metrics["comparison"]
    item = compared["measures"]["macro_f1"]
    assert compared["classes"] == list(FOLDERS) and compared["images"] == len(own)
    assert item["own"] == pytest.approx(
        f1_score(own["label"], own["predicted"], labels=list(FOLDERS), average="macro", zero_division=0)
    )
    assert item["external"] == pytest.approx(metrics["scores"]["macro_f1"])
    assert (
        found.headline["macro_f1_difference"]
        == item["difference"]
        == pytest.approx(item["external"] - item["own"])
    )
    assert item["interval"][0] < item["difference"] < item["interval"][1]


def test_shift_and_prevalence_are_told_beside_the_truth(metrics: dict[str, Any], table: pd.DataFrame) -> None:
    scored = table[(table["class_index"] >= 0) & (table["taken_out"] == "")]
    assert metrics["shift"]["images"][1] == len(scored)
    assert metrics["shift"]["origin"]["auroc"] > 0.9, "another contrast, noise and size"
    shares = scored["label"].value_counts(normalize=True)
    for name in metrics["classes"]:
        assert metrics["prevalence"]["true"][name] == pytest.approx(shares.get(name, 0.0))


def test_the_same_images_in_another_pack_are_prepared_as_the_checkpoint_says(
    sites: TwoSites, found: ExternalEvaluationPointer, table: pd.DataFrame
) -> None:
    layout = sites.home.layout
    mapping = follow(layout, MappingPointer, sites.pack.mapping_pointer)
    job = replace(sites.away, run_id="r2")
    other = write_pointer(layout, resize(ResizeConfig(size=40, fit="stretch"), mapping, job))
    again = read_predictions(layout.absolute(sites.measure("x2", pack=other).predictions))[0]
    pd.testing.assert_frame_equal(again, table)


def test_a_second_run_finds_the_same(sites: TwoSites, found: ExternalEvaluationPointer) -> None:
    assert sites.measure("x3").content_hash == found.content_hash


def test_the_page_shows_the_pairs_and_escapes_what_is_foreign(
    sites: TwoSites, found: ExternalEvaluationPointer
) -> None:
    text = page(sites, found)
    assert text.count('class="both"') == 12 and "no external score" in text
    assert "http" not in text.replace("http://www.w3.org", "") and "<script" not in text


def test_everything_from_training_leaves_no_score_and_says_how_much_for_what(
    sites: TwoSites, tmp_path: Path
) -> None:
    layout = sites.home.layout
    samples = packed_samples(sites.home_pack, sites.home)
    meta = load_checkpoint(layout.absolute(sites.checkpoint.checkpoint))[0]
    root = layout.absolute(follow(layout, MappingPointer, sites.home_pack.mapping_pointer).dataset_root)
    side = np.where(validation_of(samples, meta), "validation", samples["split"])
    for wanted in ("train", "validation"):
        for label, rows in samples[side == wanted].groupby("label"):
            for number, path in enumerate(rows["path"].iloc[[0, 3, 6]]):
                target = tmp_path / "seen" / str(label) / f"{wanted}{number}{Path(path).suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / path, target)
    entry = away_entry("owner/seen", classes=meta.classes, aliases={})
    pack = pack_folder(
        tmp_path / "seen", replace(sites.away, entry=entry, run_id="s1"), SplitConfig(seed=1), 64
    )
    found = sites.measure("x4", pack=pack, entry=entry)
    assert found.images == 0 and found.headline["macro_f1"] is None
    assert found.reason == (
        "The model may have seen 24 of the 24 images (12 copies of a training image, 12 copies of a validation image): "
        "nothing is left that could be scored."
    )
    metrics = read(sites, found)
    assert metrics["scores"] is None and [row["kind"] for row in metrics["rows"]] == ["all"]
    assert found.reason in page(sites, found)


def test_without_the_training_images_nothing_is_taken_out_and_that_is_said(
    sites: TwoSites, tmp_path: Path
) -> None:
    weights = rewritten(sites, tmp_path / "foreign.pth", data_hash="0" * 64, pack_pointer=None)
    found = sites.measure("x5", weights=weights)
    metrics = read(sites, found)
    assert found.taken_out == 0 and metrics["images"]["scored"] == 90
    assert metrics["taken_out"]["obstacle"] is not None
    assert any("Nothing could be taken out" in item["text"] for item in metrics["warnings"])
    assert metrics["shift"] == metrics["prevalence"] == {"reason": metrics["taken_out"]["obstacle"]}
    assert "Nothing could be taken out" in page(sites, found)


def test_a_checkpoint_that_names_no_pack_is_searched_in_the_one_with_its_content(
    sites: TwoSites, tmp_path: Path
) -> None:
    found = sites.measure("x6", weights=rewritten(sites, tmp_path / "bare.pth", pack_pointer=None))
    metrics = read(sites, found)
    assert metrics["taken_out"]["by_reason"] == PLANTED
    assert metrics["scores"]["calibration"]["after"] is None
    assert "was not evaluated on its own data" in metrics["comparison"]["reason"]
    assert metrics["out_of_distribution"]["flagged_share"] is None


@pytest.mark.parametrize(
    ("source", "started"), [("weights_file", "other/best.pth"), *rest(("weights_package", "their-weights"))]
)
def test_foreign_weights_at_the_start_of_the_training_are_told(
    sites: TwoSites, tmp_path: Path, source: str, started: str
) -> None:
    meta, _ = load_checkpoint(sites.home.layout.absolute(sites.checkpoint.checkpoint))
    trained = {**meta.train_config, "model": {**meta.train_config["model"], source: started}}
    found = sites.measure(
        f"x7-{source}", weights=rewritten(sites, tmp_path / "started.pth", train_config=trained)
    )
    assert any(started in item["text"] for item in read(sites, found)["warnings"])


def test_a_pack_that_was_changed_is_refused(sites: TwoSites) -> None:
    with pytest.raises(IntegrityError, match=r"pack\.npy"):
        sites.measure("x8", pack=sites.pack.model_copy(update={"pack_sha256": "0" * 64}))


Change = Callable[[TwoSites, Path], dict[str, Any]]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda sites, _: {"entry": sites.home.entry, "pack": sites.home_pack},
            ConfigError,
            f"`brainmri evaluate --dataset {HOME}`",
        ),
        (lambda sites, _: {"trained_on": "owner/third"}, ConfigError, "was trained on brainmri/phantom, not on owner/third"),
        (
            lambda sites, _: {"pack": sites.pack.model_copy(update={"classes": ["cyst", "oedema"]})},
            DataError,
            "have no class in common",
        ),
        (
            lambda sites, _: {"entry": DatasetEntry(key=AWAY, source="archive", labelled=False)},
            DataError,
            "owner/away is not labelled, and an external evaluation needs labels",
        ),
        (
            lambda sites, _: {
                "entry": away_entry("owner/twin"),
                "pack": sites.home_pack.model_copy(update={"dataset": "owner/twin"}),
            },
            DataError,
            "owner/twin was fetched from the same files as brainmri/phantom",
        ),
    ],
    ids=["the diagonal", "a third data set's checkpoint", "no common class", "no labels", "one archive"],
)  # fmt: skip
def test_what_cannot_be_measured_is_said_in_one_sentence(
    sites: TwoSites, tmp_path: Path, change: Change, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        sites.measure("bad", **change(sites, tmp_path))
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert not (sites.home.layout.root / "outputs" / "external_evaluation" / AWAY / "bad").exists()
