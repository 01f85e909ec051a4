from __future__ import annotations

from pathlib import Path

import pytest

from brainmri_core.config.data import FetchConfig
from brainmri_core.errors import DataError
from brainmri_core.fetch import fetch
from brainmri_core.project.job import Job
from brainmri_core.project.sample_table import FETCH_COLUMNS, read_samples
from brainmri_core.sources.index import LEFT_OUT
from tests.cases.build import CASES
from tests.cases.case_run import own, write


@pytest.mark.parametrize("name", CASES)
def test_data_as_people_have_it_is_used_whole_or_named(name: str, tmp_path: Path, job: Job) -> None:
    case = CASES[name]()
    config = FetchConfig(archive=str(write(case, tmp_path)), subset=case.subset)
    if case.refusal:
        with pytest.raises(DataError) as caught:
            fetch(config, own(job, case))
        assert all(part in str(caught.value) for part in case.refusal), str(caught.value)
        return
    pointer = fetch(config, own(job, case))
    table = read_samples(job.layout.absolute(pointer.samples), FETCH_COLUMNS)
    left_out = read_samples(job.layout.absolute(pointer.samples).with_name(LEFT_OUT))
    assert table["origin"].value_counts().to_dict() == case.images
    assert left_out["kind"].value_counts().to_dict() == case.left_out == pointer.left_out
    assert pointer.n_files == len(table) + len(left_out)
    assert all(left_out["reason"]) and all(left_out["remedy"])
    assert {own(job, case).entry.canonical(label) for label in table["label"]} == set(case.classes)
    for path, size in zip(table["path"], table["bytes"], strict=True):
        assert (job.layout.absolute(pointer.dataset_root) / path).stat().st_size == size
