from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from brainmri_core.config import load_config
from brainmri_core.config.experiments import experiment_files
from brainmri_core.config.files import CONFIG_VARIABLE, SHIPPED
from brainmri_core.errors import ConfigError
from brainmri_core.fetch import fetch
from brainmri_core.new_project import new_project
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import Record, StageLog

PHANTOM = "brainmri/phantom"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    new_project(tmp_path / "new")
    monkeypatch.chdir(tmp_path / "new")
    return tmp_path / "new"


def test_a_new_project_holds_what_the_programs_look_for_and_changes_nothing(project: Path) -> None:
    names = {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}
    assert {
        "workspace.yaml",
        "pyproject.toml",
        "mri_project/definitions.py",
        ".gitignore",
        "README.md",
        "configs/datasets.yaml",
    } <= names
    assert load_config() == load_config(SHIPPED / "pipeline.yaml")
    assert list(load_catalogue()) == list(load_catalogue(SHIPPED / "datasets.yaml"))


def test_existing_files_are_kept(project: Path) -> None:
    (project / "README.md").write_text("mine")
    (project / "workspace.yaml").unlink()
    made = new_project(project)
    assert made.written == ["workspace.yaml"]
    assert "README.md" in made.kept
    assert (project / "README.md").read_text() == "mine"
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        new_project(project / "README.md")


def test_the_examples_in_comments_are_right(project: Path) -> None:
    catalogue = project / "configs/datasets.yaml"
    lines = catalogue.read_text().splitlines()
    start = lines.index("# datasets:")
    catalogue.write_text("\n".join(line.removeprefix("# ") for line in lines[start:]))
    assert load_catalogue()["clinic/brains"].canonical("GBM") == "glioma"
    example = project / "configs/experiments/label-smoothing.yaml.example"
    example.rename(example.with_suffix(""))
    assert set(experiment_files()) > {"label-smoothing", "from-scratch"}


def test_the_users_files_go_before_the_packages(project: Path) -> None:
    (project / "configs/pipeline.yaml").write_text("env: {seed: 7}\n")
    assert load_config().env.seed == 7
    assert load_config(Path("configs/demo.yaml")) == load_config(SHIPPED / "demo.yaml"), "not in this folder"
    (project / "configs/demo.yaml").write_text("env: {seed: 8}\n")
    assert load_config(Path("configs/demo.yaml")).env.seed == 8
    (project / "configs/experiments/from-scratch.yaml").write_text("env: {seed: 9}\n")
    assert yaml.safe_load(experiment_files()["from-scratch"].read_text()) == {"env": {"seed": 9}}
    with pytest.raises(ConfigError):
        load_config(Path("configs/../../secret.yaml"))


def test_a_users_entry_replaces_the_packages_and_fetch_says_so(project: Path) -> None:
    (project / "configs/datasets.yaml").write_text(
        f"datasets:\n  {PHANTOM}:\n    source: phantom\n    title: Mine\n"
        "    aliases: {glioma_tumor: glioma, meningioma_tumor: meningioma, pituitary_tumor: pituitary, no_tumor: notumor}\n"
    )
    entry = load_catalogue()[PHANTOM]
    assert entry.title == "Mine"
    assert "figshare/1512427" in load_catalogue()
    assert next(iter(load_catalogue())) == PHANTOM
    (project / "configs/datasets.yaml").write_text("datasets:\n  clinic/brains:\n    source: archive\n")
    assert next(iter(load_catalogue())) == "clinic/brains", "what a command takes that names no data set"
    (project / "configs/datasets.yaml").write_text(f"datasets:\n  {PHANTOM}: {{source: phantom}}\n")
    records: list[Record] = []
    config = load_config(Path("configs/demo.yaml"), ["fetch.phantom.subjects_per_class=2"])
    log = StageLog("fetch", "r1", PHANTOM, [records.append])
    fetch(config.stage("fetch"), Job(Layout(root=project), "r1", entry, log))  # type: ignore[arg-type]
    assert [item for item in records if "replaced by the user's" in item["event"]]
