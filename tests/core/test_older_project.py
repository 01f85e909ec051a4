"""A project that version 0.1.0 made, before the code moved to where it is: it is read, checked, used and continued."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from brainmri_core.compare import compare, find_evaluation
from brainmri_core.config import PipelineConfig, load_config
from brainmri_core.gc import collect_garbage
from brainmri_core.predict import Classifier
from brainmri_core.project.layout import ROOT_VARIABLE, Layout
from brainmri_core.project.pointer_store import follow, latest_pointer, pointer_files, read_pointer
from brainmri_core.project.pointers import (
    CheckpointPointer,
    EvaluationPointer,
    FetchPointer,
    MappingPointer,
    PackPointer,
    ValidationPointer,
)
from brainmri_core.project.run_schema import manifest_files, read_manifest
from brainmri_core.validation.report import load_report
from brainmri_core.verify import verify
from brainmri_dagster.cli import app
from tests import ROOT
from tests.faults.tiny import PHANTOM, run_stage

pytestmark = pytest.mark.training

OLD = "old-1"
TINY = (
    "resize.size=32",
    "train.data.image_size=32",
    "train.data.batch_size=8",
    "train.data.val_frac=0.5",
    "train.model.name=mobilenet_v3_small",
    "train.model.pretrained=false",
    "train.loop.epochs=1",
    "evaluate.bootstrap_resamples=20",
    "evaluate.io.make_gradcam=false",
    "evaluate.io.make_galleries=false",
)


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A copy of the project, which commit 17a8d06 made; its plan.json has the command.

    The training began from a file of few distinct values and hardly learnt, so that the archive is small.
    """
    root = tmp_path / "project"
    with tarfile.open(ROOT / "tests" / "fixtures" / "project-0.1.0.tar.xz") as archive:
        # before Python 3.11.4 there is no filter
        archive.extractall(root, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    monkeypatch.setenv(ROOT_VARIABLE, str(root))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return Layout(root=root)


def settings(*overrides: str) -> PipelineConfig:
    return load_config(None, [*TINY, *overrides])


def files_of(layout: Layout) -> dict[str, bytes]:
    return {
        path.relative_to(layout.root).as_posix(): path.read_bytes()
        for path in layout.root.rglob("*")
        if path.is_file() and ".locks" not in path.parts
    }


def test_an_older_project_is_read_and_found_whole(older: Layout) -> None:
    before = files_of(older)
    found = verify(older, print)
    assert found.problems == []
    assert (found.pointers, found.runs) == (12, 1)
    kinds = {read_pointer(older, kind, path).kind for kind, path in pointer_files(older)}
    assert kinds == {"fetch", "mapping", "pack", "validation", "checkpoint", "evaluation"}
    (manifest,) = map(read_manifest, manifest_files(older))
    assert (manifest.status, manifest.code["version"]) == ("success", "0.1.0")
    report = latest_pointer(older, ValidationPointer, PHANTOM)
    assert report is not None and load_report(older, report).passed == report.passed
    garbage = collect_garbage(older, settings(), dry_run=False)
    assert (garbage.results, garbage.temporaries) == ([], [])
    assert files_of(older) == before


def test_an_older_model_predicts_what_it_did(older: Layout) -> None:
    pointer = latest_pointer(older, EvaluationPointer, PHANTOM)
    assert pointer is not None
    again = run_stage(older.root, "evaluate", "again", settings())
    assert isinstance(again, EvaluationPointer)
    assert again.headline == pytest.approx(pointer.headline, abs=1e-4)
    folders = [find_evaluation(older, name) for name in (OLD, "again")]
    found = compare(folders[0], folders[1], (OLD, "again"), resamples=100, seed=1)
    assert {round(item.difference, 4) for item in found.differences} == {0.0}
    classifier = Classifier.load(older.absolute(pointer.folder))
    fetched = latest_pointer(older, FetchPointer, PHANTOM)
    assert fetched is not None
    image = next(older.absolute(fetched.dataset_root).rglob("*.jpg"))
    (prediction,) = classifier.predict([image])
    assert prediction.error is None and set(prediction.probabilities) == set(classifier.classes)


def test_an_older_project_is_trained_further_on_its_own_pointers(older: Layout) -> None:
    pack = latest_pointer(older, PackPointer, PHANTOM)
    assert pack is not None
    trained = run_stage(older.root, "train", "further", settings("train.optim.lr=0.01"))
    assert isinstance(trained, CheckpointPointer)
    assert follow(older, PackPointer, trained.pack_pointer) == pack
    run_stage(older.root, "evaluate", "further", settings())
    found = compare(
        find_evaluation(older, OLD), find_evaluation(older, "further"), ("a", "b"), resamples=100, seed=1
    )
    assert found.images == sum(follow(older, MappingPointer, pack.mapping_pointer).counts["test"].values())
    resized = run_stage(older.root, "resize", "smaller", settings("resize.size=16"))
    assert isinstance(resized, PackPointer) and resized.mapping_pointer == pack.mapping_pointer
    collect_garbage(older, settings(), dry_run=False)
    assert verify(older, print).problems == []


@pytest.mark.full
def test_the_graph_continues_an_older_project(older: Layout) -> None:
    """Its Dagster instance is gone, so that the pointers alone lead on."""
    shutil.rmtree(older.root / ".dagster", ignore_errors=True)
    overrides = [part for item in TINY for part in ("-o", item)]
    result = CliRunner().invoke(app, ["train", "--dataset", PHANTOM, "--run-id", "further", *overrides])
    assert result.exit_code == 0, result.output
    trained = latest_pointer(older, CheckpointPointer, PHANTOM)
    assert trained is not None and trained.run_id == "further"
    assert follow(older, PackPointer, trained.pack_pointer).run_id == OLD
