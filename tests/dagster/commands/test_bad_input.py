from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from brainmri_core.project.catalogue import CLASSES
from brainmri_core.project.layout import ROOT_VARIABLE
from brainmri_dagster.cli import app
from tests.counts import rest

pytestmark = pytest.mark.training

DATASET = "sartajbhuvaji/brain-tumor-classification-mri"


def make_folder(folder: Path, classes: tuple[str, ...] = CLASSES, images: int = 4) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(images):
            Image.fromarray(rng.integers(0, 256, (48, 48), np.uint8)).save(folder / name / f"{number}.png")
    return folder


def make_zip(target: Path, folder: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))
    return target


def absent(folder: Path) -> Path:
    return folder / "absent.zip"


def no_zip(folder: Path) -> Path:
    (folder / "data.zip").write_bytes(b"This is a text file.")
    return folder / "data.zip"


def truncated(folder: Path) -> Path:
    whole = make_zip(folder / "data.zip", make_folder(folder / "tree"))
    whole.write_bytes(whole.read_bytes()[:-200])
    return whole


def empty(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "data.zip", "w"):
        pass
    return folder / "data.zip"


def climbing(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "data.zip", "w") as archive:
        archive.writestr("../outside.png", b"x")
    return folder / "data.zip"


def one_class(folder: Path) -> Path:
    return make_folder(folder / "tree", ("glioma",))


def empty_class(folder: Path) -> Path:
    tree = make_folder(folder / "tree")
    for path in (tree / "glioma").iterdir():
        path.unlink()
    (tree / "glioma" / "notes.txt").write_text("no image here")
    return tree


def unreadable_class(folder: Path) -> Path:
    tree = make_folder(folder / "tree")
    for path in (tree / "glioma").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    return tree


def single_image(folder: Path) -> Path:
    tree = make_folder(folder / "tree")
    for path in sorted((tree / "pituitary").iterdir())[1:]:
        path.unlink()
    return tree


def unknown_class(folder: Path) -> Path:
    return make_folder(folder / "tree", (*CLASSES, "cats"))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "project"))
    return tmp_path / "project"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--dataset", DATASET])


def state(root: Path) -> dict[str, bytes]:
    """Return everything that later stages read: pointers, and the data and results that they name."""
    folders = ("outputs/pointers", "outputs/mappings", "data")
    return {
        str(path): path.read_bytes()
        for folder in folders
        for path in sorted((root / folder).rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("make", "stage", "code", "sentence"),
    [
        (truncated, "fetch", 3, "data.zip"),
        (unknown_class, "split", 4, "'cats'"),
        *rest(
            (absent, "fetch", 3, "absent.zip"),
            (unreadable_class, "split", 4, "'glioma'"),
            (no_zip, "fetch", 3, "data.zip"),
            (empty, "fetch", 3, "data.zip"),
            (climbing, "fetch", 3, "../outside.png"),
            (one_class, "fetch", 4, "fewer than two classes"),
            (empty_class, "fetch", 4, "glioma"),
            (single_image, "split", 4, "'pituitary'"),
        ),
    ],
)
def test_bad_data_ends_with_one_sentence_and_leaves_earlier_results(
    root: Path, tmp_path: Path, make: Callable[[Path], Path], stage: str, code: int, sentence: str
) -> None:
    good = make_folder(tmp_path / "good")
    assert run("fetch", "--archive", str(good)).exit_code == 0
    assert run("split").exit_code == 0
    if stage == "split":
        assert run("fetch", "--archive", str(make(tmp_path))).exit_code == 0
    before = state(root)
    failed = run("fetch", "--archive", str(make(tmp_path))) if stage == "fetch" else run("split")
    assert failed.exit_code == code, failed.output
    said = [line for line in failed.stderr.splitlines() if line.startswith("brainmri: ")]
    assert len(said) == 1
    assert sentence in said[0]
    assert "Traceback" not in failed.output
    assert state(root) == before
    manifests = (root / "outputs/orchestrator").glob("*/run_manifest.json")
    manifest = json.loads(max(manifests, key=lambda path: path.stat().st_mtime_ns).read_text())
    assert manifest["stages"][stage]["status"] == "failed"
    assert manifest["stages"][stage]["exit_code"] == code
    assert manifest["stages"][stage]["error"] == said[0].removeprefix("brainmri: ")


def test_a_corrupt_image_is_left_out_with_its_reason_and_the_run_goes_on(root: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "good", images=6)
    (folder / "glioma" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n cut short")
    done = run("pipeline", "--skip", "train", "--skip", "evaluate", "--archive", str(folder))
    assert done.exit_code == 0, done.output
    last = done.stdout.splitlines()[-1]
    page = Path(last.removeprefix("report: "))
    assert page.name == "report.html" and page.is_file(), "a command ends with what there is to read"
    report = json.loads(page.with_name("report.json").read_text())
    finding = next(item for item in report["findings"] if item["check"] == "unreadable")
    assert finding["files"] == ["glioma/0.png"]
    failed = run("validate", "-o", "validate.fail_on=warning")
    assert failed.exit_code == 4
    (named,) = [word for word in failed.stderr.split() if word.endswith("report.html")]
    assert Path(named).is_file() and named != str(page), "so does one that fails"


@pytest.mark.full
def test_a_project_folder_can_be_moved(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("fetch", "--archive", str(make_folder(tmp_path / "good"))).exit_code == 0
    moved = tmp_path / "elsewhere"
    shutil.move(root, moved)
    shutil.rmtree(tmp_path / "good")
    monkeypatch.setenv(ROOT_VARIABLE, str(moved))
    done = run("pipeline", "--skip", "fetch", "--skip", "train", "--skip", "evaluate")
    assert done.exit_code == 0, done.output
    assert not root.exists()
