from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner

import brainmri_dagster
from brainmri_core.project.layout import ROOT_VARIABLE
from brainmri_dagster.cli import app
from tests import ROOT

pytestmark = pytest.mark.training

HEAVY = ("torch", "torchvision", "sklearn", "matplotlib", "kaggle", "pandas", "pyarrow")


def modules_after(code: str, *names: str) -> list[str]:
    program = f"{code}\nimport sys\nprint(*[n for n in {names!r} if n in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr.split()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "project"))
    return tmp_path / "project"


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_help_loads_neither_dagster_nor_anything_heavy():
    code = "from typer.testing import CliRunner\nfrom brainmri_dagster.cli import app\n"
    code += "assert CliRunner().invoke(app, ['train', '--help']).exit_code == 0"
    assert modules_after(code, "dagster", *HEAVY) == []


def test_commands_that_are_printed_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BRAINMRI_CONFIG", raising=False)
    for label in ("glioma", "notumor"):
        (tmp_path / f"my images/{label}").mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / f"my images/{label}/1.png")
    said = [run("init", "my project").output, run("add-dataset", "a/b", "--archive", "my images").output]
    assert "cd 'my project' &&" in said[0] and "--dataset a/b --archive 'my images'" in said[1]


def test_every_command_can_show_the_traceback_of_an_error() -> None:
    without = [
        name
        for name, command in typer.main.get_command(app).commands.items()
        if "debug" not in {item.name for item in command.params}
    ]
    assert not without


def test_the_version_is_that_of_the_installed_package():
    assert run("--version").output == f"brainmri {version('brainmri')}\n"


def test_the_code_location_loads_nothing_heavy_and_warns_of_nothing():
    code = "import warnings; warnings.simplefilter('error')\nimport brainmri_dagster.code_location as d\n"
    assert modules_after(code + "d.defs.resolve_all_job_defs()", *HEAVY) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tune", "--study", "no-such-study"], "no-such-study"),
        (
            ["train", "-o", "train.optim.lrr=3"],
            "unknown key 'train.optim.lrr'; did you mean 'train.optim.lr'?",
        ),
        (["train", "-o", "train.optim.lr=11"], "'train.optim.lr': Input should be less than or equal to 10"),
        (["fetch", "--dataset", "brainmri/fantom"], "did you mean 'brainmri/phantom'?"),
        (["pipeline", "--skip", "sleep"], "'sleep' is not a stage; choose from fetch, split"),
        (["pipeline", "--resume-from", "evaluate", "--skip", "evaluate"], "No stage is left to run"),
        (["pipeline", "--run-id", "../x"], "run_id"),
        (["split", "--config", "absent.yaml"], "Cannot read the configuration absent.yaml"),
    ],
)
def test_a_mistake_ends_with_one_sentence_before_any_work(root, arguments, sentence):
    result = run(*arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (root / "outputs").exists()


def test_dry_run_writes_the_plan_and_does_nothing_else(root):
    result = run(
        "pipeline", "--dry-run", "--run-id", "plan-1", "--skip", "validate", "-o", "train.loop.epochs=3"
    )
    assert result.exit_code == 0, result.output
    plan = json.loads((root / "outputs/orchestrator/plan-1/plan.json").read_text())
    assert [item["stage"] for item in plan["stages"]] == ["fetch", "split", "resize", "train", "evaluate"]
    assert plan["stages"][3]["config"]["loop"]["epochs"] == 3
    assert plan["stages"][1]["config"]["seed"] == 42
    assert plan["dataset"] == "brainmri/phantom"
    assert "loop.epochs=3" in result.stdout
    manifest = json.loads((root / "outputs/orchestrator/plan-1/run_manifest.json").read_text())
    assert {item["status"] for item in manifest["stages"].values()} == {"planned"}
    assert not (root / "data").exists()


def test_resume_from_leaves_out_the_stages_before(root):
    assert run("pipeline", "--dry-run", "--run-id", "late", "--resume-from", "train").exit_code == 0
    plan = json.loads((root / "outputs/orchestrator/late/plan.json").read_text())
    assert [item["stage"] for item in plan["stages"]] == ["train", "evaluate"]


def test_the_example_configuration_is_planned_as_it_stands(root):
    example = ROOT / "tests/fixtures/spec_pipeline.yaml"
    result = run("pipeline", "--dry-run", "--config", str(example))
    assert result.exit_code == 0, result.output
    (plan,) = (json.loads(path.read_text()) for path in root.rglob("plan.json"))
    planned = {item["stage"]: item["config"] for item in plan["stages"]}
    for stage, block in yaml.safe_load(example.read_text()).items():
        for key, value in (block if stage in planned and isinstance(block, dict) else {}).items():
            if not isinstance(value, dict | list):
                assert planned[stage][key] == value, f"{stage}.{key}"


@pytest.mark.full
def test_class_folders_stand_in_where_there_is_no_pointer(root, monkeypatch):
    """Resized images exported as a tree train and are evaluated in a project that has nothing else."""
    small = ["fetch.phantom.subjects_per_class=5", "fetch.phantom.slices_per_subject=3", "resize.size=32"]
    small += ["fetch.phantom.copies_per_kind=1", "fetch.phantom.label_conflicts=0", "resize.export_tree=tree"]
    options = [part for item in small for part in ("-o", item)]
    for stage in ("fetch", "split", "resize"):
        assert run(stage, *options).exit_code == 0
    bare = root.with_name("bare")
    bare.mkdir()
    (root / "tree").rename(bare / "tree")
    monkeypatch.setenv(ROOT_VARIABLE, str(bare))
    lone = run("train", "-o", "train.data.train_in=absent")
    assert lone.exit_code == 5
    assert "or set train.data.train_in" in lone.stderr
    quick = [
        "train.data.train_in=tree/train",
        "train.data.image_size=32",
        "train.model.name=mobilenet_v3_small",
    ]
    quick += ["train.model.pretrained=false", "train.loop.epochs=1", "train.data.batch_size=8"]
    trained = run("train", *(part for item in quick for part in ("-o", item)))
    assert trained.exit_code == 0, trained.output
    quick = ["evaluate.data.eval_in=tree/test", "evaluate.bootstrap_resamples=100", "resize.size=32"]
    quick += ["evaluate.model.weights_path=models/other.pth"]
    evaluated = run("evaluate", *(part for item in quick for part in ("-o", item)))
    assert evaluated.exit_code == 0, evaluated.output
    assert "macro_f1" in evaluated.stdout
    assert "evaluate.model.weights_path is ignored: the data set has a checkpoint" in evaluated.stderr


def test_the_first_command_lays_out_the_whole_instance(root, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    assert run("pipeline", "--dry-run").exit_code == 0
    shipped = Path(brainmri_dagster.__file__).with_name("dagster.yaml")
    assert (root / ".dagster/dagster.yaml").read_bytes() == shipped.read_bytes()


def test_a_stage_without_its_upstream_says_what_is_missing_and_how_to_make_it(root):
    result = run("split", "--run-id", "lone")
    assert result.exit_code == 5
    assert (
        "brainmri: There is no fetched data set of brainmri/phantom yet; "
        "make it with `brainmri fetch --dataset brainmri/phantom`." in result.stderr
    )
    assert "Traceback" not in result.stderr
    manifest = json.loads((root / "outputs/orchestrator/lone/run_manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert manifest["stages"]["split"]["exit_code"] == 5
    again = run("split", "--run-id", "lone")
    assert again.exit_code == 2
    assert "The run id 'lone' is taken" in again.stderr


def test_a_dry_runs_id_is_free_for_the_run_it_planned(root):
    assert run("pipeline", "--dry-run", "--run-id", "x").exit_code == 0
    assert run("split", "--run-id", "x").exit_code == 5, "it ran, and failed for want of an upstream"


def test_a_configured_data_set_must_be_the_partition(root):
    result = run("split", "-o", "split.dataset=brainmri/phantom", "-o", "fetch.dataset=a/b")
    assert result.exit_code == 2
    assert "name different data sets" in result.stderr
