from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from brainmri_core.config import STAGES, PipelineConfig, load_config
from brainmri_core.config.files import (
    CONFIG_VARIABLE,
    ROOT_VARIABLE,
    SHIPPED,
    default_config_path,
    user_configs,
)
from brainmri_core.new_project import new_project
from brainmri_core.project.catalogue import load_catalogue
from tests import ROOT

CONFIGS = SHIPPED
FILE_OF_STAGE = {name: CONFIGS / f"{'eval' if name == 'evaluate' else name}.yaml" for name in STAGES}


def test_the_documented_example_loads_verbatim():
    config = load_config(ROOT / "tests/fixtures/spec_pipeline.yaml")
    assert config.run_id == "bt-exp-001"
    assert config.dataset == "sartajbhuvaji/brain-tumor-classification-mri"
    assert config.train.loop.epochs == 20
    assert config.validate_.fail_on == "warning"
    assert config.split.exts == [".jpg", ".jpeg", ".png"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_file_says_what_the_pipelines_file_says(stage):
    whole = yaml.safe_load((CONFIGS / "pipeline.yaml").read_text())
    alone = yaml.safe_load(FILE_OF_STAGE[stage].read_text())
    assert list(alone) == [stage]
    assert alone[stage] == whole[stage]
    assert load_config(FILE_OF_STAGE[stage]).stage(stage) == load_config(CONFIGS / "pipeline.yaml").stage(
        stage
    )


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_file_loads(path):
    if path.name == "datasets.yaml":
        assert list(load_catalogue(path)) == [
            "brainmri/phantom",
            "brainmri/phantom-b",
            "sartajbhuvaji/brain-tumor-classification-mri",
            "masoudnickparvar/brain-tumor-mri-dataset",
            "figshare/1512427",
        ]
    else:
        assert isinstance(load_config(path), PipelineConfig)


def test_the_catalogue_canonises_class_folders():
    entry = load_catalogue(CONFIGS / "datasets.yaml")["sartajbhuvaji/brain-tumor-classification-mri"]
    found = ["glioma_tumor", "meningioma_tumor", "pituitary_tumor", "no_tumor"]
    assert [entry.canonical(name) for name in found] == entry.classes


def test_the_users_files_are_those_of_the_named_file_else_of_the_project_else_those_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "project"))
    assert user_configs() == tmp_path / "configs" and default_config_path() == SHIPPED / "pipeline.yaml"
    new_project(tmp_path / "project")
    assert default_config_path() == tmp_path / "project/configs/pipeline.yaml"
    monkeypatch.setenv(CONFIG_VARIABLE, "elsewhere/own.yaml")
    assert user_configs() == tmp_path / "elsewhere" and default_config_path().name == "own.yaml"
    monkeypatch.delenv(CONFIG_VARIABLE)
    monkeypatch.setenv(ROOT_VARIABLE, "s3://bucket/project")
    assert user_configs() == tmp_path / "configs"
