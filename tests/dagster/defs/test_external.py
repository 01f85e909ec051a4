from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from dagster import AssetCheckSeverity
from typer.testing import CliRunner

from brainmri_core.errors import MissingUpstreamError
from brainmri_core.evaluation.contender import packed_samples
from brainmri_core.gc import collect_garbage
from brainmri_core.project.layout import ROOT_VARIABLE
from brainmri_core.project.pointer_store import follow, latest_pointer
from brainmri_core.project.pointers import ExternalEvaluationPointer, FetchPointer, MappingPointer, pair_place
from brainmri_core.project.run_schema import manifest_files, read_manifest, read_plan
from brainmri_core.sources.phantom import read_truth
from brainmri_core.system.json_files import read_json
from brainmri_core.verify import verify
from brainmri_dagster.cli import app
from brainmri_dagster.code_location import defs
from brainmri_dagster.commands.backfill import targets
from brainmri_dagster.defs.checks import external_results
from brainmri_dagster.graph.asset_table import dataset_of, is_fold, pair_key, trained_on
from tests.core.evaluation.documents_case import external_document
from tests.dagster.conftest import PHANTOM, Workbench, checks_of, failure_of
from tests.dagster.defs.champion_case import pack_of

pytestmark = pytest.mark.training

SECOND = "brainmri/phantom-b"
KAGGLE = "sartajbhuvaji/brain-tumor-classification-mri"
PAIR = pair_key(PHANTOM, SECOND)
QUICK = (
    "external.bootstrap_resamples=100",
    "external.shift_permutations=99",
    "external.recalibration_images=[10]",
)
ERROR, WARN = AssetCheckSeverity.ERROR, AssetCheckSeverity.WARN


@pytest.fixture(scope="module")
def sites(evaluated: Workbench) -> Workbench:
    """A model of the synthetic data set, and the images of its second site."""
    evaluated.done(["raw_dataset", "dataset_split", "resized_images"], partition=SECOND)
    return evaluated


@pytest.fixture(scope="module")
def measured(sites: Workbench) -> Iterator[Any]:
    yield sites.done(["external_evaluation"], *QUICK, partition=PAIR)


def test_a_partition_names_the_data_set_trained_on_and_the_one_measured_on() -> None:
    assert (dataset_of(PAIR), trained_on(PAIR), is_fold(PAIR)) == (SECOND, PHANTOM, False)
    assert (trained_on(f"{PHANTOM}|0"), is_fold(f"{PHANTOM}|0"), trained_on(PHANTOM)) == (None, True, None)
    keys = defs.resolve_asset_graph().get(_key("external_evaluation")).partitions_def.get_partition_keys()
    assert PAIR in keys


def _key(name: str) -> Any:
    import dagster as dg

    return dg.AssetKey(name)


@pytest.mark.full
def test_it_is_an_asset_like_the_others(sites: Workbench, measured: Any) -> None:
    pointer = sites.pointer("external_evaluation", PAIR)
    assert isinstance(pointer, ExternalEvaluationPointer)
    assert pointer == latest_pointer(sites.layout, ExternalEvaluationPointer, pair_place(PHANTOM, SECOND))
    assert (pointer.trained_on, pointer.dataset) == (PHANTOM, SECOND)
    assert pointer.evaluation_pointer == sites.pointer("evaluation").pointer_path
    assert pointer.checkpoint_pointer == sites.pointer("model_checkpoint").pointer_path
    shown = sites.newest("external_evaluation", PAIR).metadata
    assert {
        "macro_f1",
        "macro_f1_difference",
        "taken_out_share",
        "images_scored",
        "comparison",
        "rows",
    } <= set(shown)
    assert "copy_of_training" in str(shown["taken_out"].value)
    assert set(checks_of(measured)) == {"unseen_images", "external_calibration", "generalises"}
    assert checks_of(measured)["unseen_images"].passed
    assert checks_of(measured)["unseen_images"].metadata["taken_out"].value == pointer.taken_out > 0


def test_every_planted_copy_is_taken_out_or_a_copy_of_a_test_image(sites: Workbench, measured: Any) -> None:
    pointer = sites.pointer("external_evaluation", PAIR)
    fetched = sites.pointer("raw_dataset", SECOND)
    assert isinstance(pointer, ExternalEvaluationPointer) and isinstance(fetched, FetchPointer)
    planted = read_truth(sites.layout.absolute(fetched.dataset_root)).elsewhere
    trained = packed_samples(pack_of(sites), sites.job("x")).set_index("path")["split"]
    sides = pd.Series({copy.path: trained.get(copy.original, "excluded") for copy in planted})
    taken = pd.read_csv(sites.layout.absolute(pointer.folder) / "taken_out.csv")
    metrics = read_json(sites.layout.absolute(pointer.metrics))
    assert set(sides) == {"train", "test", "excluded"}, "one original has two labels"
    copies = taken["path"][taken["reason"].str.startswith("copy")]
    assert sorted(copies) == sorted(sides.index[sides == "train"])
    left = set(sides.index[sides == "test"]) - set(taken["path"])  # but for relatives of a copy of training
    assert metrics["taken_out"]["left_but_in_own_test"] == len(left) > 0


def test_plan_and_manifest_name_what_of_either_data_set_was_read(sites: Workbench, measured: Any) -> None:
    manifest = next(
        item
        for item in map(read_manifest, manifest_files(sites.layout))
        if "external_evaluation" in item.stages
    )
    entry = manifest.stages["external_evaluation"]
    wanted = {
        "champion": None,
        "model_checkpoint": sites.pointer("model_checkpoint").pointer_path,
        "evaluation": sites.pointer("evaluation").pointer_path,
        "resized_images": sites.pointer("resized_images", SECOND).pointer_path,
    }
    assert entry.inputs == wanted
    plan = read_plan(sites.layout.run_dir(manifest.run_id) / "plan.json")
    assert plan.stages[0].config["bootstrap_resamples"] == 100 and plan.stages[0].config["seed"] == 42
    assert (
        f"-m brainmri_dagster.code_location --select external_evaluation --partition '{PAIR}'" in plan.command
    )


def test_its_files_are_verified_and_kept(sites: Workbench, measured: Any) -> None:
    assert verify(sites.layout).problems == []
    assert collect_garbage(sites.layout, sites.config()).results == []
    pointer = sites.pointer("external_evaluation", PAIR)
    assert isinstance(pointer, ExternalEvaluationPointer)
    listed = sites.layout.absolute(pointer.folder) / "taken_out.csv"
    before = listed.read_bytes()
    listed.write_bytes(before + b"x")
    assert [problem.path for problem in verify(sites.layout).problems] == [sites.layout.relative(listed)]
    listed.write_bytes(before)


def test_a_result_that_nothing_refers_to_is_garbage(sites: Workbench, measured: Any) -> None:
    pointer = sites.pointer("external_evaluation", PAIR)
    assert isinstance(pointer, ExternalEvaluationPointer)
    lost = sites.layout.absolute(pointer.folder).with_name("lost")
    shutil.copytree(sites.layout.absolute(pointer.folder), lost)
    assert collect_garbage(sites.layout, sites.config(), dry_run=False).results == [lost]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (
            pair_key(PHANTOM, PHANTOM),
            f"measured by the asset evaluation: `brainmri evaluate --dataset {PHANTOM}`",
        ),
        (
            pair_key(PHANTOM, KAGGLE),
            f"There is no pack of resized images of {KAGGLE} yet; make it with `brainmri resize",
        ),
        (
            pair_key(KAGGLE, SECOND),
            f"There is no checkpoint of {KAGGLE} yet; make one with `brainmri train --dataset",
        ),
    ],
    ids=["the diagonal", "no images", "no checkpoint"],
)
def test_a_pair_that_cannot_be_measured_says_why(sites: Workbench, pair: str, message: str) -> None:
    assert message in failure_of(sites.run(["external_evaluation"], *QUICK, partition=pair))


def test_a_data_set_of_training_images_fails_with_the_page_kept(sites: Workbench, tmp_path: Path) -> None:
    pack = pack_of(sites)
    images = packed_samples(pack, sites.job("x"))
    root = sites.layout.absolute(follow(sites.layout, MappingPointer, pack.mapping_pointer).dataset_root)
    for path in images["path"][images["split"] == "train"]:
        folder = tmp_path / "seen" / Path(path).parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, folder / Path(path).name)
    archive = f"fetch.archive={tmp_path / 'seen'}"
    sites.done(["raw_dataset", "dataset_split", "resized_images"], archive, partition=KAGGLE)
    pair = pair_key(PHANTOM, KAGGLE)
    result = sites.run(["external_evaluation"], *QUICK, partition=pair)
    pointer = sites.pointer("external_evaluation", pair)
    assert isinstance(pointer, ExternalEvaluationPointer) and pointer.reason is not None
    assert "nothing is left that could be scored" in pointer.reason
    assert failure_of(result) == f"{pointer.reason} See {sites.layout.absolute(pointer.report)}."
    assert sites.layout.absolute(pointer.report).is_file()
    check = checks_of(result)["unseen_images"]
    assert not check.passed and check.severity is ERROR


def test_a_backfill_takes_the_pairs_that_can_be_measured(
    sites: Workbench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, str(sites.layout.root))
    graph = defs.resolve_asset_graph()

    def chosen(*datasets: str) -> dict[str, list[str]]:
        return targets(sites.instance, graph, "external_evaluation", list(datasets), only_missing=False)

    figshare = "figshare/1512427"
    assert chosen(PHANTOM, SECOND, figshare) == {"external_evaluation": [PAIR]}
    assert (
        f"without a checkpoint: {SECOND}, {figshare}; without resized images: {figshare}"
        in capsys.readouterr().err
    )
    with pytest.raises(MissingUpstreamError, match="No pair of data sets can be evaluated"):
        chosen(PHANTOM)


def test_the_command_measures_a_file_and_says_what_it_found(
    sites: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, str(sites.layout.root))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    options = [part for item in QUICK for part in ("-o", item)]
    checkpoint = sites.pointer("model_checkpoint")
    weights = str(sites.layout.absolute(checkpoint.checkpoint))  # type: ignore[union-attr]
    command = ["evaluate", "--trained-on", PHANTOM, "--dataset", SECOND, "--checkpoint", weights, *options]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "macro_f1_difference" in done.stdout and "report: " in done.stdout
    for words, code, message in (
        (["evaluate", "--checkpoint", weights], 2, "--checkpoint needs --trained-on"),
        (
            ["evaluate", "--trained-on", "brainmri/fantom", "--dataset", SECOND],
            2,
            "did you mean 'brainmri/phantom",
        ),
        (["evaluate", "--trained-on", SECOND, "--dataset", SECOND], 2, "is what the model was trained on"),
        (
            ["evaluate", "--trained-on", SECOND, "--dataset", PHANTOM],
            5,
            f"There is no checkpoint of {SECOND}",
        ),
    ):
        refused = CliRunner().invoke(app, words)
        assert refused.exit_code == code, refused.output
        assert message in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("options", "failing"),
    [
        ({"high": 0.1}, {}),
        ({"high": -0.1}, {"generalises": WARN}),
        ({"high": 0.1, "ece": 0.2}, {"external_calibration": WARN}),
        ({"high": 0.1, "obstacle": "its images are not here"}, {"unseen_images": WARN}),
        ({"reason": "Nothing is left."}, {"unseen_images": ERROR}),
        ({"own": None}, {"generalises": WARN}),
    ],
    ids=["all is well", "a drop", "bad calibration", "nothing taken out", "nothing left", "nothing to compare with"],
)  # fmt: skip
def test_the_checks_say_what_is_in_doubt(options: dict[str, Any], failing: dict[str, Any]) -> None:
    found = external_document(SECOND, PHANTOM, **options)
    results = external_results(found, 0.15)
    assert {item.check_name: item.severity for item in results if not item.passed} == failing
    assert len(results) == (1 if found.reason else 3)
