from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from brainmri_core.classifier.record import read_classifier
from brainmri_core.config.data import SplitConfig
from brainmri_core.errors import ConfigError, DataError, IntegrityError, ModelError
from brainmri_core.evaluate import evaluate
from brainmri_core.evaluation.calibration import probabilities
from brainmri_core.evaluation.metrics import classification_metrics
from brainmri_core.evaluation.metrics_schema import read_metrics
from brainmri_core.evaluation.prediction_table import labels_of, logits_of, read_predictions
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.batches import to_input
from brainmri_core.learning.checkpoint import load_checkpoint, load_model, save_safetensors
from brainmri_core.project.logs import Record, StageLog
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import EvaluationPointer, PackPointer
from brainmri_core.project.sample_table import read_samples, write_samples
from brainmri_core.resize import resize
from brainmri_core.split import split
from brainmri_core.system.json_files import json_text, read_json, write_json
from tests.core.evaluation.metrics_case import nulls
from tests.core.evaluation_case import Case, evaluate_config

pytestmark = pytest.mark.training

FILES = {
    "metrics.json", "predictions.parquet", "report.html", "model_card.md", "confusion.png", "gradcam.png", "galleries",
    "label_issues.csv", "split_without_label_issues.csv", "classifier.json", "outliers.npz",
}  # fmt: skip


@pytest.fixture(scope="module")
def metrics(case: Case, pointer: EvaluationPointer) -> dict:
    return json.loads(case.file(pointer, "metrics.json").read_text())


@pytest.fixture(scope="module")
def table(case: Case, pointer: EvaluationPointer) -> pd.DataFrame:
    return read_predictions(case.file(pointer, "predictions.parquet"))[0]


def changed_pack(case: Case, name: str, change: object) -> PackPointer:
    """Return the case's pack with an edited sample table."""
    samples = read_samples(case.job.layout.absolute(case.pack.samples))
    path = case.job.layout.root / "data" / f"{name}.parquet"
    write_samples(path, change(samples))  # type: ignore[operator]
    return case.pack.model_copy(update={"samples": case.job.layout.relative(path)})


def test_the_folder_holds_what_the_pointer_says(
    case: Case, pointer: EvaluationPointer, metrics: dict
) -> None:
    folder = case.job.layout.absolute(pointer.folder)
    assert {path.name for path in folder.iterdir()} == FILES
    assert pointer.report == f"{pointer.folder}/report.html"
    assert pointer.checkpoint_pointer == case.checkpoint.pointer_path
    assert pointer.headline["macro_f1"] == metrics["macro_f1"]
    for name in ("confusion.png", "gradcam.png"):
        with Image.open(folder / name) as image:
            image.load()
            assert min(image.size) > 200
            assert np.asarray(image.convert("L")).std() > 10


def test_every_number_follows_from_the_prediction_table(
    table: pd.DataFrame, case: Case, metrics: dict
) -> None:
    classes, test = case.pack.classes, table[table["split"] == "test"]
    again = classification_metrics(labels_of(test), probabilities(logits_of(test, classes)), classes)
    for name in ("accuracy", "macro_f1", "mcc", "macro_auroc", "confusion_matrix", "per_class"):
        assert metrics[name] == again[name], name
    assert metrics["n_groups"] == test["group"].nunique()
    assert list(nulls(metrics)) == []


def test_the_table_holds_the_models_answer_to_each_image(table: pd.DataFrame, case: Case) -> None:
    samples = read_samples(case.job.layout.absolute(case.pack.samples))
    packed = samples[samples["row"] >= 0]
    test = packed[packed["split"] == "test"]
    assert table.loc[table["split"] == "test", "row"].tolist() == test["row"].tolist()
    validation = table[table["split"] == "validation"]
    assert not validation.empty
    assert set(packed.set_index("row").loc[validation["row"], "split"]) == {"train"}
    assert set(validation["group"]).isdisjoint(test["group"])
    model, meta = load_model(case.job.layout.absolute(case.checkpoint.checkpoint), torch.device("cpu"))
    pixels = np.array(open_pack(case.job.layout, case.pack)[table["row"].iloc[[0, 7]]])
    batch = to_input(torch.from_numpy(pixels).unsqueeze(1), meta.preprocessing, torch.device("cpu"))
    with torch.inference_mode():
        expected = model(batch).numpy()
    assert logits_of(table, case.pack.classes)[[0, 7]] == pytest.approx(expected, abs=1e-4)


def test_galleries_and_captions_follow_the_table(
    table: pd.DataFrame, case: Case, pointer: EvaluationPointer
) -> None:
    rows = table.set_index("path")
    written = pd.read_csv(case.file(pointer, "galleries/galleries.csv"))
    assert len(written) > 8
    for item in written.to_dict("records"):
        row = rows.loc[item["path"]]
        share = row[f"prob_{row['predicted']}"]
        expected = f"{item['path']}: is {row['label']}, called {row['predicted']} ({100 * share:.1f}%)"
        assert item["caption"] == expected
        assert row["split"] == "test"


@pytest.mark.full
def test_the_same_evaluation_twice_gives_the_same_numbers(case: Case, pointer: EvaluationPointer) -> None:
    again = case.evaluate("e1-again")
    assert again.content_hash == pointer.content_hash
    first, second = (read_predictions(case.file(item, "predictions.parquet"))[0] for item in (pointer, again))
    pd.testing.assert_frame_equal(first, second)


def test_the_classifier_beside_the_report_can_be_used(
    case: Case, pointer: EvaluationPointer, metrics: dict
) -> None:
    folder = case.job.layout.absolute(pointer.folder)
    described, outliers = read_classifier(folder)
    assert described.classes == case.pack.classes
    assert (folder / described.checkpoint).resolve() == case.job.layout.absolute(
        case.checkpoint.checkpoint
    ).resolve()
    assert described.checkpoint_sha256 == case.checkpoint.checkpoint_sha256
    assert described.temperature == metrics["calibration"]["temperature"]
    assert outliers is not None
    assert outliers.threshold == metrics["out_of_distribution"]["threshold"]


def test_a_damaged_classifier_file_is_refused(case: Case, pointer: EvaluationPointer, tmp_path: Path) -> None:
    folder = shutil.copytree(case.job.layout.absolute(pointer.folder), tmp_path / "copy")
    (folder / "outliers.npz").write_bytes(b"PK no zip")
    with pytest.raises(IntegrityError, match="outlier model"):
        read_classifier(folder)
    (folder / "classifier.json").write_text('{"schema_version": 1}')
    with pytest.raises(IntegrityError, match="does not describe a classifier"):
        read_classifier(folder)


def test_the_outlier_score_is_calibrated_on_validation(table: pd.DataFrame, metrics: dict) -> None:
    assert table["outlier_score"].notna().all()
    threshold = metrics["out_of_distribution"]["threshold"]
    assert (table.loc[table["split"] == "validation", "outlier_score"] > threshold).mean() <= 0.05
    test = table.loc[table["split"] == "test", "outlier_score"]
    assert metrics["out_of_distribution"]["flagged_test_share"] == pytest.approx((test > threshold).mean())


def test_the_predefined_split_takes_the_label_issues_back(case: Case, pointer: EvaluationPointer) -> None:
    issues = pd.read_csv(case.file(pointer, "label_issues.csv"))
    assert issues["rank"].tolist() == list(range(1, len(issues) + 1))
    assert len(issues) > 0, "a model this weak disputes some label"
    csv = case.file(pointer, "split_without_label_issues.csv")
    config = SplitConfig(seed=42, strategy="predefined", predefined_csv=str(csv))
    mapping = split(config, case.fetched, replace(case.job, run_id="cleaned"))
    before = read_samples(case.job.layout.absolute(case.mapping.samples)).set_index("path")
    after = read_samples(case.job.layout.absolute(mapping.samples)).set_index("path")
    gone = before.index[(before["split"] != "excluded") & (after.loc[before.index, "split"] == "excluded")]
    assert set(gone) == set(issues["path"])
    kept = after[after["split"] != "excluded"]
    assert (kept["split"] == before.loc[kept.index, "split"]).all()


@pytest.mark.full
def test_another_split_shows_the_model_images_it_was_trained_on(case: Case) -> None:
    job = replace(case.job, run_id="other")
    mapping = write_pointer(job.layout, split(SplitConfig(seed=7), case.fetched, job), update_latest=False)
    pack = write_pointer(job.layout, resize(case_resize(case), mapping, job), update_latest=False)
    records: list[Record] = []
    case = replace(
        case, job=replace(case.job, log=StageLog("evaluate", "other", job.dataset, [records.append]))
    )
    found = read_json(case.file(case.evaluate("other", pack, io={"make_gradcam": False}), "metrics.json"))
    (message,) = [
        record for record in records if record["event"] == "other data than the model was trained on"
    ]
    assert (message["trained_on"], message["evaluated_on"]) == (
        case.pack.content_hash[:12],
        pack.content_hash[:12],
    )
    own = read_samples(job.layout.absolute(case.pack.samples))
    other = read_samples(job.layout.absolute(pack.samples))
    trained = set(own.loc[own["split"] == "train", "pixel_sha256"])
    seen = int(
        other.loc[(other["split"] == "test") & (other["row"] >= 0), "pixel_sha256"].isin(trained).sum()
    )
    assert found["seen_in_training"] == seen > 10
    assert any(item["level"] == "red" and "training data" in item["text"] for item in found["warnings"])
    assert found["calibration"]["temperature"] is None
    assert found["out_of_distribution"]["threshold"] is None
    assert list(nulls(found)) == []


def case_resize(case: Case):  # type: ignore[no-untyped-def]
    from brainmri_core.config.data import ResizeConfig

    return ResizeConfig(size=case.pack.size)


@pytest.mark.full
def test_a_class_absent_from_the_test_split(case: Case) -> None:
    def without(samples: pd.DataFrame) -> pd.DataFrame:
        gone = (samples["split"] == "test") & (samples["label"] == "pituitary")
        return samples.assign(split=samples["split"].mask(gone, "excluded"))

    pointer = case.evaluate("absent", changed_pack(case, "absent", without))
    text = case.file(pointer, "metrics.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in metrics.json"))
    assert found["per_class"]["pituitary"]["recall"] is None
    assert list(nulls(found)) == []
    assert "No test image shows pituitary" in case.file(pointer, "report.html").read_text()


@pytest.mark.full
def test_without_pictures_and_resamples_the_report_says_so(case: Case) -> None:
    off = {"make_gradcam": False, "make_galleries": False, "top_per_class": 1}
    pointer = case.evaluate("bare", io=off, bootstrap_resamples=0)
    folder = case.job.layout.absolute(pointer.folder)
    assert {path.name for path in folder.iterdir()} == FILES - {"gradcam.png", "galleries"}
    found = read_json(folder / "metrics.json")
    assert found["intervals"] == {}
    assert list(nulls(found)) == []
    assert "No maps: evaluate.io.make_gradcam is false" in (folder / "report.html").read_text()


@pytest.mark.full
def test_maps_of_one_cell_are_left_out_and_the_report_says_why(case: Case, tmp_path: Path) -> None:
    meta, weights = load_checkpoint(case.job.layout.absolute(case.checkpoint.checkpoint))
    small = meta.model_copy(
        update={"preprocessing": meta.preprocessing.model_copy(update={"image_size": 32})}
    )
    save_safetensors(tmp_path / "small.safetensors", weights, small, "0" * 64)
    config = evaluate_config(
        model={"weights_path": str(tmp_path / "small.safetensors")}, bootstrap_resamples=0
    )
    folder = case.job.layout.absolute(
        evaluate(config, None, case.pack, replace(case.job, run_id="small")).folder
    )
    assert {path.name for path in folder.iterdir()} == FILES - {"gradcam.png"}
    reason = read_json(folder / "metrics.json")["explanations"]["reason"]
    assert f"{meta.model_name} is 1 x 1 for images of 32 px" in reason
    assert f"No maps: {reason}." in (folder / "report.html").read_text()


def refused(case: Case, run_id: str) -> bool:
    """Whether an evaluation left nothing behind, not even a temporary."""
    folder = case.job.layout.evaluation_dir("outputs/evaluation", case.job.dataset, run_id).parent
    return not [path for path in folder.glob("*") if run_id in path.name or path.name.startswith(".")]


def test_an_empty_test_split_is_refused(case: Case) -> None:
    def none(samples: pd.DataFrame) -> pd.DataFrame:
        return samples.assign(split=samples["split"].replace("test", "excluded"))

    with pytest.raises(DataError, match=r"test split of brainmri/phantom is empty; raise split.test_frac"):
        case.evaluate("empty", changed_pack(case, "empty", none))
    assert refused(case, "empty")


def test_other_classes_than_the_mapping_are_refused(case: Case) -> None:
    pack = case.pack.model_copy(update={"classes": case.pack.classes[::-1]})
    with pytest.raises(DataError, match="in this order"):
        case.evaluate("classes", pack)
    assert refused(case, "classes")


def test_a_pack_fitted_otherwise_is_refused(case: Case) -> None:
    with pytest.raises(DataError, match=r"64 px \(letterbox, gray\).*64 px \(stretch, gray\)"):
        case.evaluate("fit", case.pack.model_copy(update={"fit": "stretch"}))


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        (
            {"model": {"name": "densenet121"}},
            "is a mobilenet_v3_small, but evaluate.model.name is 'densenet121'",
        ),
        ({"data": {"image_size": 32}}, "sees images of 64 px, but evaluate.data.image_size is 32"),
    ],
)
def test_another_model_than_configured_is_refused(case: Case, blocks: dict, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        case.evaluate("model", **blocks)


def test_a_foreign_or_absent_checkpoint_is_refused(case: Case, tmp_path: Path) -> None:
    def from_file(path: Path) -> None:
        evaluate(
            evaluate_config(model={"weights_path": str(path)}), None, case.pack, replace(case.job, run_id="f")
        )

    model, _ = load_model(case.job.layout.absolute(case.checkpoint.checkpoint), torch.device("cpu"))
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ModelError, match="carries no record of its model, classes and preprocessing"):
        from_file(tmp_path / "bare.pth")
    torch.save({"meta": {"classes": ["a", "b"]}, "model": {}}, tmp_path / "foreign.pth")
    with pytest.raises(ModelError, match="carries no record"):
        from_file(tmp_path / "foreign.pth")
    (tmp_path / "noise.pth").write_bytes(b"\x80\x04not a checkpoint")
    with pytest.raises(ModelError, match="cannot be read safely"):
        from_file(tmp_path / "noise.pth")
    with pytest.raises(ModelError, match="does not exist"):
        from_file(tmp_path / "absent.pth")
    with pytest.raises(ConfigError, match="no checkpoint to evaluate"):
        evaluate(evaluate_config(), None, case.pack, replace(case.job, run_id="f"))
    assert refused(case, "f")


@pytest.mark.full
def test_a_checkpoint_file_gives_the_numbers_its_pointer_gives(
    case: Case, pointer: EvaluationPointer
) -> None:
    config = evaluate_config(
        model={"weights_path": case.checkpoint.checkpoint}, io={"make_gradcam": False, "top_per_class": 1}
    )
    alone = evaluate(config, None, case.pack, replace(case.job, run_id="file"))
    assert alone.headline == pointer.headline
    assert alone.checkpoint_pointer is None


def test_a_checkpoint_changed_since_training_is_refused(case: Case, tmp_path: Path) -> None:
    other = case.checkpoint.model_copy(update={"checkpoint_sha256": "0" * 64})
    with pytest.raises(IntegrityError, match="checkpoint"):
        evaluate(evaluate_config(), other, case.pack, replace(case.job, run_id="changed"))
    assert refused(case, "changed")


def test_the_metrics_file_is_read_as_it_was_written(case: Case, pointer: EvaluationPointer) -> None:
    path = case.file(pointer, "metrics.json")
    found = read_metrics(path)
    assert json_text(found.model_dump(mode="json")) == path.read_text()
    with pytest.raises(ValidationError, match="frozen"):
        found.accuracy = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": "0.9"}, r"'accuracy': Input should be a valid number; run evaluate again\.$"),
        ({"acuracy": 0.9}, r"'acuracy': Extra inputs are not permitted"),
        ({"schema_version": 2}, r"'schema_version': Input should be 1"),
    ],
)
def test_another_metrics_file_is_refused(
    case: Case, pointer: EvaluationPointer, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    stored = read_json(case.file(pointer, "metrics.json"))
    write_json(tmp_path / "metrics.json", stored | change)
    with pytest.raises(
        IntegrityError, match=rf"metrics\.json does not hold the metrics of an evaluation: {message}"
    ):
        read_metrics(tmp_path / "metrics.json")
