from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from brainmri_core.config.data import FetchConfig, ResizeConfig, SplitConfig, ValidateConfig
from brainmri_core.copies.likeness import ORIENTATIONS, correlation, orientation_words, turned, turned_back
from brainmri_core.errors import ConfigError, IntegrityError, MissingUpstreamError, StorageError
from brainmri_core.fetch import fetch
from brainmri_core.project.catalogue import CLASSES
from brainmri_core.project.job import Job
from brainmri_core.project.logs import Record
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import MappingPointer, PackPointer
from brainmri_core.project.sample_table import write_samples
from brainmri_core.resize import resize
from brainmri_core.split import split
from brainmri_core.system.json_files import write_json
from brainmri_core.validate import validate
from brainmri_core.validation.finding import Finding
from brainmri_core.validation.findings import BLOCKING_CHECKS, CHECKS
from brainmri_core.validation.report import ValidationReport, failure_sentence, load_report
from tests.security.corpus import personal_jpeg

SIDE = 48
SPLIT_RECORD: dict[str, Any] = {
    "config": {
        "strategy": "pooled",
        "group_by": "exact",
        "seed": 3,
        "test_frac": 0.25,
        "copies": {"ncc_threshold": 0.9},
    },
    "groups": 48,
    "largest_group": 1,
    "moved_since_previous_split": {"train/glioma/1.jpg": "train to test", "a/2.jpg": "fold 0 to fold 1"},
    "test_share": {"glioma": 0.25},
}
PER_CLASS = 12


def clean_samples() -> pd.DataFrame:
    """A set without a flaw: four classes, three quarters in training, one group an image."""
    n = PER_CLASS * len(CLASSES)
    index = np.arange(n) % len(CLASSES)
    rng = np.random.default_rng(0)
    path = [f"Training/{CLASSES[c]}/{i:03d}.jpg" for i, c in enumerate(index)]
    return pd.DataFrame(
        {
            "path": path,
            "label": [CLASSES[c] for c in index],
            "origin": np.where(np.arange(n) < 36, "training", "testing"),
            "bytes": rng.integers(9_000, 11_000, n),
            "file_sha256": [f"{i:064x}" for i in range(n)],
            "found_label": [CLASSES[c] for c in index],
            "class_index": index,
            "pixel_sha256": [f"{i:064x}" for i in range(n)],
            "phash": np.arange(n, dtype=np.uint64),
            "phash_mirrored": np.arange(n, dtype=np.uint64),
            "group": [f"g{i}" for i in range(n)],
            "split": np.where(np.arange(n) < 36, "train", "test").astype(object),
            "fold": np.where(np.arange(n) < 36, np.arange(n) % 3, -1),
            "reason": "",
            "row": np.arange(n),
            "width": 512,
            "height": 512,
            "mode": "L",
            "mean": 90.0,
            "std": 40.0,
            "colourfulness": 0.0,
            "has_metadata": False,
        }
    )


def no_copies() -> pd.DataFrame:
    return copies_of()


def copies_of(*rows: tuple[str, str, bool, bool]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "path_a": pd.Series([row[0] for row in rows], dtype=str),
            "path_b": pd.Series([row[1] for row in rows], dtype=str),
            "ncc": np.full(len(rows), 0.99),
            "orientation": pd.Series(["identity"] * len(rows), dtype=str),
            "exact": np.array([row[2] for row in rows], bool),
            "same_label": np.array([row[3] for row in rows], bool),
        }
    )


def stored_pack(
    job: Job,
    samples: pd.DataFrame,
    copies: pd.DataFrame | None = None,
    *,
    mapped: pd.DataFrame | None = None,
    with_search: bool = True,
    record: dict[str, Any] | None = None,
    **changes: Any,
) -> PackPointer:
    """Write a mapping and a pack of noise images as split and resize would."""
    layout = job.layout
    rng = np.random.default_rng(7)
    folder = layout.mapping_dir(job.dataset, job.run_id)
    write_samples(folder / "samples.parquet", samples if mapped is None else mapped)
    write_json(folder / "index_remap.json", {})
    if with_search:
        write_json(folder / "split.json", record or SPLIT_RECORD)
        np.save(folder / "thumbs.npy", rng.integers(0, 256, (len(samples), 64, 64), dtype=np.uint8))
        write_samples(folder / "copies.parquet", no_copies() if copies is None else copies)
    mapping = write_pointer(
        layout,
        MappingPointer(
            dataset=job.dataset,
            run_id=job.run_id,
            content_hash="0" * 64,
            classes=list(CLASSES),
            num_classes=len(CLASSES),
            index_remap=None,
            path=layout.relative(folder / "index_remap.json"),
            written_at_utc="2026-01-01T00:00:00Z",
            samples=layout.relative(folder / "samples.parquet"),
            dataset_root="data",
            split_json=layout.relative(folder / "split.json"),
            fetch_pointer=None,
            counts={},
        ),
    )
    packed = layout.pack_dir("data/training_resized", job.dataset, job.run_id)
    write_samples(packed / "samples.parquet", samples)
    n = int((samples["row"] >= 0).sum())
    np.save(packed / "pack.npy", rng.integers(0, 60, (n, SIDE, SIDE), dtype=np.uint8))
    values: dict[str, Any] = {
        "dataset": job.dataset,
        "run_id": job.run_id,
        "content_hash": "1" * 64,
        "written_at_utc": "2026-01-01T00:00:00Z",
        "pack": layout.relative(packed / "pack.npy"),
        "pack_sha256": "2" * 64,
        "samples": layout.relative(packed / "samples.parquet"),
        "size": SIDE,
        "channels": 1,
        "n_images": n,
        "mapping_pointer": mapping.pointer_path,
        "classes": list(CLASSES),
        "fit": "letterbox",
    }
    return write_pointer(layout, PackPointer(**{**values, **changes}))


def check(
    job: Job,
    samples: pd.DataFrame,
    copies: pd.DataFrame | None = None,
    config: ValidateConfig | None = None,
    **changes: Any,
) -> ValidationReport:
    pointer = validate(config or ValidateConfig(), stored_pack(job, samples, copies, **changes), job)
    report = load_report(job.layout, pointer)
    assert pointer.passed == report.passed
    assert pointer.severities == report.severities
    return report


def only(report: ValidationReport) -> Finding:
    assert len(report.findings) == 1, report.findings
    return report.findings[0]


def test_a_flawless_set_passes_without_a_finding(job: Job) -> None:
    report = check(job, clean_samples())
    assert report.findings == []
    assert report.passed
    assert report.checks == list(CHECKS)
    assert report.counts["train"] == dict.fromkeys(CLASSES, 9)
    assert failure_sentence(report) == "The validation of brainmri/phantom passed."


def test_the_report_lies_where_the_pointer_says(job: Job) -> None:
    pointer = write_pointer(job.layout, validate(ValidateConfig(), stored_pack(job, clean_samples()), job))
    path = job.layout.absolute(pointer.report)
    assert sorted(file.name for file in path.parent.iterdir()) == ["leak.json", "report.html", "report.json"]
    document = json.loads(path.read_text())
    assert document["leak"]["rows"][0]["split"] == "this split"
    assert "gallery" not in document["leak"]


@pytest.mark.full
def test_the_content_hash_is_of_the_findings_not_of_the_run(job: Job) -> None:
    first = validate(ValidateConfig(), stored_pack(job, clean_samples()), job)
    again = Job(job.layout, "r2", job.entry, job.log)
    second = validate(ValidateConfig(), stored_pack(again, clean_samples()), again)
    flawed = Job(job.layout, "r3", job.entry, job.log)
    third = validate(ValidateConfig(min_file_bytes=10_000), stored_pack(flawed, clean_samples()), flawed)
    assert first.content_hash == second.content_hash
    assert first.content_hash != third.content_hash


@pytest.mark.parametrize(
    ("column", "value", "name"),
    [
        ("bytes", 500, "small_file"),
        ("std", 1.0, "blank"),
        ("mean", 0.5, "blank"),
        ("mean", 254.5, "blank"),
        ("width", 1500, "not_mri_like"),
        ("width", 100, "not_mri_like"),
        ("colourfulness", 40.0, "not_mri_like"),
        ("has_metadata", True, "embedded_metadata"),
    ],
)
def test_one_odd_image_is_named(job: Job, column: str, value: object, name: str) -> None:
    samples = clean_samples()
    samples.loc[5, column] = value
    finding = only(check(job, samples))
    assert (finding.check, finding.severity, finding.count) == (name, "warning", 1)
    assert finding.files == [samples["path"][5]]
    assert finding.message.startswith("1 image ")


def test_thresholds_come_from_the_config(job: Job) -> None:
    samples = clean_samples()
    samples.loc[5, "bytes"], samples.loc[6, "std"] = 500, 1.0
    assert check(job, samples, config=ValidateConfig(min_file_bytes=400, warn_low_std=0.5)).findings == []


def test_writing_in_the_pack_is_found(job: Job) -> None:
    pointer = stored_pack(job, clean_samples())
    path = job.layout.absolute(pointer.pack)
    pixels = np.zeros((PER_CLASS * len(CLASSES), SIDE, SIDE), np.uint8)
    pixels[:, 20:40, 20:40] = np.random.default_rng(0).integers(
        60, 200, (len(pixels), 20, 20), dtype=np.uint8
    )
    for row in (1, 5):
        for column in range(1, 13, 3):
            pixels[7, row : row + 3, column] = 255
    np.save(path, pixels)
    finding = only(load_report(job.layout, validate(ValidateConfig(), pointer, job)))
    assert finding.check == "burnt_in"
    assert finding.files == [clean_samples()["path"][7]]
    assert "1 with writing in a corner" in finding.message


def test_unreadable_images_are_reported_with_the_reason(job: Job) -> None:
    samples = clean_samples()
    samples.loc[47, ["split", "reason", "pixel_sha256"]] = ["excluded", "unreadable: truncated file", ""]
    samples.loc[47, "row"] = -1
    report = check(job, samples)
    finding = only(report)
    assert (finding.check, finding.severity, finding.files) == (
        "unreadable",
        "warning",
        [samples["path"][47]],
    )
    assert "truncated file" in finding.message
    assert report.excluded == {"unreadable: truncated file": 1}
    assert report.passed


def test_a_wrong_size_is_an_error(job: Job) -> None:
    report = check(job, clean_samples(), config=ValidateConfig(size=224))
    finding = only(report)
    assert (finding.check, finding.severity, finding.count) == ("wrong_size", "error", 48)
    assert not report.passed


def test_copies_on_one_side_are_a_note(job: Job) -> None:
    samples = clean_samples()
    samples.loc[4, "group"] = samples["group"][0]
    copies = copies_of((samples["path"][0], samples["path"][4], False, True))
    report = check(job, samples, copies)
    finding = only(report)
    assert (finding.check, finding.severity, finding.count) == ("duplicates", "info", 2)
    assert finding.files == [samples["path"][0], samples["path"][4]]
    assert report.passed


def test_dup_check_off_leaves_out_the_duplicates_only(job: Job) -> None:
    samples = clean_samples()
    copies = copies_of((samples["path"][0], samples["path"][44], False, True))
    report = check(job, samples, copies, ValidateConfig(dup_check=False))
    assert only(report).check == "leak"
    assert "duplicates" not in report.checks


@pytest.mark.parametrize("kind", ["exact", "near copy", "same group"])
@pytest.mark.parametrize("fail_on", ["error", "never"])
def test_a_leak_blocks_whatever_fail_on_says(job: Job, kind: str, fail_on: str) -> None:
    samples = clean_samples()
    copies = no_copies()
    if kind == "exact":
        samples.loc[44, "pixel_sha256"] = samples["pixel_sha256"][0]
    elif kind == "near copy":
        copies = copies_of((samples["path"][0], samples["path"][44], False, True))
    else:
        samples.loc[44, "group"] = samples["group"][0]
    report = check(job, samples, copies, ValidateConfig.model_validate({"fail_on": fail_on}))
    finding = report.finding("leak")
    assert finding is not None
    assert (finding.severity, finding.blocking, finding.count) == ("error", True, 1)
    assert finding.files == [samples["path"][0], samples["path"][44]]
    assert not report.passed
    assert "leak: 1 test image is tied to training images" in failure_sentence(report)
    assert report.leak.gallery[0].kind == kind
    assert report.leak.gallery[0].test_path == samples["path"][44]


@pytest.mark.parametrize("fail_on", ["error", "never"])
def test_a_patient_on_both_sides_blocks_whatever_fail_on_says(job: Job, fail_on: str) -> None:
    samples = clean_samples()
    samples["patient"] = None
    samples.loc[[0, 4, 44], "patient"] = "hashed:5ec2e7"
    report = check(job, samples, config=ValidateConfig.model_validate({"fail_on": fail_on}))
    finding = only(report)
    assert (finding.check, finding.blocking, finding.count) == ("patient_leak", True, 1)
    assert finding.files == [samples["path"][0], samples["path"][44]]
    assert "1 test image shows a patient who is in training, too" in finding.message
    assert "5ec2e7" not in report.model_dump_json()
    assert not report.passed
    assert report.leak.row("this split").patients == 1
    assert report.leak.row("this split").known_patients == 1
    assert report.leak.gallery[0].kind == "same patient"


@pytest.mark.full
def test_a_patient_on_one_side_is_no_finding(job: Job) -> None:
    samples = clean_samples()
    samples["patient"] = None
    samples.loc[[0, 4], "patient"] = "p001"
    assert check(job, samples).findings == []


@pytest.mark.full
def test_an_excluded_copy_is_no_leak(job: Job) -> None:
    samples = clean_samples()
    samples.loc[44, ["split", "reason", "pixel_sha256"]] = ["excluded", "copy", samples["pixel_sha256"][0]]
    assert check(job, samples).finding("leak") is None


@pytest.mark.full
def test_label_conflicts_warn_only_while_in_use(job: Job) -> None:
    samples = clean_samples()
    samples.loc[1, "group"] = samples["group"][0]
    copies = copies_of((samples["path"][0], samples["path"][1], False, False))
    assert only(check(job, samples, copies)).severity == "warning"
    samples.loc[[0, 1], "split"] = "excluded"
    samples.loc[[0, 1], "reason"] = "label conflict"
    other = Job(job.layout, "r2", job.entry, job.log)
    finding = only(check(other, samples, copies))
    assert (finding.check, finding.severity, finding.count) == ("label_conflicts", "info", 2)


def test_a_chained_group_is_reported(job: Job) -> None:
    samples = clean_samples()
    samples.loc[:10, "group"] = "chain"
    finding = only(check(job, samples))
    assert (finding.check, finding.count) == ("large_group", 11)


def test_imbalance_and_missing_classes(job: Job) -> None:
    samples = clean_samples()
    rare = samples.index[samples["label"] == "notumor"][1:]
    samples = samples.drop(rare).reset_index(drop=True)
    samples["row"] = np.arange(len(samples))
    report = check(job, samples)
    assert {item.check for item in report.findings} == {
        "class_imbalance",
        "class_missing_from_split",
        "class_missing_from_fold",
    }
    missing = report.finding("class_missing_from_split")
    assert missing is not None
    assert missing.message.startswith("No image of notumor in test")
    assert missing.severity == "error"
    assert [score.reason for score in report.shortcuts] == ["the class notumor has a single group"] * 2


def test_a_fold_without_a_class_is_named(job: Job) -> None:
    samples = clean_samples()
    samples.loc[(samples["fold"] == 2) & (samples["label"] == "notumor"), "fold"] = 1
    finding = only(check(job, samples))
    assert (finding.check, finding.severity, finding.count) == ("class_missing_from_fold", "warning", 1)
    assert finding.message.startswith("No image of notumor in fold 2: ")


@pytest.mark.full
def test_a_class_far_from_its_share_is_named(job: Job) -> None:
    near = SPLIT_RECORD | {"test_share_deviation": {"glioma": 0.04, "notumor": -0.02}}
    assert check(job, clean_samples(), record=near).findings == []
    far = SPLIT_RECORD | {"test_share_deviation": {"glioma": 0.15, "notumor": -0.02}}
    other = Job(job.layout, "r2", job.entry, job.log)
    finding = only(check(other, clean_samples(), record=far))
    assert (finding.check, finding.severity, finding.count) == ("class_shares", "warning", 1)
    assert "40% of glioma, but split.test_frac asks for 25%" in finding.message


@pytest.mark.full
def test_a_copy_that_the_search_missed_blocks(job: Job) -> None:
    samples = clean_samples()
    pointer = stored_pack(job, samples)
    path = job.layout.mapping_dir(job.dataset, job.run_id) / "thumbs.npy"
    thumbs = np.load(path)
    thumbs[44] = thumbs[0]
    np.save(path, thumbs)
    report = load_report(job.layout, validate(ValidateConfig(fail_on="never"), pointer, job))
    finding = only(report)
    assert (finding.check, report.passed) == ("unlisted_copies", False)
    assert finding.files == sorted([samples["path"][0], samples["path"][44]])


@pytest.mark.parametrize(
    ("orientations", "turn", "advice"),
    [
        ("identity", 1, "set split.copies.orientations to all"),
        ("mirror", 1, "raise split.copies.hash_radius"),
        ("mirror", 3, "set split.copies.orientations to all"),
        ("all", 5, "raise split.copies.hash_radius"),
    ],
)
def test_a_turned_copy_counts_whatever_the_search_was_told(
    job: Job, orientations: str, turn: int, advice: str
) -> None:
    config = SPLIT_RECORD["config"] | {"copies": {"ncc_threshold": 0.9, "orientations": orientations}}
    samples = clean_samples()
    pointer = stored_pack(job, samples, record=SPLIT_RECORD | {"config": config})
    path = job.layout.mapping_dir(job.dataset, job.run_id) / "thumbs.npy"
    thumbs = np.load(path)
    thumbs[44] = turned(thumbs[:1], turned_back(turn))[0]
    np.save(path, thumbs)
    report = load_report(job.layout, validate(ValidateConfig(fail_on="never"), pointer, job))
    finding = only(report)
    assert (finding.check, finding.count, finding.blocking) == ("unlisted_copies", 1, True)
    assert finding.files == sorted([samples["path"][0], samples["path"][44]])
    words = f"{samples['path'][44]} is {samples['path'][0]} {orientation_words(ORIENTATIONS[turn])}, with"
    assert words in finding.message
    assert advice in finding.message
    assert "hash_radius" not in finding.message or "orientations to all" not in finding.message


@pytest.mark.full
def test_a_neighbouring_slice_that_correlates_like_a_copy_is_none(job: Job) -> None:
    pointer = stored_pack(job, clean_samples())
    path = job.layout.mapping_dir(job.dataset, job.run_id) / "thumbs.npy"
    thumbs = np.load(path)
    y, x = np.mgrid[:64, :64] / 32 - 1
    rng = np.random.default_rng(4)
    tissue = [np.kron(rng.integers(0, 40, (16, 16)), np.ones((4, 4))) for _ in range(2)]
    thumbs[0], thumbs[44] = (
        np.where(np.hypot(x, y) < 0.9, 150 + part, 0).astype(np.uint8) for part in tissue
    )
    assert correlation(thumbs[:1], thumbs[44:45])[0] > 0.98
    np.save(path, thumbs)
    assert load_report(job.layout, validate(ValidateConfig(), pointer, job)).findings == []


def test_a_lost_table_of_copies_is_no_split_without_copies(job: Job) -> None:
    pointer = stored_pack(job, clean_samples())
    (job.layout.mapping_dir(job.dataset, job.run_id) / "copies.parquet").unlink()
    with pytest.raises(IntegrityError, match=r"copies\.parquet is missing; run its stage again"):
        validate(ValidateConfig(), pointer, job)


@pytest.mark.full
def test_label_conflicts_of_copies_that_are_not_all_listed_are_in_use(job: Job) -> None:
    """One pair of two groups of identical images is listed; it is excluded, and the others still contradict each other."""
    samples = clean_samples()
    same, like = (
        samples.index[samples["label"] == "glioma"][:3],
        samples.index[samples["label"] == "notumor"][:3],
    )
    samples.loc[same, "pixel_sha256"], samples.loc[like, "pixel_sha256"] = "a" * 64, "b" * 64
    samples.loc[[*same, *like], ["group", "split", "fold"]] = ["g", "train", 0]
    copies = copies_of((samples["path"][same[0]], samples["path"][like[0]], False, False))
    samples.loc[[same[0], like[0]], ["split", "reason", "fold"]] = ["excluded", "label conflict", -1]
    finding = check(job, samples, copies).finding("label_conflicts")
    assert finding is not None
    assert (finding.severity, finding.count) == ("warning", 6)
    assert "4 of them are still in use" in finding.message


def test_a_tree_without_a_test_side_is_noted(job: Job) -> None:
    samples = clean_samples().assign(split="train")
    report = check(job, samples, with_search=False)
    finding = only(report)
    assert (finding.check, finding.severity) == ("class_missing_from_split", "info")
    assert finding.message.startswith("All images are on the train side")
    assert report.passed
    assert report.leak.row("this split").reason == "there are no training or no test images"


def test_other_classes_than_the_mapping_block(job: Job) -> None:
    report = check(
        job, clean_samples(), classes=list(reversed(CLASSES)), config=ValidateConfig(fail_on="never")
    )
    finding = report.finding("class_set_mismatch")
    assert finding is not None
    assert finding.blocking
    assert not report.passed


def test_images_on_another_side_than_in_the_mapping_block(job: Job) -> None:
    mapped = clean_samples()
    samples = mapped.copy()
    samples.loc[3, "split"] = "test"
    finding = only(check(job, samples, mapped=mapped))
    assert (finding.check, finding.files) == ("class_set_mismatch", [samples["path"][3]])


def test_a_shortcut_through_the_file_size_warns(job: Job) -> None:
    samples = clean_samples()
    samples.loc[samples["label"] == "notumor", ["width", "height"]] = 236
    report = check(job, samples)
    finding = only(report)
    assert (finding.check, finding.severity) == ("shortcuts", "warning")
    assert "notumor (AUROC 1.000)" in finding.message


@pytest.mark.parametrize(("fail_on", "passed"), [("error", True), ("warning", False), ("never", True)])
def test_fail_on_a_warning(job: Job, fail_on: str, passed: bool) -> None:
    samples = clean_samples()
    samples.loc[0, "bytes"] = 10
    report = check(job, samples, config=ValidateConfig.model_validate({"fail_on": fail_on}))
    assert report.passed is passed
    if not passed:
        sentence = failure_sentence(report)
        assert "small_file: 1 image is smaller than 1024 bytes" in sentence
        assert "relax validate.fail_on, now 'warning'" in sentence


def test_findings_are_logged_by_severity(job: Job, records: list[Record]) -> None:
    samples = clean_samples()
    samples.loc[0, "bytes"] = 10
    check(job, samples)
    found = [record for record in records if record.get("check") == "small_file"]
    assert [(record["level"], record["count"]) for record in found] == [("WARNING", 1)]


@pytest.mark.full
def test_the_page_is_self_contained_and_escaped(job: Job) -> None:
    samples = clean_samples()
    hostile = 'Training/glioma/<img src="https://example.org/x" onerror=alert(1)>.jpg'
    samples.loc[0, "path"] = hostile
    samples.loc[0, "bytes"] = 10
    pointer = validate(ValidateConfig(), stored_pack(job, samples), job)
    page = job.layout.absolute(pointer.report).with_name("report.html").read_text()
    assert '<img src="https' not in page
    assert "&lt;img src=&#34;https://example.org/x&#34; onerror=alert(1)&gt;.jpg" in page
    assert re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,)[^"]*"', page) == []
    assert "<script" not in page
    assert page.count('src="data:image/jpeg;base64,') >= 1
    assert "not a medical device" in page


@pytest.mark.full
def test_the_page_says_how_the_split_was_made(job: Job) -> None:
    pointer = validate(ValidateConfig(), stored_pack(job, clean_samples()), job)
    assert load_report(job.layout, pointer).split["group_by"] == "exact"
    page = " ".join(job.layout.absolute(pointer.report).with_name("report.html").read_text().split())
    assert "Split: pooled, whole groups by exact, seed 3; 48 groups, the largest of 1 images." in page
    assert "Share in test: glioma 25.0%. 1 image changed sides since the split before, 1 the fold;" in page


def test_long_lists_of_files_are_cut_in_the_page_only(job: Job) -> None:
    pointer = validate(ValidateConfig(min_file_bytes=20_000), stored_pack(job, clean_samples()), job)
    report = load_report(job.layout, pointer)
    page = job.layout.absolute(pointer.report).with_name("report.html").read_text()
    assert len(only(report).files) == 48
    assert page.count('<li class="path">') == 20
    assert "and 28 more" in page


def test_a_pack_without_a_search_for_copies_is_checked_all_the_same(job: Job) -> None:
    samples = clean_samples()
    samples.loc[44, "pixel_sha256"] = samples["pixel_sha256"][0]
    report = check(job, samples, with_search=False)
    leak = report.finding("leak")
    assert leak is not None
    assert leak.count == 1
    assert report.leak.row("this split").accuracy is not None


def test_a_copy_missed_by_the_search_warns(job: Job) -> None:
    pack = stored_pack(job, clean_samples())
    path = job.layout.mapping_dir(job.dataset, job.run_id) / "thumbs.npy"
    thumbs = np.load(path)
    fresh = np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8)
    # correlation .99, the threshold on record is .9
    thumbs[40] = (0.9 * thumbs[3] + 0.1 * fresh).astype(np.uint8)
    np.save(path, thumbs)
    finding = only(load_report(job.layout, validate(ValidateConfig(), pack, job)))
    paths = clean_samples()["path"]
    assert (finding.check, finding.files) == ("unlisted_copies", sorted([paths[3], paths[40]]))


@pytest.mark.full
def test_configured_mapping_pointer(job: Job) -> None:
    pack = stored_pack(job, clean_samples())
    folder = f"outputs/pointers/mapping/{job.dataset}"
    assert validate(ValidateConfig(mapping_pointer=folder), pack, job).passed
    with pytest.raises(MissingUpstreamError, match=r"validate\.mapping_pointer names .*nowhere"):
        validate(ValidateConfig(mapping_pointer="outputs/nowhere"), pack, job)
    latest = job.layout.pointer_dir("mapping", job.dataset) / "latest.json"
    other = json.loads(latest.read_text()) | {"dataset": "some/other"}
    write_json(job.layout.root / "other.json", other)
    with pytest.raises(
        ConfigError, match="of the data set some/other, but this run is about brainmri/phantom"
    ):
        validate(ValidateConfig(mapping_pointer="other.json"), pack, job)


def test_damaged_inputs_are_named(job: Job) -> None:
    samples = clean_samples()
    samples.loc[1, "row"] = 0
    with pytest.raises(IntegrityError, match="do not number the 48 images"):
        validate(ValidateConfig(), stored_pack(job, samples), job)
    other = Job(job.layout, "r2", job.entry, job.log)
    pack = stored_pack(other, clean_samples())
    np.save(job.layout.mapping_dir(job.dataset, "r2") / "thumbs.npy", np.zeros((3, 64, 64), np.uint8))
    with pytest.raises(IntegrityError, match=r"thumbs.npy hold uint8 \(3, 64, 64\) for 48 images"):
        validate(ValidateConfig(), pack, other)


@pytest.mark.full
def test_a_finished_report_is_never_overwritten(job: Job) -> None:
    pack = stored_pack(job, clean_samples())
    pointer = validate(ValidateConfig(), pack, job)
    before = job.layout.absolute(pointer.report).read_bytes()
    with pytest.raises(StorageError, match="never overwritten"):
        validate(ValidateConfig(min_file_bytes=20_000), pack, job)
    assert job.layout.absolute(pointer.report).read_bytes() == before


@pytest.mark.full
def test_a_damaged_report_is_refused(job: Job) -> None:
    pointer = validate(ValidateConfig(), stored_pack(job, clean_samples()), job)
    path = job.layout.absolute(pointer.report)
    document = json.loads(path.read_text())
    del document["passed"]
    path.write_text(json.dumps(document))
    with pytest.raises(IntegrityError, match="'passed'"):
        load_report(job.layout, pointer)


def test_blocking_checks_are_checks() -> None:
    assert set(BLOCKING_CHECKS) <= set(CHECKS)


def textured(seed: int) -> Image.Image:
    """Something bright on black, unlike any other seed's."""
    rng = np.random.default_rng(seed)
    inside = Image.fromarray(rng.integers(60, 220, (8, 8), np.uint8)).resize(
        (48, 48), Image.Resampling.BICUBIC
    )
    image = Image.new("L", (96, 96))
    image.paste(inside, (24, 24))
    return image


@pytest.mark.full
def test_flaws_of_real_files_are_found_on_the_way_through_the_stages(job: Job) -> None:
    """A colour photograph, a screenshot, a file that names a patient, and blank images of a shape that gets a border."""
    tree = job.layout.root.parent / "tree"
    for label in CLASSES:
        (tree / label).mkdir(parents=True)
        for number in range(8):
            textured(CLASSES.index(label) * 100 + number).save(tree / label / f"{number}.png")
    rng = np.random.default_rng(1)
    photograph = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((320, 240))
    photograph.save(tree / "glioma/photo.jpg")
    screenshot = Image.new("RGB", (400, 150), "white")
    screenshot.paste(textured(901).convert("RGB"), (20, 20))
    screenshot.save(tree / "glioma/screenshot.png")
    (tree / "pituitary/named.jpg").write_bytes(personal_jpeg(textured(902)))
    Image.new("L", (120, 70), 130).save(tree / "notumor/flat.png")
    Image.new("L", (60, 110), 255).save(tree / "notumor/white.jpg")
    (tree / "meningioma/cut.png").write_bytes((tree / "meningioma/0.png").read_bytes()[:200])
    fetched = write_pointer(job.layout, fetch(FetchConfig(archive=str(tree)), job))
    mapping = write_pointer(job.layout, split(SplitConfig(seed=1), fetched, job))
    pack = write_pointer(job.layout, resize(ResizeConfig(size=64), mapping, job))
    report = load_report(job.layout, validate(ValidateConfig(min_file_bytes=0), pack, job))
    found = {item.check: sorted(item.files) for item in report.findings}
    assert found["not_mri_like"] == ["glioma/photo.jpg", "glioma/screenshot.png"]
    assert found["embedded_metadata"] == ["pituitary/named.jpg"]
    assert found["blank"] == ["notumor/flat.png", "notumor/white.jpg"]
    assert found["unreadable"] == ["meningioma/cut.png"]
    assert report.passed


def test_an_image_that_is_gone_between_split_and_resize_is_named(job: Job) -> None:
    tree = job.layout.root.parent / "tree"
    for label in CLASSES:
        (tree / label).mkdir(parents=True)
        for number in range(4):
            textured(CLASSES.index(label) * 100 + number).save(tree / label / f"{number}.png")
    fetched = write_pointer(job.layout, fetch(FetchConfig(archive=str(tree)), job))
    mapping = write_pointer(job.layout, split(SplitConfig(seed=1), fetched, job))
    (job.layout.absolute(fetched.dataset_root) / "notumor/2.png").unlink()
    with pytest.raises(StorageError, match=r"notumor/2\.png"):
        resize(ResizeConfig(size=64), mapping, job)
    assert not job.layout.pack_dir("data/training_resized", job.dataset, job.run_id).exists()
