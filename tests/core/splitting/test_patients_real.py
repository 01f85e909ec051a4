"""No known patient on two sides of the real data sets, counted by other code than the split's; skipped where they are absent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

from brainmri_core.config.data import FetchConfig, SplitConfig
from brainmri_core.config.files import SHIPPED
from brainmri_core.copies.lookup import unit_vectors
from brainmri_core.evaluation.label_issues import known_error_ranks, label_issues
from brainmri_core.fetch import fetch
from brainmri_core.project.catalogue import DatasetEntry, load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import StageLog
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import FetchPointer
from brainmri_core.project.sample_table import read_samples
from brainmri_core.split import split
from brainmri_core.splitting.assignment import validation_mask
from brainmri_core.system.json_files import read_json
from tests import ROOT
from tests.conftest import REAL

pytestmark = pytest.mark.full

FIGSHARE = "figshare/1512427"
TABLES = SHIPPED / "patients"


@pytest.fixture(scope="module", params=[REAL, FIGSHARE])
def real(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Job, FetchPointer]]:
    key = request.param
    archive = request.getfixturevalue("real_archive")
    entry = load_catalogue().get(key)
    if key == FIGSHARE:
        archive = archive.with_name("figshare-1512427-jpg.zip")
        if not archive.is_file():
            pytest.skip(
                f"the Figshare slices as JPEG are absent: {archive.name} is not beside the Kaggle archive"
            )
        entry = entry or DatasetEntry(key=key, source="archive", patients="figshare-1512427")
    assert entry is not None
    job = Job(Layout(root=tmp_path_factory.mktemp("real")), "r1", entry, StageLog("test", "r1", key, []))
    yield job, write_pointer(job.layout, fetch(FetchConfig(archive=str(archive)), job))


def true_patients(key: str, paths: pd.Series) -> pd.Series:
    """Return who is on each image, read from the tables in a few lines of their own."""
    if key == FIGSHARE:
        table = pd.read_csv(TABLES / "figshare-1512427.csv", index_col="slice")["patient"]
        return paths.str.extract(r"(\d+)\.\w+$", expand=False).astype(int).map(table)
    return paths.map(pd.read_csv(TABLES / f"{key.replace('/', '__')}.csv", index_col="path")["patient"])


@pytest.mark.parametrize("strategy", ["pooled", "official"])
def test_no_known_patient_is_on_two_sides(real: tuple[Job, FetchPointer], strategy: Any) -> None:
    job, fetched = real
    if strategy == "official" and job.dataset == FIGSHARE:
        strategy = "all_train"  # it has no official folders; the folds must keep patients whole all the same
    run = Job(job.layout, strategy, job.entry, job.log)
    mapping = split(SplitConfig(seed=42, strategy=strategy), fetched, run)
    table = read_samples(job.layout.absolute(mapping.samples))
    table["true"] = true_patients(job.dataset, table["path"])
    table["validation"] = validation_mask(table, 0.2, 42)
    assert table["true"].notna().sum() == {REAL: 2345, FIGSHARE: 3064}[job.dataset]
    used = table[(table["split"] != "excluded") & table["true"].notna()]
    for place in ("split", "fold", "validation", "group"):
        assert used.groupby("true")[place].nunique().max() == 1, place
    assert (table["patient"].fillna("") == table["true"].fillna("")).all()
    record = read_json(job.layout.absolute(mapping.split_json))
    if strategy == "pooled":
        assert max(map(abs, record["test_share_deviation"].values())) < 0.01
        for label, part in table[table["fold"] >= 0].groupby("label"):
            assert part["fold"].value_counts(normalize=True).between(0.17, 0.23).all(), label
    wrong = table["path"].isin(record["label_corrections"])
    assert wrong.sum() == {REAL: 14, FIGSHARE: 0}[job.dataset]
    assert (table.loc[wrong, "split"] == "excluded").all()
    assert set(table.loc[wrong, "label"]) <= {"pituitary"}


def test_the_proxy_is_as_good_as_the_docs_say(real: tuple[Job, FetchPointer]) -> None:
    job, fetched = real
    own = Job(job.layout, "r2", job.entry, job.log)
    proxy = read_json(job.layout.absolute(split(SplitConfig(seed=42), fetched, own).split_json))["patients"][
        "proxy"
    ]
    text = " ".join((ROOT / "docs/data.md").read_text().split())
    precision, purity, recall = (f"{proxy[name]:.1%}" for name in ("precision", "purity", "recall"))
    if job.dataset == REAL:
        assert f"{precision} of the pairs of neighbours are of one patient and {purity} of the images" in text
        assert f"but only {recall} of all pairs of images of one patient" in text
    else:
        assert f"Figshare set the figures are {precision}, {purity} and {recall}." in text


def test_label_issues_find_the_labels_known_to_be_wrong(real: tuple[Job, FetchPointer]) -> None:
    """With the simplest of models, a vote of the 15 nearest images of other groups; benchmarks/bench_label_errors.py has more."""
    job, fetched = real
    if job.dataset != REAL:
        pytest.skip("only of the Kaggle set label errors are known")
    run = Job(job.layout, "errors", job.entry, job.log)
    mapping = split(SplitConfig(seed=42, corrections="ignore"), fetched, run)
    table = read_samples(job.layout.absolute(mapping.samples))
    known = read_json(job.layout.absolute(mapping.split_json))["label_corrections"]
    vectors = unit_vectors(np.load(job.layout.absolute(mapping.samples).with_name("thumbs.npy")))
    likeness = vectors @ vectors.T
    group = table["group"].to_numpy(object)
    likeness[group[:, None] == group] = -1
    nearest = np.argpartition(-likeness, 15, axis=1)[:, :15]
    votes = table["class_index"].to_numpy()[nearest]
    shares = np.stack([(votes == label).mean(axis=1) for label in range(4)], axis=1)
    used = (table["split"] != "excluded").to_numpy()
    issues = label_issues(table[used].reset_index(drop=True), shares[used], job.entry.classes)
    ranks = known_error_ranks(issues, {path: item["right"] for path, item in known.items()})
    assert len(ranks) == 14
    found = ranks.dropna(subset="rank")
    assert len(found) >= 12, "nearly all are disputed"
    assert found["rank"].median() < len(issues) / 2, "and higher than by chance"
    assert (found["suggested"] == found["right"]).mean() > 0.5
