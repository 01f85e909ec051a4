"""A validation folder that the data set brings."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from brainmri_core.config.data import FetchConfig, SplitConfig
from brainmri_core.errors import DataError
from brainmri_core.fetch import fetch
from brainmri_core.project.job import Job
from brainmri_core.project.sample_table import read_samples
from brainmri_core.split import split
from brainmri_core.splitting.assignment import validation_mask
from tests.cases.build import Case, class_tree, three_way
from tests.cases.case_run import own, write


def divided(case: Case, config: SplitConfig, folder: Path, job: Job) -> pd.DataFrame:
    fetched = fetch(FetchConfig(archive=str(write(case, folder))), own(job, case))
    return read_samples(job.layout.absolute(split(config, fetched, own(job, case)).samples))


def test_official_keeps_a_given_validation_side_as_the_one_of_training(tmp_path: Path, job: Job) -> None:
    table = divided(three_way(), SplitConfig(seed=1, strategy="official"), tmp_path, job)
    assert table.groupby("origin")["split"].unique().map(list).to_dict() == {
        "testing": ["test"],
        "training": ["train"],
        "validation": ["train"],
    }
    for seed in (1, 2):
        assert (validation_mask(table, 0.2, seed) == (table["origin"] == "validation")).all()
    assert (table["fold"][table["origin"] != "training"] == -1).all()
    assert (table["fold"][table["origin"] == "training"] >= 0).all()


def test_pooled_pools_a_given_validation_side(tmp_path: Path, job: Job) -> None:
    table = divided(three_way(), SplitConfig(seed=1), tmp_path, job)
    assert set(table["split"][table["origin"] == "validation"]) == {"train", "test"}
    assert (validation_mask(table, 0.3, 1) != (table["origin"] == "validation")).any()


def test_training_loses_its_copies_of_a_given_validation_side(tmp_path: Path, job: Job) -> None:
    case = three_way()
    case.files["train/glioma/copy.jpg"] = case.files["val/glioma/i0.jpg"]
    case.files["val/notumor/copy.jpg"] = case.files["test/notumor/i0.jpg"]
    table = divided(case, SplitConfig(seed=1, strategy="official"), tmp_path, job).set_index("path")
    assert table.loc["train/glioma/copy.jpg", "split"] == "excluded"
    assert "official validation folder" in table.loc["train/glioma/copy.jpg", "reason"]
    assert table.loc["val/glioma/i0.jpg", ["split", "fold"]].tolist() == ["train", -1]
    assert table.loc["val/notumor/copy.jpg", "split"] == "excluded"
    assert "official test folder" in table.loc["val/notumor/copy.jpg", "reason"]


def test_a_class_that_exclusions_empty_is_refused_by_the_split(tmp_path: Path, job: Job) -> None:
    case = Case(class_tree("train/", seed=1) | class_tree("test/", seed=2))
    for number in range(3):
        case.files[f"train/glioma/i{number}.jpg"] = case.files[f"test/glioma/i{number}.jpg"]
    with pytest.raises(DataError, match=r"All 3 training images of the class 'glioma' .* left out \(3 x "):
        divided(case, SplitConfig(seed=1, strategy="official"), tmp_path, job)
