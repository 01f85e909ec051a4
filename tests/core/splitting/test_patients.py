"""Patients and known label errors in a split: where they come from, what they join, and what is refused."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from brainmri_core.config.data import ResizeConfig, SplitConfig, ValidateConfig
from brainmri_core.errors import BrainMRIError, ConfigError, DataError
from brainmri_core.project.catalogue import CLASSES, load_catalogue
from brainmri_core.project.image_tables import read_table, shipped_tables
from brainmri_core.project.job import Job
from brainmri_core.project.logs import Record
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import FetchPointer
from brainmri_core.project.pseudonyms import pseudonym
from brainmri_core.project.sample_table import known_patients, read_samples, write_samples
from brainmri_core.resize import resize
from brainmri_core.split import split
from brainmri_core.splitting.assignment import validation_mask
from brainmri_core.splitting.groups import patient_components
from brainmri_core.splitting.neighbour_runs import Neighbours, proxy_quality
from brainmri_core.system.json_files import read_json
from brainmri_core.validate import validate
from brainmri_core.validation.report import load_report
from tests.core.split_case import picture, small_set
from tests.counts import rest

PATIENTS = [f"P{number:03}" for number in range(16)]


def fetched(job: Job, each: int = 3, folder: Callable[[int, int], str] | None = None) -> FetchPointer:
    """Images of 16 patients, eight of each class, none like another: `glioma/P003 a.png`."""
    where = folder or (lambda patient, _: "glioma" if patient < 8 else "notumor")
    images = {
        f"{where(patient, n)}/{PATIENTS[patient]} {'abcdefgh'[n]}.png": picture(1000 + 10 * patient + n)
        for patient in range(len(PATIENTS))
        for n in range(each)
    }
    return small_set(job, dict(images))


def table_of(job: Job, pointer: FetchPointer, **config: Any) -> pd.DataFrame:
    """Split, and return the sample table with the true patient of each image."""
    mapping = split(SplitConfig(**{"seed": 3, **config}), pointer, job)
    table = read_samples(job.layout.absolute(mapping.samples))
    return table.assign(true=table["path"].str.extract(r"(P\d+)", expand=False))


def record_of(job: Job) -> dict[str, Any]:
    record: dict[str, Any] = read_json(job.layout.mapping_dir(job.dataset, job.run_id).joinpath("split.json"))
    return record


def csv(job: Job, text: str, name: str = "patients.csv", encoding: str = "utf-8") -> str:
    path = job.layout.root / name
    path.write_bytes(text.encode(encoding))
    return name


def patients_csv(
    job: Job, pointer: FetchPointer, line: str = "{path},{patient}", head: str = "path,patient"
) -> str:
    paths = read_samples(job.layout.absolute(pointer.samples))["path"]
    rows = [line.format(path=path, patient=path.split("/")[1][:4]) for path in paths]
    return csv(job, "\n".join([head, *rows, ""]))


def whole(table: pd.DataFrame) -> bool:
    """Say whether no patient is on two sides, in two folds, or in training and validation."""
    validation = pd.Series(validation_mask(table, 0.3, 5))
    places = (table["split"], table["fold"], validation)
    return all(place.groupby(table["true"]).nunique().max() == 1 for place in places)


@pytest.mark.full
def test_without_patients_images_of_one_patient_are_on_both_sides(job: Job) -> None:
    """What the other tests would miss if these images were alike."""
    table = table_of(job, fetched(job))
    assert table["patient"].isna().all()
    assert table["group"].nunique() == len(table)
    assert not whole(table)


@pytest.mark.parametrize(
    ("line", "head"),
    [
        ("{path},{patient}", "path,patient"),
        ("{path},{patient}", "path,group"),
        ("7,{patient},{path},x", "age,patient,path,note"),
        ('"{path}" ;{patient} ', "Path; Patient"),
        ("{path};{patient}", "sep=;\npath;patient"),
        ("{path},{patient}", '\ufeff"sep=,",\r\npath,patient'),
        ("{path},{patient}\u200b", "path,patient"),
        ("{path}\t{patient}", "path\tpatient"),
        (".\\{path},{patient}", "path,patient"),
    ],
    ids=[
        "plain",
        "group",
        "further columns",
        "semicolons",
        "separator",
        "quoted separator",
        "invisible",
        "tabs",
        "windows",
    ],
)
@pytest.mark.parametrize("group_by", ["auto", *rest("patient")])
def test_patients_of_a_csv_stay_whole(job: Job, line: str, head: str, group_by: str) -> None:
    pointer = fetched(job)
    name = patients_csv(job, pointer, line, head)
    table = table_of(job, pointer, patients_csv=name, group_by=group_by)
    assert table["patient"].tolist() == table["true"].tolist()
    assert whole(table)
    assert table["group"].nunique() == 16
    assert record_of(job)["patients"]["sources"] == {"csv": 48}
    assert record_of(job)["patients"]["notes"] == []


def test_names_are_compared_in_one_form(job: Job) -> None:
    pointer = small_set(
        job,
        {
            f"{label}/Zoë Ö{n}.png": picture(50 * k + n)
            for k, label in enumerate(("glioma", "notumor"))
            for n in range(4)
        },
    )
    rows = [
        f"{label.upper()}\\zoë ö{n}.png,{label[0]}{n // 2}"
        for label in ("glioma", "notumor")
        for n in range(4)
    ]
    name = csv(job, unicodedata.normalize("NFD", "\ufeffpath,patient\n" + "\n".join(rows)))
    table = table_of(job, pointer, patients_csv=name)
    assert table["patient"].notna().all()
    assert table["group"].nunique() == 4


@pytest.mark.full
def test_a_pattern_reads_patients_from_paths(job: Job) -> None:
    table = table_of(job, fetched(job), patient_pattern=r"/(?P<patient>P\d+) ")
    assert table["patient"].tolist() == table["true"].tolist()
    assert whole(table)


@pytest.mark.full
def test_a_patient_that_fetch_has_found_is_kept_and_named_as_a_csv_names_it(job: Job) -> None:
    pointer = fetched(job)
    table = read_samples(job.layout.absolute(pointer.samples))
    hashed = "hashed:" + table["path"].str.extract(r"P(\d+)", expand=False).str.zfill(16)
    write_samples(job.layout.absolute(pointer.samples), table.assign(patient=hashed))
    found = table_of(job, pointer)
    assert found["patient"].tolist() == hashed.tolist()
    assert whole(found)
    # the CSV names one image of a patient; the others, which only the data names, go with it
    name = csv(job, f"path,patient\n{table['path'].iloc[0]},7\n")
    again = table_of(replace(job, run_id="r2"), pointer, patients_csv=name)
    assert again["patient"].tolist() == ["7"] * 3 + hashed.tolist()[3:]
    assert whole(again)


@pytest.mark.full
@pytest.mark.parametrize(
    ("given", "expected", "notes"),
    [
        # P000 and P001 of the pattern are both patient 7 of the CSV
        ({"P000 a": "7", "P001 a": "7"}, {"P000": "7", "P001": "7", "P002": "P002"}, []),
        # two patients of the CSV are one of the pattern; P000 c is neither
        (
            {"P000 a": "7", "P000 b": "8"},
            {"P000 a": "7", "P000 b": "8", "P000 c": "P000"},
            [
                "gives several patients of an earlier source one name (1 such), the first 7 and 8 the name P000"
            ],
        ),
        # one of the two has the pattern's name: the third image is that patient's
        (
            {"P000 a": "P000", "P000 b": "8"},
            {"P000 a": "P000", "P000 b": "8", "P000 c": "P000"},
            ["the first 8 and P000 the name P000"],
        ),
        # the CSV's P001 is the pattern's P000, so the pattern's P001 is somebody else
        (
            {"P000 a": "P001"},
            {"P000": "P001", "P001": "P001 (pattern)"},
            ["the same name means two patients (1 such, the first P001)"],
        ),
        # nothing contradicts that P002 is the same patient in both
        ({"P001 a": "P001", "P002 a": "P002"}, {"P001": "P001", "P002": "P002"}, []),
    ],
    ids=["two are one", "one is two", "one is two, one named so", "other numbers", "same numbers"],
)
def test_names_of_two_sources_go_together_by_the_images_that_both_name(
    job: Job, given: dict[str, str], expected: dict[str, str], notes: list[str]
) -> None:
    pointer = fetched(job)
    rows = "".join(f"glioma/{image}.png,{patient}\n" for image, patient in given.items())
    config = {"patients_csv": csv(job, f"path,patient\n{rows}"), "patient_pattern": r"/(?P<patient>P\d+) "}
    table = table_of(job, pointer, **config)
    for start, patient in expected.items():
        assert set(table.loc[table["path"].str.contains(f"/{start}"), "patient"]) == {patient}, start
    assert table.groupby("patient")["group"].nunique().max() == 1
    found = record_of(job)["patients"]["notes"]
    assert len(found) == len(notes)
    assert all(part in note for part, note in zip(notes, found, strict=True)), found


@pytest.mark.full
def test_a_catalogue_table_lies_beside_the_catalogue(job: Job, tmp_path: Path) -> None:
    pointer = fetched(job)
    (tmp_path / "who.csv").write_text(
        "slice,patient\n" + "".join(f"{p} {n},{p}\n" for p in PATIENTS for n in "abc")
    )
    catalogue = tmp_path / "datasets.yaml"
    catalogue.write_text("datasets:\n  a/b:\n    source: archive\n    patients: who.csv\n")
    entry = load_catalogue(catalogue)["a/b"].model_copy(update={"key": job.dataset})
    table = table_of(replace(job, entry=entry), pointer)
    assert table["patient"].tolist() == table["true"].tolist(), (
        "named by the file's name without folder and ending"
    )
    assert record_of(job)["patients"]["sources"] == {"catalogue": 48}


@pytest.mark.full
def test_a_catalogue_table_that_fits_no_image_is_said_and_stops_nothing(job: Job) -> None:
    entry = job.entry.model_copy(update={"patients": "figshare-1512427"})
    table = table_of(replace(job, entry=entry), fetched(job))
    assert table["patient"].isna().all()
    (note,) = record_of(job)["patients"]["notes"]
    assert "names no image of brainmri/phantom: it has '1', the data set 'glioma/P000 a.png'" in note


def test_names_of_people_are_stored_as_keyed_hashes(job: Job, records: list[Record]) -> None:
    pointer = fetched(job)
    name = patients_csv(job, pointer, '{path},"Doe, Jane {patient} 4711-0815"')
    table = table_of(job, pointer, patients_csv=name)
    assert table["patient"].str.fullmatch("hashed:[0-9a-f]{16}").all()
    assert whole(table)
    written = [file.read_bytes() for file in job.layout.mapping_dir(job.dataset, "r1").iterdir()]
    assert not any(b"Doe" in content or b"4711" in content for content in [*written, repr(records).encode()])
    # another project has another key: other names, the same sides
    (job.layout.root / "outputs/.patient_key").unlink()
    again = table_of(replace(job, run_id="r2"), pointer, patients_csv=name)
    assert set(again["patient"]).isdisjoint(table["patient"])
    assert again[["split", "fold", "group"]].equals(table[["split", "fold", "group"]])


@pytest.mark.parametrize(
    "kept", ["7", "p001", "P-12", "patient_7", "Sub 0042", "case3", "hashed:0123456789abcdef"]
)
def test_running_numbers_are_stored_as_they_are(kept: str) -> None:
    assert pseudonym(kept, b"key") == kept


@pytest.mark.parametrize("name", ["Smith", "12345", "smith7", "p001x", "hashed:xyz", "1990-01-02", "7 Jane"])
def test_anything_else_is_hashed(name: str) -> None:
    hashed = pseudonym(name, b"key")
    assert hashed.startswith("hashed:")
    assert hashed != pseudonym(name, b"another key")


PATH = "glioma/P000 a.png"


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        (
            "path,patient\nx/y.png,1\n",
            DataError,
            r"names no image of brainmri/phantom: it has 'x/y\.png', the data set",
        ),
        ("path,patient\n", DataError, "names no image of brainmri/phantom: it has no image at all"),
        ("", ConfigError, "lacks the column 'path'; its header must be path,patient"),
        ("file,patient\na,1\n", ConfigError, "lacks the column 'path'"),
        ("path,person\na,1\n", ConfigError, "lacks the column 'patient' or 'group'"),
        (f"path,patient\n{PATH},1\n{PATH},2\n", DataError, f"gives '{PATH}' two patients"),
        ("path,patient\na\0b,1\n", BrainMRIError, r"patients\.csv"),
        (
            f"path,patient\nx,1\n{PATH},1\x00\n",
            ConfigError,
            "control character in the column 'patient' of row 2",
        ),
        (f'path,patient\n{PATH},"1\n2"\n', ConfigError, "control character in the column 'patient' of row 1"),
    ],
    ids=[
        "no image",
        "empty",
        "nothing",
        "no path",
        "no patient",
        "two patients",
        "binary",
        "nul",
        "line end",
    ],
)
def test_a_csv_that_cannot_be_used_is_one_sentence(
    job: Job, text: str, error: type[BrainMRIError], sentence: str
) -> None:
    pointer = fetched(job)
    with pytest.raises(error, match=sentence) as caught:
        table_of(job, pointer, patients_csv=csv(job, text))
    assert "\n" not in str(caught.value)
    assert "patients.csv" in str(caught.value)
    assert not job.layout.mapping_dir(job.dataset, "r1").exists()


def test_a_csv_that_is_missing_or_no_text_is_one_sentence(job: Job) -> None:
    pointer = fetched(job)
    with pytest.raises(ConfigError, match=r"gone\.csv cannot be read \(No such file"):
        table_of(job, pointer, patients_csv="gone.csv")
    with pytest.raises(ConfigError, match="it is not text in UTF-8"):
        table_of(job, pointer, patients_csv=csv(job, "path,patient\n", encoding="utf-16"))


def test_rows_that_say_nothing_are_counted_and_named(job: Job, records: list[Record]) -> None:
    pointer = fetched(job)
    text = f"path,patient\n{PATH},1\nx.png,1\ny.png,2\n{PATH},1\nglioma/P000 b.png,\n"
    table = table_of(job, pointer, patients_csv=csv(job, text))
    assert known_patients(table).tolist() == ["1"] + [""] * 47
    notes = record_of(job)["patients"]["notes"]
    assert [note.split("patients.csv ")[1] for note in notes] == [
        "has 2 images that the data set does not hold, the first 'x.png'; such rows were left out.",
        f"has 1 image that an earlier row names, too, the first '{PATH}'; such rows were left out.",
        "has 1 image without a patient, the first 'glioma/P000 b.png'; such rows were left out.",
    ]
    assert [item["event"] for item in records if item["event"] in notes] == notes


@pytest.mark.parametrize(
    ("pattern", "error", "sentence"),
    [
        (r"P\d+", ConfigError, "has no group named patient"),
        (r"(?P<patient>P\d+", ConfigError, "is not a regular expression"),
        (r"(?P<person>P\d+)", ConfigError, "has no group named patient"),
        (
            r"/(?P<patient>Q\d+)",
            DataError,
            r"matches no path of brainmri/phantom, such as 'glioma/P000 a\.png'",
        ),
        (r"P(?P<patient>)", DataError, "matches no path"),
    ],
)
def test_a_pattern_that_names_nobody_is_refused(
    job: Job, pattern: str, error: type[BrainMRIError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        table_of(job, fetched(job), patient_pattern=pattern)


@pytest.mark.full
def test_a_class_of_a_single_patient_is_refused_with_the_number_of_images(job: Job) -> None:
    pointer = fetched(job, folder=lambda patient, _: "glioma" if patient else "notumor")
    with pytest.raises(DataError) as caught:
        table_of(job, pointer, patients_csv=patients_csv(job, pointer))
    assert "'notumor' of brainmri/phantom lives in one group, the patient P000 with 3 images" in str(
        caught.value
    )
    assert "add images of other patients" in str(caught.value)
    assert "or correct what names the patients, if these are several people, or remove the class" in str(
        caught.value
    )
    assert "ncc_threshold" not in str(caught.value), "copies have nothing to do with it"


@pytest.mark.full
def test_a_predefined_split_with_a_patient_on_two_sides_is_refused_by_name(job: Job) -> None:
    pointer = fetched(job)
    paths = read_samples(job.layout.absolute(pointer.samples))["path"]
    sides = ["test" if path == "glioma/P004 b.png" else "train" for path in paths]
    given = csv(
        job, "path,split\n" + "".join(f"{p},{s}\n" for p, s in zip(paths, sides, strict=True)), "split.csv"
    )
    patients = patients_csv(job, pointer)
    for group_by in ("auto", "near_duplicate"):
        with pytest.raises(DataError) as caught:
            table_of(
                job,
                pointer,
                strategy="predefined",
                predefined_csv=given,
                patients_csv=patients,
                group_by=group_by,
            )
        for part in (
            "the patient P004 on two sides",
            "'glioma/P004 a.png' in train",
            "'glioma/P004 b.png' in test",
        ):
            assert part in str(caught.value)


@pytest.mark.full
def test_official_folders_lose_the_training_images_of_test_patients(job: Job) -> None:
    def folder(patient: int, n: int) -> str:
        side = "Testing" if n == 0 and patient % 8 < 2 else "Training"
        return f"{side}/{'glioma' if patient < 8 else 'notumor'}"

    pointer = fetched(job, folder=folder)
    table = table_of(job, pointer, strategy="official", patient_pattern=r"(?P<patient>P\d+) ")
    out = table[table["split"] == "excluded"]
    assert set(out["reason"]) == {"its patient is in the official test folder"}
    assert sorted(out["true"].unique()) == ["P000", "P001", "P008", "P009"]
    assert (table["split"] == "test").sum() == 4
    assert table[table["split"] != "excluded"].groupby("true")["split"].nunique().max() == 1


def corrected(job: Job, rows: str, tmp_path: Path) -> Job:
    (tmp_path / "labels.csv").write_text("path,label,source\n" + rows)
    catalogue = tmp_path / "datasets.yaml"
    catalogue.write_text("datasets:\n  a/b:\n    source: archive\n    label_corrections: labels.csv\n")
    return replace(job, entry=load_catalogue(catalogue)["a/b"].model_copy(update={"key": job.dataset}))


@pytest.mark.parametrize("policy", ["exclude", "apply", "ignore"])
def test_labels_known_to_be_wrong_follow_the_policy(job: Job, tmp_path: Path, policy: str) -> None:
    own = corrected(
        job, "glioma\\P001 a.png,notumor,a second reader\nnotumor/P009 b.png,notumor,the same\n", tmp_path
    )
    table = table_of(own, fetched(own), corrections=policy).set_index("path")
    wrong = table.loc["glioma/P001 a.png"]
    assert wrong["found_label"] == "glioma"
    expected = {
        "exclude": ("excluded", "glioma", "its label is known to be wrong"),
        "apply": (wrong["split"], "notumor", "its label was corrected"),
        "ignore": (wrong["split"], "glioma", ""),
    }[policy]
    assert (wrong["split"], wrong["label"], wrong["reason"]) == expected
    assert wrong["class_index"] == CLASSES.index(wrong["label"])
    assert table.loc["notumor/P009 b.png", "reason"] == "", "its label was right"
    assert record_of(own)["label_corrections"] == {
        "glioma/P001 a.png": {"found": "glioma", "right": "notumor", "source": "a second reader"}
    }


@pytest.mark.parametrize(
    ("field", "value", "content", "sentence"),
    [
        (
            "label_corrections",
            "t.csv",
            "path,label\na,cyst\n",
            r":2: .*t\.csv names the class 'cyst', which is none of",
        ),
        ("label_corrections", "t.csv", "path,patient\na,1\n", "lacks the column 'label'"),
        ("label_corrections", "t.csv", None, r"t\.csv cannot be read"),
        ("label_corrections", "nowhere", None, "no table 'nowhere' in the package"),
        ("patients", "../README", None, r"no table '\.\./README' in the package; .* figshare-1512427"),
        ("patients", "t.csv", None, r"t\.csv cannot be read"),
        ("patients", "t.csv", "path\na\n", "lacks the column 'patient' or 'group'"),
    ],
)
def test_a_catalogue_whose_table_cannot_be_used_is_refused_with_its_line(
    tmp_path: Path, field: str, value: str, content: str | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / "t.csv").write_text(content)
    path = tmp_path / "datasets.yaml"
    path.write_text(f"datasets:\n  a/b:\n    source: archive\n    {field}: {value}\n")
    with pytest.raises(ConfigError, match=sentence):
        load_catalogue(path)


def test_the_shipped_tables_hold_running_numbers_and_known_classes() -> None:
    for name in shipped_tables():
        value = "label" if name.endswith("__labels") else "patient"
        table = read_table(name, (value,))
        assert len(set(table.names)) == len(table.names)
        values = {row[value] for row in table.values}
        assert (
            values <= set(CLASSES)
            if value == "label"
            else all(pseudonym(item, b"") == item for item in values)
        )
    for entry in load_catalogue().values():
        if entry.patients is not None:
            assert entry.patients in shipped_tables()


def neighbours(*pairs: tuple[int, int, float]) -> Neighbours:
    first, second, ncc = zip(*pairs, strict=True)
    return Neighbours(np.array(first, np.int64), np.array(second, np.int64), np.array(ncc))


def components(
    patients: list[str], pairs: Neighbours, copies: tuple[list[int], list[int]] = ([], [])
) -> list[int]:
    n = len(patients)
    table = pd.DataFrame(
        {
            "pixel_sha256": [str(i) for i in range(n)],
            "class_index": 0,
            "label": "glioma",
            "split": "train",
        }
    )
    listed = (np.array(copies[0], np.int64), np.array(copies[1], np.int64))
    found, notes = patient_components(table, np.array(patients, object), listed, pairs, 0.01)
    assert notes == []
    return found.tolist()


def test_neighbours_never_join_two_known_patients() -> None:
    found = components(["a", "b", ""], neighbours((0, 1, 0.99)))
    assert len(set(found)) == 3


def test_a_run_of_unknown_images_goes_with_the_patient_it_resembles_most() -> None:
    # a - ? - ? - b: all of a run, and to b, whom its end resembles more
    found = components(["a", "", "", "b", "c"], neighbours((0, 1, 0.85), (1, 2, 0.9), (2, 3, 0.95)))
    assert found[1] == found[2] == found[3]
    assert found[0] != found[3]


def test_a_copy_makes_its_patient_known_to_the_neighbours() -> None:
    # image 1 is a copy of one of a's, so it is not joined with b's
    found = components(["a", "", "b", "c"], neighbours((1, 2, 0.97)), ([0], [1]))
    assert found[0] == found[1] != found[2]


def test_copies_join_even_two_known_patients() -> None:
    found = components(["a", "b", "c"], neighbours((0, 2, 0.9)), ([0], [1]))
    assert found[0] == found[1] != found[2]


@pytest.mark.full
def test_neighbours_that_would_leave_a_class_in_one_group_are_not_joined(job: Job) -> None:
    rng = np.random.default_rng(0)
    base = np.asarray(picture(1), np.float64)
    noisy = [np.clip(base + rng.normal(0, 25, base.shape), 0, 255).astype(np.uint8) for _ in range(6)]
    alike = {f"glioma/i{n}.png": Image.fromarray(pixels) for n, pixels in enumerate(noisy)}
    images = {
        f"{label}/{n}.png": picture(30 * k + n + 500) for k, label in enumerate(CLASSES[2:]) for n in range(6)
    }
    pointer = small_set(job, {**images, **alike})
    table = table_of(job, pointer)
    assert table["group"].nunique() == 18
    (note,) = record_of(job)["patients"]["notes"]
    assert "of the class 'glioma' look so much alike" in note
    by_hand = table_of(replace(job, run_id="r2"), pointer, group_by="near_duplicate")
    assert by_hand["group"].nunique() == 18, "they are no copies"
    with pytest.raises(DataError, match="'glioma' of brainmri/phantom lives in one group"):
        table_of(replace(job, run_id="r3"), pointer, group_by="subject")


def test_the_quality_of_the_proxy_is_what_counting_gives() -> None:
    # a a a b b ?: joined are (a, a), (a, b) and (b, ?)
    patients = np.array(["a", "a", "a", "b", "b", ""], object)
    nothing = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    pairs = neighbours((0, 1, 0.9), (2, 3, 0.9), (4, 5, 0.9))
    assert proxy_quality(patients, pairs, nothing) == {"precision": 0.5, "recall": 0.25, "purity": 0.8}
    assert proxy_quality(np.array(["a"] + [""] * 5, object), pairs, nothing) is None


@pytest.mark.full
def test_validation_reports_patients_and_wrong_labels(job: Job, tmp_path: Path) -> None:
    own = corrected(job, "glioma/P001 a.png,notumor,a second reader\n", tmp_path)

    def folder(patient: int, n: int) -> str:
        return "glioma" if patient < 8 and (patient, n) != (5, 2) else "notumor"

    pointer = fetched(own, folder=folder)
    paths = read_samples(own.layout.absolute(pointer.samples))["path"]
    # one patient with a third of a class; one with two classes; one row of nobody's image
    names = paths.str.extract(r"(P\d+)", expand=False).replace({"P001": "P000", "P002": "P000"})
    text = "path,patient\nx.png,1\n" + "".join(f"{p},{n}\n" for p, n in zip(paths, names, strict=True))
    config = SplitConfig(seed=3, patients_csv=csv(own, text), corrections="ignore")
    mapping = write_pointer(own.layout, split(config, pointer, own))
    pack = write_pointer(own.layout, resize(ResizeConfig(size=32), mapping, own))
    validated = validate(ValidateConfig(min_file_bytes=0), pack, own)
    report = load_report(own.layout, validated)
    found = {item.check: item for item in report.findings}
    assert found["label_corrections"].severity == "warning"
    assert (
        found["label_corrections"].message
        == "1 image is filed under a wrong class; 1 of them are still in use."
    )
    assert "has 1 image that the data set does not hold, the first 'x.png'" in found["patient_source"].message
    assert found["patient_classes"].message.startswith(
        "3 images are of patients with more than one class: the patient P005 has"
    )
    assert found["large_patient"].count == 9
    assert (
        "One patient, P000, holds 9 of the images of glioma, 39%, more than" in found["large_patient"].message
    )
    assert (
        report.split["patients"],
        report.split["patients_images"],
        report.split["patients_images_unknown"],
    ) == (14, 48, 0)
    page = own.layout.absolute(validated.report).with_suffix(".html").read_text()
    assert "Patients: 14 are known, on 48 images; of 0 images the patient is unknown." in page


@pytest.mark.full
def test_folds_keep_a_patient_whole_though_the_groups_are_smaller(job: Job) -> None:
    pointer = fetched(job)
    name = patients_csv(job, pointer)
    table = table_of(
        job, pointer, patients_csv=name, group_by="near_duplicate", strategy="all_train", folds=4
    )
    assert table["group"].nunique() == len(table), "no image has a copy here"
    assert set(table["fold"]) == {0, 1, 2, 3}
    assert table.groupby("true")["fold"].nunique().max() == 1
