from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from brainmri_core.app import _html, _Page
from brainmri_core.classifier.neighbours import find_neighbours
from brainmri_core.classifier.search import default_checkpoint
from brainmri_core.config.data import FetchConfig
from brainmri_core.errors import ConfigError, IntegrityError, MissingUpstreamError, ModelError
from brainmri_core.evaluation.calibration import probabilities
from brainmri_core.evaluation.prediction_table import logits_of, read_predictions
from brainmri_core.learning.checkpoint import save_checkpoint
from brainmri_core.learning.models import build_model
from brainmri_core.predict import NOTICE, Classifier
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.layout import ROOT_VARIABLE, Layout
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import EvaluationPointer
from brainmri_dagster.cli import app
from tests.core.evaluation_case import Case, prepare
from tests.core.learning.models_case import META

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@dataclass(frozen=True)
class Model:
    case: Case
    evaluation: EvaluationPointer
    table: pd.DataFrame
    classes: list[str]

    @property
    def root(self) -> Path:
        return self.case.job.layout.root

    @property
    def weights(self) -> Path:
        return self.case.job.layout.absolute(self.case.checkpoint.checkpoint)

    @property
    def files(self) -> list[str]:
        """The original files of the prediction table's rows."""
        root = self.case.job.layout.absolute(self.case.fetched.dataset_root)
        return [str(root / path) for path in self.table["path"]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A small model with its evaluation: 40 px seen, 48 px packed, mirror images averaged, so that all of it is in the chain."""
    phantom = {"subjects_per_class": 7, "slices_per_subject": 3, "copies_per_kind": 1, "label_conflicts": 0}
    case = prepare(
        tmp_path_factory.mktemp("predict") / "project",
        load_catalogue()["brainmri/phantom"],
        FetchConfig.model_validate({"phantom": phantom}),
        48,
        loop={"epochs": 1},
        data={"batch_size": 16, "image_size": 40, "val_frac": 0.4},
    )
    pointer = case.evaluate(
        "e1",
        bootstrap_resamples=0,
        io={"make_gradcam": False, "make_galleries": False, "top_per_class": 1},
        mirror=True,
    )
    evaluation = write_pointer(case.job.layout, pointer)
    table, classes = read_predictions(case.job.layout.absolute(evaluation.predictions))
    yield Model(case, evaluation, table, classes)


@pytest.fixture(scope="module")
def classifier(model: Model) -> Classifier:
    return Classifier.load(model.weights)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def cli(*arguments: str, root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ROOT_VARIABLE, str(root))
    return CliRunner().invoke(app, ["predict", *arguments])


def test_original_files_get_the_bits_of_the_evaluation(model: Model, classifier: Classifier) -> None:
    test = (model.table["split"] == "test").to_numpy()
    files = [name for name, wanted in zip(model.files, test, strict=True) if wanted]
    expected = logits_of(model.table[test], model.classes)
    found = classifier.predict(files)
    assert [item.name for item in found] == files
    assert np.array_equal(np.stack([item.logits for item in found]), expected)
    backwards = classifier.predict(reversed(files))
    assert np.array_equal(np.stack([item.logits for item in backwards]), expected[::-1])
    alone = classifier.predict(files[:1])[0]
    assert np.array_equal(alone.logits, expected[0])
    scores = model.table.loc[test, "outlier_score"].to_numpy()
    assert np.allclose([item.outlier_score for item in found], scores, rtol=1e-6, atol=1e-6)


def test_probabilities_are_calibrated_as_the_evaluation_found(model: Model, classifier: Classifier) -> None:
    metrics = json.loads(model.case.file(model.evaluation, "metrics.json").read_text())
    temperature = metrics["calibration"]["temperature"]
    assert temperature not in (None, 1.0)
    found = classifier.predict(model.files[:3])
    expected = probabilities(logits_of(model.table[:3], model.classes), temperature)
    assert np.allclose([list(item.probabilities.values()) for item in found], expected)
    threshold = metrics["out_of_distribution"]["threshold"]
    assert [item.outlier for item in found] == [item.outlier_score > threshold for item in found]
    assert classifier.caveats() == [NOTICE]


def test_an_image_unlike_the_training_images_is_flagged(classifier: Classifier) -> None:
    board = np.kron(np.indices((8, 8)).sum(axis=0) % 2, np.ones((8, 8))).astype(np.uint8) * 255
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    assert [item.outlier for item in classifier.predict([board, noise])] == [True, True]


def test_one_image_is_the_same_in_whatever_form_it_comes(classifier: Classifier, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (60, 80), np.uint8)
    colour = np.repeat(pixels[..., None], 3, axis=2)
    (tmp_path / "a.png").write_bytes(png(pixels))
    sources = [
        *(
            pixels,
            png(pixels),
            tmp_path / "a.png",
            str(tmp_path / "a.png"),
            colour,
            pixels.astype(np.float64) / 255,
        ),
        *(
            torch.from_numpy(pixels),
            torch.from_numpy(pixels)[None],
            torch.from_numpy(colour).permute(2, 0, 1),
        ),
        *(torch.from_numpy(pixels)[None] / 255, (torch.from_numpy(pixels) / 255).double()),
        *(Image.fromarray(pixels), Image.fromarray(colour), Image.open(tmp_path / "a.png")),
        *(
            Image.fromarray(pixels).convert("RGBA"),
            bytearray(png(pixels)),
            memoryview(png(pixels)),
            pixels[::-1][::-1],
        ),
    ]
    found = classifier.predict(iter(sources), maps=True)
    assert [item.error for item in found] == [None] * len(sources)
    for item in found[1:]:
        assert np.array_equal(item.pixels, found[0].pixels), item.name
        assert np.array_equal(item.logits, found[0].logits), item.name
    names = [item.name for item in found]
    assert names[:5] == ["array 0", "bytes 1", str(tmp_path / "a.png"), str(tmp_path / "a.png"), "array 4"]
    assert names[6] == "tensor 6" and names[11] == "image 11"
    assert found[0].heatmap.shape == (40, 40)
    assert found[0].pixels.shape == (48, 48)
    for source in sources:
        (alone,) = classifier.predict(source)
        assert np.array_equal(alone.logits, found[0].logits), "one needs no list around it"


@pytest.mark.full
def test_folders_patterns_and_batches_stand_for_all_they_hold(classifier: Classifier, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    several = rng.integers(0, 255, (3, 60, 60, 3), np.uint8) // 255 * 90 + rng.integers(
        0, 99, (3, 60, 60, 1), np.uint8
    )
    (tmp_path / "deep").mkdir()
    files = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "deep" / "c.png"]
    for path, pixels in zip(files, several, strict=True):
        path.write_bytes(png(pixels))
    (tmp_path / "notes.txt").write_text("no image")
    expected = classifier.predict(list(several))
    assert [item.name for item in expected] == ["array 0", "array 1", "array 2"]
    for source in (
        tmp_path,
        str(tmp_path),
        [tmp_path],
        str(tmp_path / "**" / "*.png"),
        np.array(list(map(str, files))),
    ):
        found = classifier.predict(source)
        assert sorted(item.name for item in found) == [str(path) for path in files]
        assert {item.name: item.predicted for item in found} == {
            str(path): item.predicted for path, item in zip(files, expected, strict=True)
        }
    for batch in (several, torch.from_numpy(several).permute(0, 3, 1, 2)):
        assert [item.predicted for item in classifier.predict(batch)] == [item.predicted for item in expected]
    mixed = classifier.predict([several[0], tmp_path, png(several[1])])
    assert [item.name for item in mixed] == ["array 0", *map(str, files), "bytes 2"]
    assert classifier.predict([]) == []


GRAY = np.zeros((9, 9), np.uint8)
NO_SOURCES = {
    "None": (None, "Item 0 is of the type NoneType"),
    "a number": (7, "Item 0 is of the type int"),
    "a number among arrays": ([GRAY, 7], "Item 1 is of the type int"),
    "a table": ({"a.png": 1}, "Item 0 is of the type dict"),
    "an open file": (io.BytesIO(b"x"), "Item 0 is of the type BytesIO: read it first"),
    "rows of numbers": ([[0, 1], [1, 0]], "Item 0 is of the type list"),
    "a line": (np.zeros(4, np.uint8), r"array 0 has the shape \(4,\)"),
    "a stack": (np.zeros((5, 9, 9), np.uint8), r"array 0 has the shape .*as a list of arrays"),
    "nothing": (np.zeros((0, 9), np.uint8), "array 0 has the shape"),
    "whole numbers": (np.zeros((9, 9), np.int64), "array 0 is of int64 and the shape .*give uint8"),
    "sixteen bits": (np.zeros((9, 9), np.uint16), "array 0 is of uint16, .*black and white are not known"),
    "truths": (np.zeros((9, 9), bool), "array 0 is of bool"),
    "channels last": (torch.zeros(9, 9, 3), r"tensor 0 .*\(3, H, W\)"),
    "a long tensor": (torch.zeros(9, 9, dtype=torch.int64), r"tensor 0 has the type torch\.int64"),
}


@pytest.mark.parametrize("kind", NO_SOURCES)
def test_anything_else_is_a_type_error_of_one_sentence(classifier: Classifier, kind: str) -> None:
    source, words = NO_SOURCES[kind]
    for call in (classifier.predict, classifier.stream):
        with pytest.raises(TypeError, match=words) as caught:
            call(source)
        assert isinstance(caught.value, ConfigError) and "\n" not in str(caught.value)


def test_pixels_that_mean_nothing_cost_no_other_image(classifier: Classifier, tmp_path: Path) -> None:
    good = np.random.default_rng(1).integers(0, 255, (60, 80), np.uint8)
    photo = np.zeros((40, 40, 3), np.uint8)
    photo[..., 0], photo[:20, :, 2] = 200, 250
    (tmp_path / "cut.png").write_bytes(png(good)[:900])
    unread = Image.open(tmp_path / "cut.png")
    normalised, missing = (good - 90.0) / 40, np.where(good > 9, good / 255, np.nan)
    sources = [
        good,
        normalised,
        missing,
        photo,
        Image.fromarray(photo),
        GRAY,
        unread,
        tmp_path / "absent.png",
        good,
    ]
    errors = [item.error for item in classifier.predict(sources)]
    assert errors[0] is None and errors[-1] is None
    wanted = ["array 1 has floats from -2.25", "array 2 has floats from nan", "array 3 is a colour picture"]
    wanted += [
        "image 4 is a colour picture",
        "array 5 is blank",
        "image 6 cannot be read",
        "absent.png does not exist",
    ]
    for error, words in zip(errors[1:-1], wanted, strict=True):
        assert words in str(error)


@pytest.mark.full
def test_deep_arrays_are_shown_as_the_files_of_the_training_were(tmp_path: Path) -> None:
    ranges = {"16-bit": (100.0, 3000.0), "float": (-50.0, 800.0)}
    wanted = META.preprocessing.model_copy(update={"gray_ranges": ranges})
    weights = build_model("resnet18", num_classes=3, in_channels=1).state_dict()
    save_checkpoint(tmp_path / "deep.pth", weights, META.model_copy(update={"preprocessing": wanted}))
    deep = Classifier.load(tmp_path / "deep.pth")
    values = np.random.default_rng(4).integers(0, 4000, (40, 60), np.uint16)
    floats = values.astype(np.float32) / 4 - 100
    Image.fromarray(values).save(tmp_path / "whole.png")
    Image.fromarray(floats).save(tmp_path / "floats.tif")
    whole = [tmp_path / "whole.png", values, Image.fromarray(values)]
    fractions = [tmp_path / "floats.tif", floats, torch.from_numpy(floats), Image.fromarray(floats)]
    for sources in (whole, fractions):
        found = deep.predict(sources, maps=True)
        assert [item.error for item in found] == [None] * len(sources)
        assert all(np.array_equal(item.pixels, found[0].pixels) for item in found)
    with pytest.raises(TypeError, match="array 0 is of int32"):
        deep.predict(values.astype(np.int32))


def test_a_pillow_image_is_turned_as_its_exif_says(classifier: Classifier) -> None:
    pixels = np.random.default_rng(3).integers(0, 255, (40, 60), np.uint8)
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = 6
    found = classifier.predict([image, np.ascontiguousarray(np.rot90(pixels, -1))], maps=True)
    assert np.array_equal(found[0].pixels, found[1].pixels)


@pytest.mark.full
def test_a_map_of_one_cell_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = build_model("resnet18", num_classes=3, in_channels=1)
    meta = META.model_copy(update={"classes": ["a", "b", "c"]})
    save_checkpoint(tmp_path / "small.pth", model.state_dict(), meta)
    noise = np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8)
    small = Classifier.load(tmp_path / "small.pth")
    (found,) = small.predict(noise, maps=True)
    assert found.predicted and found.pixels is not None
    assert found.heatmap is None
    assert "resnet18 is 1 x 1 for images of 32 px" in str(found.no_heatmap)
    assert small.predict(noise)[0].no_heatmap is None, "nobody asked for one"
    page = _Page(small)
    shown = bytes(_html("app_result.html.j2", **page.shown(page.predict(png(noise)))).body).decode()
    assert "No Grad-CAM map: The last feature map of resnet18 is 1 x 1" in shown and "overlay" not in shown
    (tmp_path / "a.png").write_bytes(png(noise))
    options = ["--checkpoint", str(tmp_path / "small.pth"), "--overlay", str(tmp_path / "maps")]
    done = CliRunner().invoke(app, ["predict", str(tmp_path / "a.png"), *options])
    assert done.exit_code == 0
    assert "no overlays were written: The last feature map" in done.stderr
    assert not (tmp_path / "maps").exists()


def test_the_evaluation_is_found_by_any_way_to_its_checkpoint(model: Model, tmp_path: Path) -> None:
    folder = model.case.job.layout.absolute(model.evaluation.folder)
    copy = model.root / "models" / "best.pth"
    twin = model.weights.with_name("best.safetensors")
    for path in (folder, folder / "classifier.json", copy, str(model.weights), twin):
        found = Classifier.load(path)
        assert found.evaluation == folder
        assert found.temperature is not None
    away = tmp_path / "away.pth"
    shutil.copy(copy, away)
    bare = Classifier.load(away)
    assert (bare.evaluation, bare.temperature, bare.outliers) == (None, None, None)
    assert "not calibrated" in bare.caveats()[1]
    assert bare.predict(model.files[:1])[0].outlier is None
    for name in ("classifier.json", "outliers.npz"):
        shutil.copy(folder / name, tmp_path)
    assert Classifier.load(away).evaluation == tmp_path, "beside the checkpoint it is found without a project"
    described = json.loads((tmp_path / "classifier.json").read_text())
    (tmp_path / "classifier.json").write_text(
        json.dumps({**described, "checkpoint": "away.pth", "checkpoint_sha256": "0"})
    )
    with pytest.raises(IntegrityError, match="is not the one that"):
        Classifier.load(tmp_path)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"not a checkpoint")
    for name, words in (("x.pth", "cannot be read safely"), ("absent.pth", "does not exist")):
        with pytest.raises(ModelError, match=words):
            Classifier.load(tmp_path / name)


def test_the_model_in_use_is_the_champion_else_the_newest_best(model: Model, tmp_path: Path) -> None:
    assert default_checkpoint(Layout(root=model.root), "models") == model.root / "models/best.pth"
    with pytest.raises(MissingUpstreamError, match="make one with `brainmri pipeline`"):
        default_checkpoint(Layout(root=tmp_path), "models")
    for number, slug in enumerate(("a", "b")):
        folder = tmp_path / "outputs/pointers/champion/owner" / slug
        folder.mkdir(parents=True)
        record = {
            "dataset": f"owner/{slug}",
            "run_id": "r",
            "content_hash": "0",
            "written_at_utc": "",
            "crowned": True,
        }
        record |= dict.fromkeys(("champion_checkpoint", "challenger_checkpoint", "decision", "reason"), "x")
        (folder / "latest.json").write_text(json.dumps({**record, "weights": f"models/{slug}.pth"}))
        if number == 0:
            assert default_checkpoint(Layout(root=tmp_path), "models") == tmp_path / "models/a.pth"
    with pytest.raises(ConfigError, match=r"owner/a, owner/b.*--dataset"):
        default_checkpoint(Layout(root=tmp_path), "models")
    assert default_checkpoint(Layout(root=tmp_path), "models", "owner/b") == tmp_path / "models/b.pth"


def test_bad_files_are_reported_and_the_others_predicted(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    good = Path(model.files[0]).read_bytes()
    (folder / "good.jpg").write_bytes(good)
    (folder / "cut.jpg").write_bytes(good[: len(good) // 2])
    (folder / "deep" / "text.png").write_text("hello")
    (folder / "notes.txt").write_text("left out: its ending is no image's")
    Image.new("L", (40, 40), 7).save(folder / "blank.png")
    photo = np.zeros((40, 40, 3), np.uint8)
    photo[..., 0], photo[:20, :, 2] = 200, 250
    Image.fromarray(photo).save(folder / "photo.png")
    (folder / "\x1b[31mevil\n.png").write_bytes(png(np.eye(40, dtype=np.uint8) * 255))
    done = cli(
        str(folder),
        str(tmp_path / "absent.png"),
        "--format",
        "json",
        root=model.root,
        monkeypatch=monkeypatch,
    )
    assert done.exit_code == 1
    assert "5 of the images could not be predicted" in done.stderr
    value = json.loads(done.stdout)
    assert value["notice"] == NOTICE
    errors = {Path(item["image"]).name: item["error"] for item in value["predictions"]}
    assert {name for name, error in errors.items() if error is None} == {"good.jpg", "\x1b[31mevil\n.png"}
    assert "is blank" in errors["blank.png"]
    assert "colour picture" in errors["photo.png"]
    assert "cannot be decoded" in errors["cut.jpg"]
    assert "not a readable image" in errors["text.png"]
    assert "does not exist" in errors["absent.png"]
    table = cli(str(folder), root=model.root, monkeypatch=monkeypatch)
    assert NOTICE in table.stdout
    assert "\x1b" not in table.stdout
    assert table.exit_code == 1
    assert "Traceback" not in table.output


def test_csv_and_overlays(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = str(Path(model.files[0]).parent / "*")
    done = cli(
        pattern,
        "--format",
        "csv",
        "--overlay",
        str(tmp_path / "maps"),
        root=model.root,
        monkeypatch=monkeypatch,
    )
    assert done.exit_code == 0, done.output
    assert NOTICE in done.stderr
    table = pd.read_csv(io.StringIO(done.stdout))
    assert len(table) == len(list(Path(model.files[0]).parent.iterdir()))
    shares = table[[f"prob_{name}" for name in model.classes]]
    assert np.allclose(shares.sum(axis=1), 1)
    assert (shares.idxmax(axis=1) == "prob_" + table["predicted"]).all()
    for path in table["overlay"]:
        with Image.open(path) as image:
            assert image.width > 600


def test_training_images_are_found_again(model: Model, classifier: Classifier, tmp_path: Path) -> None:
    trained = model.case.job.layout.absolute(model.case.pack.samples)
    table = pd.read_parquet(trained)
    train = table[(table["split"] == "train") & (table["row"] >= 0)]
    item = train.iloc[5]
    known = find_neighbours(classifier.weights, classifier.inference)
    assert known is not None
    asked = np.asarray(known.pixels[item["row"]])[:, ::-1]
    for searched in (known, replace(known, features=None)):
        near = searched.nearest(asked, 3)
        assert (near[0].path, near[0].label, near[0].mirrored) == (item["path"], item["label"], True)
        assert near[0].similarity == pytest.approx(1, abs=1e-4)
        assert len({neighbour.path for neighbour in near} & set(train["path"])) == 3
    assert near[0].similarity >= near[1].similarity >= near[2].similarity
    assert find_neighbours(tmp_path / "away.pth", classifier.inference) is None
