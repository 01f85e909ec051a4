"""Real DICOM and MATLAB files name a patient; fetch, split and resize run, and all they leave is searched for it.

The source as it was unpacked is the one exception: its files are kept as they came.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from brainmri_core.config import LogConfig
from brainmri_core.config.data import FetchConfig, ResizeConfig, SplitConfig, ValidateConfig
from brainmri_core.fetch import fetch
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import stage_log
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import FetchPointer, PackPointer
from brainmri_core.project.sample_table import read_samples
from brainmri_core.resize import resize
from brainmri_core.split import split
from brainmri_core.validate import validate
from tests.core.images.medical_case import dicom
from tests.matlab_files import figshare_file, made_slice
from tests.security.canary_case import holding, spellings

pytest.importorskip("h5py", reason="the extra `medical` is not installed")

NAME, BORN, UID = "CANARYNAME^JANE", "CANARYBIRTH", "1.2.826.4711.4711"
IDS = [f"CANARYID{number}" for number in range(4)]
MATLAB_IDS = [f"CANARYPID{number}" for number in range(4)]
HEADER = {
    "PatientName": NAME,
    "InstitutionName": "CANARYHOSPITAL",
    "ReferringPhysicianName": "CANARYDOCTOR",
    "PatientComments": BORN,
}
CLASSES = ("glioma", "pituitary")


def hospital(folder: Path) -> Path:
    """Class folders of scans that say whose they are, with some that cannot be read."""
    for number, label in enumerate(CLASSES):
        (folder / label).mkdir(parents=True)
        for one in range(4):
            image, mask = made_slice(10 * number + one, 1 + number)
            header = {**HEADER, "PatientID": IDS[one], "StudyInstanceUID": f"{UID}.{number}.{one}"}
            (folder / label / f"{one}.dcm").write_bytes(dicom(image[None], **header))
            made = figshare_file(image[::-1], label=2 + number, patient=MATLAB_IDS[one], mask=mask[::-1])
            (folder / label / f"{one}.mat").write_bytes(made)
        whole = dicom(image[None], **header)
        (folder / label / "cut.dcm").write_bytes(whole[:-900])
        (folder / label / "ct.dcm").write_bytes(dicom(image[None], **header, Modality="CT"))
        (folder / label / "cut.mat").write_bytes(made[:-900])
    return folder


@dataclass(frozen=True)
class Left:
    """What the stages left, their log included."""

    job: Job
    fetched: FetchPointer
    pack: PackPointer

    @property
    def source(self) -> list[Path]:
        """Files of the unpacked source; the slices taken from its scans are ours."""
        raw = self.job.layout.absolute(self.fetched.dataset_root)
        return [path for path in raw.rglob("*") if path.suffix in (".dcm", ".mat")]

    @property
    def files(self) -> list[Path]:
        """Every other file of the project."""
        found = (path for path in self.job.layout.root.rglob("*") if path.is_file())
        return sorted(set(found) - set(self.source))


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    source = hospital(tmp_path_factory.mktemp("hospital") / "set")
    layout = Layout(root=tmp_path_factory.mktemp("scans") / "project")
    entry = load_catalogue()["brainmri/phantom"]
    with stage_log("scans", "r1", entry.key, LogConfig(level="DEBUG"), layout.root / "outputs/r1") as log:
        job = Job(layout, "r1", entry, log)
        fetched = write_pointer(layout, fetch(FetchConfig(archive=str(source)), job))
        mapping = write_pointer(layout, split(SplitConfig(seed=1, test_frac=0.4), fetched, job))
        pack = write_pointer(layout, resize(ResizeConfig(size=32), mapping, job))
        write_pointer(layout, validate(ValidateConfig(), pack, job))
    return Left(job, fetched, pack)


@pytest.mark.full
def test_the_scans_were_read_and_known_apart_by_patient(left: Left) -> None:
    table = read_samples(left.job.layout.absolute(left.fetched.samples))
    assert left.fetched.n_images == left.pack.n_images == 16
    assert table["patient"].nunique() == 8, "four in DICOM files, four in MATLAB files"


def test_the_names_are_in_the_source_where_the_search_finds_them(left: Left) -> None:
    assert len(left.source) == 22
    assert len(holding(left.source, spellings(NAME))) == 12, "six DICOM files of each class"
    assert len(holding(left.source, {UID.encode()})) >= 8


@pytest.mark.parametrize("planted", [*HEADER.values(), *IDS, UID, *MATLAB_IDS])
def test_nothing_of_a_header_is_in_what_the_stages_left(left: Left, planted: str) -> None:
    kinds = {path.suffix.partition("#")[0] for path in left.files}
    assert {".json", ".parquet", ".npy", ".log", ".html", ".dcm", ".mat"} <= kinds
    texts = spellings(planted) | {planted.encode("utf-32-le")}
    # a plain hash of a short id can be guessed back
    texts |= {hashlib.new(kind, planted.encode()).hexdigest().encode() for kind in ("md5", "sha1", "sha256")}
    assert holding(left.files, texts) == []
