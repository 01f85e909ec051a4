from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from brainmri_core.config.data import FetchConfig, PhantomConfig, SplitConfig
from brainmri_core.copies import fingerprint_shards
from brainmri_core.copies.fingerprint import FingerprintTable, fingerprint_files
from brainmri_core.copies.leaks import find_leaks
from brainmri_core.errors import BrainMRIError, ConfigError, DataError, IntegrityError
from brainmri_core.fetch import fetch
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import Record, StageLog
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import FetchPointer, MappingPointer
from brainmri_core.project.sample_table import FETCH_COLUMNS, read_samples, write_samples
from brainmri_core.sources.phantom import PhantomTruth, read_truth
from brainmri_core.split import OFFICIAL_COPY, split
from brainmri_core.splitting.assignment import validation_mask
from brainmri_core.system.json_files import read_json
from tests.core.split_case import picture, small_set
from tests.counts import trials
from tests.security.corpus import PATIENT, encoded, personal_jpeg

KEY = "brainmri/phantom"
SMALL = PhantomConfig(subjects_per_class=8, slices_per_subject=4, copies_per_kind=6, label_conflicts=5)
SCRIPT = """
import sys
from pathlib import Path
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.config.data import SplitConfig
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import StageLog
from brainmri_core.project.pointers import FetchPointer
from brainmri_core.project.pointer_store import latest_pointer
from brainmri_core.split import OFFICIAL_COPY, split
layout = Layout(root=Path(sys.argv[1]))
job = Job(layout, "other-process", load_catalogue()["brainmri/phantom"], StageLog("split", "x", "x", []))
print(split(SplitConfig(seed=42), latest_pointer(layout, FetchPointer, job.dataset), job).content_hash)
"""


@dataclass(frozen=True)
class Project:
    """A project with the fetched synthetic data set, and its fingerprints by path."""

    layout: Layout
    fetched: FetchPointer
    truth: PhantomTruth
    prints: FingerprintTable
    row: dict[str, int]

    def look_up(self, root: Path, paths: Sequence[str], **_: Any) -> FingerprintTable:
        """Return what `fingerprint_files` returned for these paths."""
        rows = [self.row[path] for path in paths]
        known = self.prints
        return FingerprintTable(
            [known.pixel_sha256[row] for row in rows],
            known.colourfulness[rows],
            known.hashes[rows],
            known.trimmed_hashes[rows],
            known.thumbs[rows],
            known.trimmed_thumbs[rows],
            {},
            [known.depths[row] for row in rows],
        )

    def of(self, paths: Sequence[str]) -> FetchPointer:
        """Point to a sample table of some of the images, in the order given."""
        table = read_samples(self.layout.absolute(self.fetched.samples)).set_index("path", drop=False)
        file = self.layout.root / f"part-{len(list(self.layout.root.iterdir()))}.parquet"
        write_samples(file, table.loc[list(paths)].reset_index(drop=True)[list(FETCH_COLUMNS)])
        return self.fetched.model_copy(update={"samples": self.layout.relative(file)})

    def split(
        self, config: SplitConfig, fetched: FetchPointer | None = None, log: list[Record] | None = None
    ) -> tuple[MappingPointer, pd.DataFrame]:
        """Split in a run of its own."""
        folder = self.layout.mapping_dir(KEY, "x").parent
        run_id = f"r{len(list(folder.iterdir())) if folder.is_dir() else 0}"
        sinks = [log.append] if log is not None else []
        job = Job(self.layout, run_id, load_catalogue()[KEY], StageLog("split", run_id, KEY, sinks))
        pointer = split(config, fetched or self.fetched, job)
        return pointer, read_samples(self.layout.absolute(pointer.samples))

    def record(self, pointer: MappingPointer) -> dict[str, Any]:
        return read_json(self.layout.absolute(pointer.split_json))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Project:
    layout = Layout(root=tmp_path_factory.mktemp("phantom"))
    job = Job(layout, "r0", load_catalogue()[KEY], StageLog("fetch", "r0", KEY, []))
    fetched = write_pointer(layout, fetch(FetchConfig(phantom=SMALL), job))
    root = layout.absolute(fetched.dataset_root)
    paths = read_samples(layout.absolute(fetched.samples))["path"].tolist()
    prints = fingerprint_files(root, paths)
    return Project(layout, fetched, read_truth(root), prints, {path: n for n, path in enumerate(paths)})


@pytest.fixture
def project(phantom: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """The project; each image is decoded once for the module, not once for every split."""
    monkeypatch.setattr(fingerprint_shards, "fingerprint_files", phantom.look_up)
    yield phantom


many = settings(
    max_examples=trials(3, 8), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
configs = st.builds(
    SplitConfig,
    seed=st.integers(0, 2**32 - 1),
    test_frac=st.floats(0.1, 0.6),
    folds=st.integers(2, 6),
    strategy=st.sampled_from(["pooled", "official"]),
    group_by=st.sampled_from(["auto", "patient", "near_duplicate", "exact", "subject"]),
    conflicts=st.sampled_from(["exclude", "keep"]),
)


@many
@given(configs)
def test_no_group_is_on_two_sides_nor_in_two_folds(project: Project, config: SplitConfig) -> None:
    _, table = project.split(config)
    used = table[table["split"] != "excluded"]
    val = validation_mask(used.reset_index(drop=True), 0.2, config.seed or 0)
    side = np.where(val, "validation", used["split"])
    assert pd.Series(side, used.index).groupby(used["group"]).nunique().max() == 1
    train = used[used["split"] == "train"]
    assert train.groupby("group")["fold"].nunique().max() == 1
    assert set(train["fold"]) <= set(range(config.folds))
    assert set(used["split"]) == {"train", "test"}
    assert (table.loc[table["split"] != "train", "fold"] == -1).all()
    assert (table.loc[table["split"] == "excluded", "reason"] != "").all()


@many
@given(configs.filter(lambda config: config.group_by != "exact"))
def test_no_confirmed_copy_is_across(project: Project, config: SplitConfig) -> None:
    pointer, table = project.split(config)
    copies = read_samples(project.layout.absolute(pointer.samples).with_name("copies.parquet"))
    side = table["split"].to_numpy(object)
    assert find_leaks(table, copies, side == "train", side == "test").empty
    place = dict(zip(table["path"], zip(table["split"], table["fold"], strict=True), strict=True))
    planted = [
        {place[image.path], place[image.copy_of]}
        for image in project.truth.images
        if image.copy_of is not None and image.path in place and image.copy_of in place
    ]
    apart = [
        places for places in planted if len(places) > 1 and "excluded" not in {side for side, _ in places}
    ]
    assert len(planted) > 30
    assert apart == [], "by the truth of the planted copies, not by what the search found"


@pytest.mark.full
@many
@given(configs, st.randoms(use_true_random=False))
def test_order_of_the_files_does_not_matter(project: Project, config: SplitConfig, random: Any) -> None:
    paths = list(project.row)
    random.shuffle(paths)
    assert project.split(config, project.of(paths))[0].content_hash == project.split(config)[0].content_hash


@pytest.mark.full
def test_another_process_and_another_seed(phantom: Project, project: Project) -> None:
    ours = project.split(SplitConfig(seed=42))[0].content_hash
    command = [sys.executable, "-c", SCRIPT, str(phantom.layout.root)]
    environment = {**os.environ, "PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"}
    theirs = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert theirs.stdout.strip() == ours
    assert project.split(SplitConfig(seed=43))[0].content_hash != ours


@many
@given(st.integers(0, 2**32 - 1), st.floats(0.15, 0.5))
def test_class_proportions_are_met_within_one_group_and_reported(
    project: Project, seed: int, frac: float
) -> None:
    pointer, table = project.split(SplitConfig(seed=seed, test_frac=frac))
    record = project.record(pointer)
    used = table[table["split"] != "excluded"]
    for label, part in used.groupby("label"):
        share = (part["split"] == "test").mean()
        assert abs(share - frac) * len(part) <= max(part["group"].value_counts().max(), 1)
        assert record["test_share"][label] == pytest.approx(share, abs=1e-4)
        assert record["test_share_deviation"][label] == pytest.approx(share - frac, abs=1e-4)
    assert record["counts"] == pointer.counts
    assert record["largest_group"] == used["group"].value_counts().max()


@pytest.mark.full
@many
@given(
    st.integers(0, 2**32 - 1),
    st.sets(st.integers(0, 150), max_size=5),
    st.sampled_from(["auto", "near_duplicate"]),
)
def test_added_images_move_few_and_what_moved_is_said(
    project: Project, seed: int, missing: set[int], group_by: Any
) -> None:
    config = SplitConfig(seed=seed, group_by=group_by)
    kept = [path for number, path in enumerate(project.row) if number not in missing]
    before_pointer, before = project.split(config, project.of(kept))
    write_pointer(project.layout, before_pointer)
    pointer, after = project.split(config)
    now = after.set_index("path")
    moved, refolded = {}, {}
    for path, side, fold in zip(before["path"], before["split"], before["fold"], strict=True):
        if side != now.loc[path, "split"]:
            moved[path] = f"{side} to {now.loc[path, 'split']}"
        elif fold != now.loc[path, "fold"]:
            refolded[path] = f"fold {fold} to fold {now.loc[path, 'fold']}"
    assert project.record(pointer)["moved_since_previous_split"] == moved | refolded
    # an added copy may rename its group or bring a conflict to light, and each class's cut may shift by a group
    in_a_group = 4 if group_by == "near_duplicate" else 2 * int(after["group"].value_counts().iloc[0])
    assert len(moved) <= in_a_group * len(missing)
    assert len(refolded) == 0 or missing


@pytest.mark.full
@many
@given(configs)
def test_a_split_is_replayed_exactly_from_its_csv(project: Project, config: SplitConfig) -> None:
    """Whatever it was made of, as long as a group is the same thing in both."""
    pointer, table = project.split(config)
    csv = project.layout.absolute(pointer.samples).with_name("split.csv")
    replayed, again = project.split(
        config.model_copy(update={"strategy": "predefined", "predefined_csv": str(csv)})
    )
    columns = ["path", "split", "group", "fold"]
    pd.testing.assert_frame_equal(again[columns], table[columns])
    assert replayed.content_hash == pointer.content_hash


def test_official_folders_keep_their_sides_and_lose_the_training_copies(project: Project) -> None:
    _, table = project.split(SplitConfig(seed=1, strategy="official"))
    used = table[table["split"] != "excluded"]
    assert (used["split"] == used["origin"].map({"training": "train", "testing": "test"})).all()
    dropped = table[table["reason"].str.endswith("is in the official test folder")]
    tested = set(table.loc[table["split"] == "test", "group"])
    training = table[table["origin"] == "training"]
    expected = training[
        training["group"].isin(tested) & (training["reason"] != "a copy carries another label")
    ]
    assert dropped["path"].tolist() == expected["path"].tolist()
    planted = [image for image in project.truth.images if image.copy_kind == "exact" and not image.conflict]
    across = {
        path
        for image in planted
        for path, other in ((image.path, image.copy_of), (image.copy_of, image.path))
        if path and other and path.startswith("Training") and other.startswith("Testing")
    }
    assert across
    copies = dropped[dropped["reason"] == OFFICIAL_COPY]
    assert across <= set(copies["path"])
    # the others only belong to a run of neighbours that has such a copy
    _, by_copies = project.split(SplitConfig(seed=1, strategy="official", group_by="near_duplicate"))
    assert copies["path"].tolist() == by_copies.loc[by_copies["reason"] == OFFICIAL_COPY, "path"].tolist()
    assert set(dropped["path"]) > set(copies["path"])


def test_official_copies_can_be_kept_and_are_marked(project: Project) -> None:
    _, dropped = project.split(SplitConfig(seed=1, strategy="official"))
    pointer, table = project.split(SplitConfig(seed=1, strategy="official", official_copies="keep"))
    marked = table[table["reason"].str.endswith("is in the official test folder")]
    assert (marked["split"] == "train").all()
    assert marked[["path", "reason"]].equals(dropped.loc[marked.index, ["path", "reason"]])
    assert set(marked["reason"]) == set(dropped["reason"]) - {"", "a copy carries another label"}
    copies = read_samples(project.layout.absolute(pointer.samples).with_name("copies.parquet"))
    side = table["split"].to_numpy(object)
    leaks = find_leaks(table, copies, side == "train", side == "test")
    assert set(table["path"].to_numpy()[leaks["train"]]) <= set(marked["path"])
    assert len(leaks)


@pytest.mark.parametrize("policy", ["exclude", "keep", "fail"])
def test_copies_with_different_labels_follow_the_policy(project: Project, policy: Any) -> None:
    conflicting = {
        path
        for image in project.truth.images
        if image.conflict
        for path in (image.path, image.copy_of)
        if path is not None
    }
    config = SplitConfig(seed=1, conflicts=policy)
    if policy == "fail":
        with pytest.raises(
            DataError, match=r"copies that carry different labels, the first T\w+ing/.*set split.conflicts"
        ):
            project.split(config)
        return
    log: list[Record] = []
    pointer, table = project.split(config, log=log)
    assert set(project.record(pointer)["label_conflicts"]) == conflicting
    named = table[table["path"].isin(conflicting)]
    if policy == "exclude":
        assert (named["split"] == "excluded").all()
        assert (named["reason"] == "a copy carries another label").all()
    else:
        assert (named["split"] != "excluded").all()
        assert (named["reason"] == "kept although a copy carries another label").all()
    assert [item["images"] for item in log if item["event"] == "copies with different labels"] == [
        len(conflicting)
    ]


def test_other_extensions_than_the_configured_are_left_out_with_the_reason(project: Project) -> None:
    _, table = project.split(SplitConfig(seed=1, exts=[".jpg"]))
    assert not (table["reason"] == "extension not in split.exts").any()
    with pytest.raises(DataError, match=r"holds no readable image \(extension not in split.exts\)"):
        project.split(SplitConfig(seed=1, exts=[".png"]))


def test_what_a_group_is_follows_the_config(project: Project) -> None:
    groups = {}
    for group_by in ("none", "exact", "near_duplicate", "subject"):
        _, table = project.split(SplitConfig(seed=1, group_by=group_by, conflicts="keep"))
        groups[group_by] = table["group"].nunique()
    assert groups["none"] == len(project.row)
    assert (
        groups["exact"] == len(set(project.prints.pixel_sha256)) == len(project.row) - SMALL.copies_per_kind
    )
    assert groups["subject"] < groups["near_duplicate"] < groups["exact"]


def test_slices_of_one_subject_stay_together_by_the_proxy(project: Project) -> None:
    """The proxy joins neighbouring numbers that look alike: a subject falls into fewer groups, and few groups mix two."""
    _, table = project.split(SplitConfig(seed=1, group_by="subject", conflicts="keep"))
    subject = {image.path: image.subject for image in project.truth.images}
    named = table.assign(subject=table["path"].map(subject))
    originals = {image.path for image in project.truth.images if image.copy_of is None}
    named = named[named["path"].isin(originals)]
    whole = named.groupby("subject")["group"].nunique()
    assert (whole == 1).mean() >= 0.2
    assert whole.mean() < SMALL.slices_per_subject - 1
    mixed = named.groupby("group")["subject"].nunique()
    assert (mixed > 1).mean() < 0.1
    assert mixed.max() <= 2


def rows_of(project: Project) -> pd.DataFrame:
    _, table = project.split(SplitConfig(seed=3))
    return table[["path", "split"]]


def write_csv(project: Project, table: pd.DataFrame, name: str) -> SplitConfig:
    path = project.layout.root / name
    table.to_csv(path, index=False)
    return SplitConfig(seed=3, strategy="predefined", predefined_csv=name)


def test_given_groups_are_joined_with_the_copies_found(project: Project) -> None:
    _, table = project.split(SplitConfig(seed=3, group_by="patient"))
    given = table[["path", "split"]].assign(group="")
    train = np.flatnonzero(table["split"] == "train")[:3]
    given.loc[train, "group"] = "patient 1"
    _, found = project.split(write_csv(project, given, "patients.csv"))
    assert found["group"].iloc[train].nunique() == 1
    others = ~table["group"].isin(set(table["group"].iloc[train]))
    assert (found["group"][others] == table["group"][others]).all(), "a blank group joins nothing"


@pytest.mark.parametrize(("mark", "first"), [(",", ""), (";", ""), (";", "sep=;\n"), ("\t", "")])
def test_a_predefined_split_is_read_as_spreadsheets_write_it(project: Project, mark: str, first: str) -> None:
    given = rows_of(project)
    text = "\ufeff" + first + given.to_csv(index=False, sep=mark, lineterminator="\r\n")
    (project.layout.root / "sheet.csv").write_bytes(text.encode())
    _, found = project.split(SplitConfig(seed=3, strategy="predefined", predefined_csv="sheet.csv"))
    assert found["split"].tolist() == given["split"].tolist()


def test_paths_of_a_predefined_split_may_be_spelt_as_another_system_does(project: Project) -> None:
    given = rows_of(project)
    _, expected = project.split(write_csv(project, given, "here.csv"))
    given["path"] = " " + given["path"].str.replace("/", "\\").str.upper() + " "
    given["split"] = given["split"].str.upper() + " "
    _, found = project.split(write_csv(project, given.rename(columns={"path": "path "}), "there.csv"))
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda t: pd.concat([t, t.iloc[:1].assign(path="Training/gone.jpg")]),
            r"names 'Training/gone\.jpg', which",
        ),
        (lambda t: t.iloc[2:], r"leaves out 'T.*\(2 such\)"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "twice; keep one row"),
        (lambda t: t.assign(split="valid"), "uses the split 'valid'; write one of train, test, excluded"),
        (lambda t: t.assign(group="all"), "puts one group on two sides: 'T.*' in train and 'T.*' in test"),
        (lambda t: t.rename(columns={"split": "side"}), "lacks the column 'split'"),
    ],
    ids=["unknown", "missing", "twice", "word", "straddling", "column"],
)
def test_a_predefined_split_that_does_not_fit_is_refused(
    project: Project, change: Any, sentence: str
) -> None:
    config = write_csv(project, change(rows_of(project)), "bad.csv")
    folder = project.layout.mapping_dir(KEY, "x").parent
    before = sorted(folder.iterdir())
    with pytest.raises(BrainMRIError, match=sentence) as caught:
        project.split(config)
    assert "\n" not in str(caught.value)
    assert "bad.csv" in str(caught.value)
    assert sorted(folder.iterdir()) == before


def test_copies_on_two_sides_of_a_predefined_split_are_refused_by_name(project: Project) -> None:
    table = rows_of(project).set_index("path")
    image = next(
        item
        for item in project.truth.images
        if item.copy_kind == "exact" and table.loc[item.path, "split"] == "train"
    )
    table.loc[image.path, "split"] = "test"
    config = write_csv(project, table.reset_index(), "straddling.csv")
    with pytest.raises(DataError) as caught:
        project.split(config)
    assert repr(image.path) in str(caught.value)
    assert repr(image.copy_of) in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00\x01\x9f", b'path,split\n"a'])
def test_an_unreadable_csv_is_one_sentence(project: Project, content: bytes | None) -> None:
    config = SplitConfig(seed=1, strategy="predefined", predefined_csv="broken.csv")
    path = project.layout.root / "broken.csv"
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BrainMRIError, match=r"broken\.csv") as caught:
        project.split(config)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="name the CSV file"):
        project.split(SplitConfig(seed=1, strategy="predefined"))


@pytest.mark.parametrize("frac", [0.0, 1.0, -0.2, 7.0, float("nan")])
def test_fractions_outside_of_0_and_1_are_refused(frac: float) -> None:
    with pytest.raises(ValidationError, match="test_frac"):
        SplitConfig(test_frac=frac)


def two_classes(n: int = 6) -> dict[str, Image.Image | bytes]:
    return {
        f"{label}/{number}.png": picture(number + 100 * k)
        for k, label in enumerate(("glioma", "notumor"))
        for number in range(n)
    }


def test_hostile_sizes_are_excluded_by_name_and_the_rest_goes_on(job: Job) -> None:
    images = two_classes()
    images["glioma/dot.png"] = Image.new("L", (1, 1))
    images["glioma/wide.png"] = Image.new("L", (20_000, 3))
    images["notumor/text.png"] = b"this is no image"
    pointer = split(SplitConfig(seed=1), small_set(job, images), job)
    table = read_samples(job.layout.absolute(pointer.samples)).set_index("path")
    out = table[table["split"] == "excluded"]
    assert sorted(out.index) == ["glioma/dot.png", "glioma/wide.png", "notumor/text.png"]
    assert "glioma/dot.png is 1 x 1 pixels" in out.loc["glioma/dot.png", "reason"]
    assert "glioma/wide.png is 20000 x 3 pixels" in out.loc["glioma/wide.png", "reason"]
    assert "notumor/text.png" in out.loc["notumor/text.png", "reason"]
    assert (table["split"] != "excluded").sum() == 12


def near(seed: int, shift: int) -> Image.Image:
    """A copy of `picture(seed)` that is not pixel-identical."""
    return picture(seed).point(lambda value: min(255, value + shift))


@pytest.mark.full
@pytest.mark.parametrize(
    ("extra", "config", "sentence"),
    [
        (
            {f"meningioma/{n}.png": near(900, n) for n in range(4)},
            {},
            "class 'meningioma' of brainmri/phantom lives in one group, so it cannot be on both sides",
        ),
        ({f"glioma/copy{n}.png": picture(0) for n in range(60)}, {}, "One group holds 61 of the 72 images"),
        ({"meningioma/1.png": picture(900)}, {}, "class 'meningioma' of brainmri/phantom has a single image"),
        (
            {"meningioma/1.png": b"x", "meningioma/2.png": b"y"},
            {},
            "class folder 'meningioma' of brainmri/phantom holds no readable image",
        ),
        (
            {"odd_name/1.png": picture(901)},
            {},
            r"folder 'odd_name' of brainmri/phantom \(1 image\) is none of the classes glioma",
        ),
        ({}, {"strategy": "official"}, "has no Training and Testing folders"),
    ],
    ids=["one-group", "large-group", "single", "unreadable", "unknown-class", "no-official"],
)
def test_data_that_cannot_be_split_is_refused_and_nothing_is_lost(
    job: Job, extra: dict[str, Image.Image | bytes], config: dict[str, Any], sentence: str
) -> None:
    good = replace(job, run_id="good")
    kept = write_pointer(job.layout, split(SplitConfig(seed=1), small_set(good, two_classes()), good))
    fetched = small_set(job, {**two_classes(), **extra})
    with pytest.raises(DataError, match=sentence) as caught:
        split(SplitConfig(seed=1, **config), fetched, job)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in job.layout.mapping_dir(KEY, "x").parent.iterdir()) == ["good"]
    assert job.layout.absolute(kept.samples).is_file()


@pytest.mark.full
def test_a_label_conflict_among_very_many_copies_is_found(job: Job) -> None:
    """Of more than 64 identical images not every pair is listed; all are separated by label all the same."""
    images = two_classes(30)
    for n in range(70):
        images[f"notumor/same{n:03}.png"] = picture(500)
    images["glioma/zzz.png"] = picture(500)
    pointer = split(SplitConfig(seed=1), small_set(job, images), job)
    table = read_samples(job.layout.absolute(pointer.samples))
    assert (table["split"] == "excluded").sum() == 71


@pytest.mark.full
def test_a_label_conflict_between_very_many_copies_and_very_many_near_copies_is_found(job: Job) -> None:
    """Of near copies between large groups one pair is listed; every member is in conflict all the same."""
    images = two_classes(30)
    brighter = Image.fromarray((np.asarray(picture(500)) * 0.8).astype(np.uint8))
    for n in range(9):
        images[f"notumor/same{n}.png"] = picture(500)
        images[f"glioma/like{n}.png"] = brighter
    log: list[Record] = []
    table = read_samples(
        job.layout.absolute(
            split(
                SplitConfig(seed=1),
                small_set(job, images),
                replace(job, log=StageLog("split", "r", KEY, [log.append])),
            ).samples
        )
    )
    excluded = table.loc[table["split"] == "excluded", "path"]
    assert sorted(excluded) == sorted(path for path in images if "same" in path or "like" in path)
    assert [item["images"] for item in log if item["event"] == "copies with different labels"] == [18]


def test_a_group_that_fits_on_the_test_side_alone_is_taken(job: Job) -> None:
    images: dict[str, Image.Image | bytes] = {**two_classes(4)}
    images |= {f"glioma/same{n}.png": picture(500) for n in range(10)}
    pointer = split(SplitConfig(seed=1, test_frac=0.7), small_set(job, images), job)
    assert sum(pointer.counts["test"].values()) >= 10


def test_the_export_carries_pixels_only_and_is_no_link_to_the_data(job: Job) -> None:
    images = two_classes()
    images["glioma/named.jpg"] = personal_jpeg(picture(700))
    images["glioma/plain.jpg"] = plain = encoded(picture(701), "JPEG")
    fetched = small_set(job, images)
    split(SplitConfig(seed=1, dest="data/tree"), fetched, job)
    exported = {file.name: file for file in (job.layout.root / "data/tree").rglob("*.??g")}
    assert len(exported) == len(images)
    assert all(PATIENT.encode() not in file.read_bytes() for file in exported.values())
    original = job.layout.absolute(fetched.dataset_root) / "glioma/named.jpg"
    with Image.open(exported["glioma__named.jpg.png"]) as ours, Image.open(original) as theirs:
        assert not ours.info
        np.testing.assert_allclose(
            np.asarray(ours.convert("L"), int), np.asarray(theirs.convert("L"), int), atol=2
        )
    assert exported["glioma__plain.jpg"].read_bytes() == plain
    exported["glioma__plain.jpg"].write_bytes(b"edited")
    assert (job.layout.absolute(fetched.dataset_root) / "glioma/plain.jpg").read_bytes() == plain


def test_every_exported_image_has_a_name_of_its_own(job: Job) -> None:
    """Joined parts may read the same, become the same with .png behind, or be too long."""
    images = two_classes()
    like = ["a/b.png", "a__b.png", "d.jpg", "d.jpg.png", f"{'e' * 200}/{'f' * 200}.png"]
    images |= {f"glioma/{name}": personal_jpeg(picture(900 + n)) for n, name in enumerate(like)}
    pointer = split(SplitConfig(seed=1, dest="data/tree"), small_set(job, images), job)
    table = read_samples(job.layout.absolute(pointer.samples))
    names = [path.name.casefold() for path in (job.layout.root / "data/tree").rglob("*.??g")]
    assert len(names) == len(set(names)) == (table["split"] != "excluded").sum()


def test_an_image_that_changed_since_it_was_fetched_is_not_exported(job: Job) -> None:
    fetched = small_set(job, two_classes())
    file = job.layout.absolute(fetched.dataset_root) / "glioma/3.png"
    file.chmod(0o644)
    picture(77).save(file)
    with pytest.raises(IntegrityError, match=r"glioma/3\.png was changed after it was fetched"):
        split(SplitConfig(seed=1, dest="data/tree"), fetched, job)
    assert not (job.layout.root / "data/tree").exists()


@pytest.mark.full
def test_export_is_a_class_folder_tree_that_is_replaced_but_nothing_else(job: Job) -> None:
    fetched = small_set(job, two_classes())
    pointer = split(SplitConfig(seed=1, dest="data/tree"), fetched, job)
    table = read_samples(job.layout.absolute(pointer.samples))
    dest = job.layout.root / "data/tree"
    expected = {
        f"{side}/{label}/{path.replace('/', '__')}"
        for path, side, label in zip(table["path"], table["split"], table["label"], strict=True)
    }
    assert {file.relative_to(dest).as_posix() for file in dest.rglob("*.png")} == expected
    second = replace(job, run_id="r2")
    with pytest.raises(ConfigError, match="clear_dest"):
        split(SplitConfig(seed=2, dest="data/tree", clear_dest=False), fetched, second)
    third = replace(job, run_id="r3")
    split(SplitConfig(seed=2, dest="data/tree"), fetched, third)
    assert {file.relative_to(dest).as_posix() for file in dest.rglob("*.png")} != expected
    foreign = job.layout.root / "data/mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an export"):
        split(SplitConfig(seed=1, dest="data/mine"), fetched, replace(job, run_id="r4"))
    assert (foreign / "thesis.txt").read_text() == "mine"
