"""Split the scans of an unpacked data set: each slice of a DICOM, NIfTI or MATLAB file becomes an image beside it.

Slice 7 of ``glioma/scan.nii`` is the file ``glioma/scan.nii#7``, a PNG in spite of its name. Later stages treat it like any
other image. Class, patient, study and tumour mask are kept where the file has them.
"""

from __future__ import annotations

import json
import re
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from brainmri_core.config.data import FetchConfig
from brainmri_core.config.formats import HEAD
from brainmri_core.errors import DataError
from brainmri_core.images.decode import MAX_PIXELS
from brainmri_core.images.isolation import MAX_ANSWERS, Answer, no_answer, read_below, stream_answers
from brainmri_core.images.matlab import LABELS
from brainmri_core.images.medical import is_dicomdir, medical_kind
from brainmri_core.project.job import Job
from brainmri_core.project.pseudonyms import hashed, project_key
from brainmri_core.sources.masks import MaskStore
from brainmri_core.system.storage import storage_error
from brainmri_core.system.threads import cores

DIRECTORY_REASON = "index of a DICOM medium; the files it lists are read themselves"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class FoundSlice:
    """The metadata of one slice.

    Attributes
    ----------
    scan : str
        The same for all slices that must stay together: the study as a keyed hash, else the file.
    patient : str or None
        Keyed hash of the patient's id.
    label : str or None
        Class that the file names.
    """

    scan: str
    patient: str | None
    label: str | None


@dataclass
class Scans:
    """The scans of a data set and their slices; paths are relative to the unpacked files.

    Attributes
    ----------
    slices : dict
        Path of each slice to its metadata.
    opened : list of str
        Files that were split into slices.
    refused : dict
        All other scans, each with the reason.
    directories : list of str
        Indexes of DICOM media.
    masks : MaskStore
        Tumour masks by slice.
    unused, blank, series : int
        Number of slices that ``fetch.slices`` leaves out; of blank slices; and of files with several volumes, of which the
        first is used.
    """

    slices: dict[str, FoundSlice] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)
    masks: MaskStore = field(default_factory=MaskStore)
    unused: int = 0
    blank: int = 0
    series: int = 0

    def labels(self) -> dict[str, str]:
        """Return the class of each slice whose file names it."""
        return {path: found.label for path, found in self.slices.items() if found.label is not None}

    def described(self, table: pd.DataFrame, root: str) -> pd.DataFrame:
        """Add the columns ``patient`` and ``scan`` to a table of images below `root`; null where unknown."""
        found = [self.slices.get(f"{root}/{path}".lstrip("/")) for path in table["path"]]
        table = table.copy()
        table["patient"] = pd.Series([item and item.patient for item in found], dtype="str")
        table["scan"] = pd.Series([item and item.scan for item in found], dtype="str")
        return table


def expand_scans(files: Path, config: FetchConfig, job: Job) -> Scans:
    """Write the slices of all scans of an unpacked data set beside them.

    Parameters
    ----------
    files : pathlib.Path
        The unpacked files. They are not trusted: scans are decoded in worker processes.
    config : FetchConfig
        Which slices to use, and how much may be written.
    job : Job
        The run.

    Raises
    ------
    DataError
        If the slices take more space than ``fetch.limits`` allows.
    StorageError
        If a file cannot be read or written.
    """
    found = Scans()
    names = []
    for path in sorted(files.rglob("*")):
        name = path.relative_to(files).as_posix()
        if not path.is_file() or any(part.startswith(".") for part in name.split("/")):
            continue
        with path.open("rb") as handle:
            head = handle.read(1 << 10)
        if is_dicomdir(head):
            found.directories.append(name)
        elif medical_kind(head[:HEAD], name) is not None:
            names.append(name)
    if names:
        _Expansion(files, names, found, config, job).run()
        _say(found, job)
    return found


@dataclass
class _Expansion:
    files: Path
    names: list[str]
    found: Scans
    config: FetchConfig
    job: Job
    written: int = 0

    def run(self) -> None:
        self.key = project_key(self.job.layout)
        settings = {
            "rule": self.config.slices.model_dump(mode="json"),
            "any_modality": self.job.entry.modality == "any",
        }
        answers = stream_answers(
            read_below(self.files, self.names),
            self.names,
            min(cores(), len(self.names)),
            "brainmri_core.images.scan_worker",
            json.dumps(settings),
        )
        bar = tqdm(total=len(self.names), desc="scans", unit="file", disable=None)
        with bar, closing(answers):
            for index, answer in answers:
                if answer[0].get("more"):
                    self.take(self.names[index], answer)
                    continue
                self.end(self.names[index], answer[0])
                bar.update()

    def take(self, name: str, answer: Answer) -> None:
        """Keep one slice."""
        header, body = answer
        try:
            number, png = int(header["slice"]), body[: int(header["png"])]
            mask = _mask(header["mask"], body[len(png) :])
            digests = [header[what] for what in ("patient", "study")]
            if (
                not 1 <= number <= MAX_ANSWERS
                or not png.startswith(_PNG)
                or not all(item is None or _DIGEST.fullmatch(item) for item in digests)
                or header["label"] not in (None, *LABELS.values())
            ):
                raise ValueError(number)
        except (KeyError, TypeError, ValueError, OverflowError):
            self.found.refused[name] = no_answer(name)
            return
        path = f"{name}#{number}"
        if path not in self.found.slices and (self.files / path).exists():
            self.found.refused[name] = f"a file named {path} exists already; rename it."
            return
        self.written += len(png)
        if self.written > self.config.limits.max_total_bytes:
            raise DataError(
                f"The slices of the scans of {self.job.dataset} take more than fetch.limits.max_total_bytes "
                f"({self.config.limits.max_total_bytes}); raise it, or lower fetch.slices.share."
            )
        try:
            (self.files / path).write_bytes(png)
        except OSError as error:
            raise storage_error(error, self.files / path, "write") from error
        patient, study = (None if item is None else hashed(item, self.key) for item in digests)
        self.found.slices[path] = FoundSlice(study or name, patient, header["label"])
        if mask is not None:
            self.found.masks.add(path, mask)

    def end(self, name: str, header: dict[str, Any]) -> None:
        """Record the result of a file; a file that turns out to be damaged loses all its slices."""
        if "reason" in header:
            self.found.refused[name] = str(header["reason"])
        if name in self.found.refused:
            self.drop(name)
            return
        try:
            self.found.unused += max(0, int(header["slices"]) - int(header["used"]) - int(header["blank"]))
            self.found.blank += int(header["blank"])
            self.found.series += int(header["volumes"]) > 1
        except (KeyError, TypeError, ValueError, OverflowError):
            self.found.refused[name] = no_answer(name)
            self.drop(name)
            return
        self.found.opened.append(name)

    def drop(self, name: str) -> None:
        for number in range(1, MAX_ANSWERS + 1):
            if self.found.slices.pop(f"{name}#{number}", None) is not None:
                (self.files / f"{name}#{number}").unlink()
                self.found.masks.remove(f"{name}#{number}")


def _mask(shape: Any, body: bytes) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    """Return the mask of an answer, bool ``(H, W)``."""
    if shape is None:
        return None
    height, width = (int(side) for side in shape)
    if height < 1 or width < 1 or height * width > MAX_PIXELS or len(body) != (height * width + 7) // 8:
        raise ValueError(shape)
    bits = np.unpackbits(np.frombuffer(body, np.uint8), count=height * width)
    return bits.reshape(height, width).astype(np.bool_)


def _say(found: Scans, job: Job) -> None:
    job.log.info("scans taken apart", files=len(found.opened), slices=len(found.slices))
    if found.unused:
        job.log.info(
            "slices left out by fetch.slices, which takes the central share of a file", slices=found.unused
        )
    if found.blank:
        job.log.info("slices left out because they show nothing", slices=found.blank)
    if found.series:
        job.log.warning("of scans that hold several volumes, the first is used", files=found.series)
