"""The second site of the synthetic data: what it shares with the first one is what was planted, and its look differs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainmri_core.config import load_config
from brainmri_core.config.data import FetchConfig, PhantomConfig, SplitConfig
from brainmri_core.fetch import fetch
from brainmri_core.overlap import Overlap, find_overlap
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import StageLog
from brainmri_core.project.pointer_store import latest_pointer, write_pointer
from brainmri_core.project.pointers import FetchPointer
from brainmri_core.sources.phantom import PhantomTruth, read_truth, write_phantom
from brainmri_core.sources.second_site import CLASS_MIX, write_second_site
from brainmri_core.split import split

pytestmark = pytest.mark.training  # fetches and splits both sites

FIRST, SECOND = "brainmri/phantom", "brainmri/phantom-b"
SMALL = PhantomConfig(subjects_per_class=6, slices_per_subject=3, copies_per_kind=2, label_conflicts=1)


@dataclass(frozen=True)
class Sites:
    """Both sites, fetched and split, with every patient known."""

    layout: Layout
    first: PhantomTruth
    second: PhantomTruth

    def folder(self, key: str) -> Path:
        fetched = latest_pointer(self.layout, FetchPointer, key)
        assert fetched is not None
        return self.layout.absolute(fetched.dataset_root)

    def overlap(self) -> Overlap:
        catalogue = load_catalogue()
        return find_overlap(self.layout, catalogue[FIRST], catalogue[SECOND], load_config())


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sites:
    layout = Layout(root=tmp_path_factory.mktemp("sites"))
    truths = []
    for key in (FIRST, SECOND):
        job = Job(layout, "r1", load_catalogue()[key], StageLog("test", "r1", key, []))
        fetched = write_pointer(layout, fetch(FetchConfig(phantom=SMALL), job))
        truth = read_truth(layout.absolute(fetched.dataset_root))
        rows = [f"{image.path},{image.subject}" for image in truth.images]
        (layout.root / "patients.csv").write_text("\n".join(["path,patient", *rows]))
        write_pointer(layout, split(SplitConfig(seed=42, patients_csv="patients.csv"), fetched, job))
        truths.append(truth)
    return Sites(layout, *truths)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_seed_gives_the_same_bytes_and_leaves_the_first_site_as_it_is(tmp_path: Path) -> None:
    tiny = SMALL.model_copy(update={"subjects_per_class": 3, "slices_per_subject": 2})
    other = tiny.second_site.model_copy(update={"shared_subjects": 0, "copies_per_kind": 1})
    changed = tiny.model_copy(update={"second_site": other})
    for name, config in (("one", tiny), ("again", tiny), ("changed", changed)):
        write_second_site(tmp_path / name, config)
    for name, config in (("first-one", tiny), ("first-changed", changed)):
        write_phantom(tmp_path / name, config)
    assert content(tmp_path / "one") == content(tmp_path / "again") != content(tmp_path / "changed")
    assert content(tmp_path / "first-one") == content(tmp_path / "first-changed")
    assert "elsewhere" not in (tmp_path / "first-one/truth/truth.json").read_text()


def test_the_truth_lists_every_image_and_who_was_at_both_sites(sites: Sites) -> None:
    folder = sites.folder(SECOND)
    assert [image.path for image in sites.second.images] == sorted(
        str(path.relative_to(folder)) for path in folder.glob("*/*.jpg")
    )
    drawn = [image for image in sites.second.images if image.mask is not None]
    assert all((folder / str(image.mask)).is_file() for image in drawn) and len(drawn) > 30
    planted = {copy.path for copy in sites.second.elsewhere}
    at_first = {image.subject for image in sites.first.images}
    own = {image.subject: image.label for image in sites.second.images if image.path not in planted}
    shared = {name: label for name, label in own.items() if name in at_first}
    assert sorted(shared.values()) == sorted(2 * list(CLASS_MIX))
    alone = [label for name, label in own.items() if name not in at_first]
    assert {label: alone.count(label) for label in CLASS_MIX} == {
        "glioma": 3, "meningioma": 6, "pituitary": 2, "notumor": 4,
    }  # fmt: skip


def test_the_overlap_is_what_was_planted_and_nothing_else(sites: Sites) -> None:
    found = sites.overlap()
    second = {image.path: image for image in sites.second.images}
    # a copy has the planted copies of its original at the first site as copies, too
    family = {image.path: image.copy_of or image.path for image in sites.first.images}
    expected = {
        (path, copy.path)
        for copy in sites.second.elsewhere
        for path in family
        if family[path] == family[copy.original]
    }
    assert set(zip(found.pairs["path_a"], found.pairs["path_b"], strict=True)) == expected
    pair = found.pairs.set_index(["path_a", "path_b"])
    for copy in sites.second.elsewhere:
        row = pair.loc[(copy.original, copy.path)]
        assert row["kind"] == {"reencoded": "re-encoded"}.get(copy.kind, copy.kind)
        assert row["orientation"] == copy.orientation
        assert row["same_class"] == (not second[copy.path].conflict)
    total = found.counts.sum()
    wanted = SMALL.second_site
    assert total[["images", "exact", "turned", "re-encoded", "other class"]].tolist() == [
        len(second), wanted.copies_per_kind, wanted.copies_per_kind, wanted.copies_per_kind + wanted.label_conflicts,
        wanted.label_conflicts,
    ]  # fmt: skip
    assert len({copy.orientation for copy in sites.second.elsewhere}) == 8


def test_patients_at_both_sites_are_found_by_their_keyed_names(sites: Sites) -> None:
    found = sites.overlap()
    at_first = {image.subject for image in sites.first.images}
    there = [image for image in sites.second.images if image.subject in at_first]
    assert found.patients == len({image.subject for image in there}) > 8
    assert found.counts["patient in A"].sum() == len(there)
    assert "glioma-" not in found.pairs.to_csv()


def background(folder: Path, truth: PhantomTruth, planted: set[str]) -> np.ndarray:
    """The mean gray level in a corner, where there is only noise, of each image that was measured at this site."""
    levels = []
    for image in truth.images:
        if image.path not in planted and image.copy_of is None:
            with Image.open(folder / image.path) as picture:
                levels.append(np.asarray(picture.convert("L"), np.float64)[4:20, 4:20].mean())
    return np.array(levels)


def test_the_second_scanner_can_be_told_from_the_first(sites: Sites) -> None:
    planted = {copy.path for copy in sites.second.elsewhere}
    one = background(sites.folder(FIRST), sites.first, set())
    other = background(sites.folder(SECOND), sites.second, planted)
    assert (one[:, None] < other).mean() > 0.9, "AUROC of the noise alone"
    marked = []
    for image in sites.second.images:
        with Image.open(sites.folder(SECOND) / image.path) as picture:
            ruler = np.asarray(picture.convert("L"), np.float64)[-8]
        marked.append(ruler[len(ruler) // 3 : len(ruler) // 2].mean() > 200)
    assert 0.4 < np.mean(marked) < 0.75
