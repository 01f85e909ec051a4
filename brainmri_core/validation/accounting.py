"""From the archive to the pack: how many files went in, which were left out on the way, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from brainmri_core.arrays import Mask
from brainmri_core.errors import IntegrityError
from brainmri_core.escaping import printable, shared_reason
from brainmri_core.project.job import Job
from brainmri_core.project.pointer_store import follow
from brainmri_core.project.pointers import FetchPointer, MappingPointer
from brainmri_core.project.sample_table import SPLIT_COLUMNS, read_samples
from brainmri_core.sources.index import LEFT_OUT, LEFT_OUT_COLUMNS, QUIET_KINDS
from brainmri_core.sources.tree import split_of
from brainmri_core.splitting.corrections import WRONG_LABEL
from brainmri_core.system.json_files import read_json

if TYPE_CHECKING:
    import pandas as pd

Stage = Literal["fetch", "split", "resize"]

_EXPECTED_KINDS = QUIET_KINDS | {"other tree"}  # excluded by fetch.subset
NOTICED_SHARE = 0.01
_REMEDIES = {
    "extension not in split.exts": "set split.exts to all",
    "extension not in resize.exts": "set resize.exts to all",
    "a copy carries another label": "correct the labels, or set split.conflicts to keep",
    "excluded by the predefined split": "change split.predefined_csv",
    WRONG_LABEL: "set split.corrections to apply, which uses the right label",
}
_OFFICIAL = ("official test folder", "official validation folder")


class LeftOut(BaseModel):
    """Files that one stage left out for one reason; `example` is the first of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Stage
    files: int
    reason: str
    remedy: str
    example: str


@dataclass(frozen=True)
class Fetched:
    """The record of fetch.

    Attributes
    ----------
    files : int
        Number of files of the source.
    left_out : pandas.DataFrame
        Those left out, with the columns `index.LEFT_OUT_COLUMNS`.
    root : str
        Folder of the source that the images lie in.
    gifs : int
        Number of indexed GIFs.
    """

    files: int
    left_out: pd.DataFrame
    root: str
    gifs: int = 0


class Account(BaseModel):
    """What became of every file of a data set's source.

    Attributes
    ----------
    source_files : int or None
        Number of files of the archive or folder; None where an older version fetched the data set and did not count them.
    indexed_files : int or None
        Number of files with images in the sample table.
    images : int
        Number of rows of the sample table.
    left_out : list of LeftOut
        Files left out, by stage and reason.
    packed : int
        Number of images in the pack.
    surprises : list of str
        Losses that are probably not intended: a whole folder, all files of an ending, a share of the images.
    gifs : int
        Number of indexed GIFs, of each of which the first frame is used.
    missed : list of str
        The files of these surprises; not stored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source_files: int | None
    indexed_files: int | None
    images: int
    left_out: list[LeftOut]
    packed: int
    surprises: list[str]
    gifs: int = 0
    missed: list[str] = Field(default_factory=list, exclude=True)

    def lost(self, stage: Stage) -> int:
        """Return the number of files or images that a stage left out."""
        return sum(row.files for row in self.left_out if row.stage == stage)


def read_account(samples: pd.DataFrame, mapping: MappingPointer, job: Job) -> Account:
    """Account for every file of a data set from its source to a pack, from the records of the stages.

    Raises
    ------
    IntegrityError
        If a record is missing, or the files do not add up.
    """
    layout = job.layout
    before = read_samples(layout.absolute(mapping.samples), SPLIT_COLUMNS).set_index("path")["split"]
    dropped = (before.reindex(samples["path"]) == "excluded").to_numpy(np.bool_)
    fetched = follow(layout, FetchPointer, mapping.fetch_pointer) if mapping.fetch_pointer else None
    counted = None
    if fetched is not None and fetched.n_files is not None:
        folder = layout.absolute(fetched.samples).parent
        left_out = read_samples(folder / LEFT_OUT, LEFT_OUT_COLUMNS)
        root = layout.absolute(fetched.dataset_root).relative_to(folder / "files")
        gifs = read_json(folder / "source.json").get("formats", {}).get("GIF", 0)
        counted = Fetched(fetched.n_files, left_out, "" if root == Path() else root.as_posix(), gifs)
    return account(samples, dropped, counted, lambda name: job.entry.canonical(name) is not None)


def account(
    samples: pd.DataFrame,
    dropped_by_split: Mask,
    fetched: Fetched | None,
    is_class: Callable[[str], bool],
) -> Account:
    """Account for every file from the source to the pack.

    Parameters
    ----------
    samples : pandas.DataFrame
        The pack's sample table.
    dropped_by_split : numpy.ndarray
        bool ``(len(samples),)``: images that the split excluded.
    fetched : Fetched or None
        None where fetch did not count the files.
    is_class : callable
        Says whether the name of a folder is that of a class.

    Raises
    ------
    IntegrityError
        If the files do not add up.
    """
    packed = (samples["row"] >= 0).to_numpy()
    root = f"{fetched.root}/" if fetched and fetched.root else ""
    paths = root + samples["path"].astype(str)
    rows = _of_fetch(fetched.left_out) if fetched else []
    stages: tuple[tuple[Stage, Mask], ...] = (
        ("split", ~packed & dropped_by_split),
        ("resize", ~packed & ~dropped_by_split),
    )
    for stage, mask in stages:
        rows += _of_stage(stage, samples[mask])
    missed: list[str] = []
    if fetched is not None:
        missed += fetched.left_out["path"][~fetched.left_out["kind"].isin(_EXPECTED_KINDS)].tolist()
    # Undecodable images, and copies with two labels, have findings of their own.
    missed += paths[~packed & samples["reason"].str.startswith("extension not in").to_numpy()].tolist()
    indexed = None if fetched is None else fetched.files - len(fetched.left_out)
    result = Account(
        source_files=fetched.files if fetched else None,
        indexed_files=indexed,
        images=len(samples),
        left_out=rows,
        packed=int(packed.sum()),
        surprises=_surprises(missed, paths[packed].tolist(), is_class),
        gifs=fetched.gifs if fetched else 0,
        missed=missed,
    )
    if result.images != result.packed + result.lost("split") + result.lost("resize") or (
        indexed is not None and not 0 < indexed <= result.images
    ):
        raise IntegrityError(
            f"The account of the images does not balance: {result.source_files} files, {indexed} indexed, "
            f"{result.images} images, {result.packed} packed; run fetch and the stages after it again."
        )
    return result


def _of_fetch(left_out: pd.DataFrame) -> list[LeftOut]:
    grouped = left_out.groupby(["kind", "reason", "remedy"], sort=True)
    return [
        LeftOut(stage="fetch", files=len(part), reason=reason, remedy=remedy, example=part["path"].iloc[0])
        for (_, reason, remedy), part in grouped
    ]


def _of_stage(stage: Stage, left_out: pd.DataFrame) -> list[LeftOut]:
    """Group rows by reason, without the file names in it."""
    reasons: dict[str, list[str]] = {}
    for path, text in zip(left_out["path"], left_out["reason"], strict=True):
        reasons.setdefault(shared_reason(path, text), []).append(path)
    return [
        LeftOut(stage=stage, files=len(paths), reason=reason, remedy=_remedy(reason), example=paths[0])
        for reason, paths in sorted(reasons.items(), key=lambda item: -len(item[1]))
    ]


def _remedy(reason: str) -> str:
    if reason.endswith(_OFFICIAL):
        return "set split.official_copies to keep, which never passes validation, or split.strategy to pooled"
    return _REMEDIES.get(reason, "replace the file, or remove it")


def _surprises(missed: list[str], packed: Iterable[str], is_class: Callable[[str], bool]) -> list[str]:
    """List the folders and endings that were lost completely, and the share of lost images if it is above 1%."""
    used_folders: set[str] = set()
    used_endings: set[str] = set()
    count = 0
    for path in packed:
        parts = path.split("/")[:-1]
        used_folders.update("/".join(parts[: depth + 1]) for depth in range(len(parts)))
        used_endings.add(_ending(path))
        count += 1
    folders: dict[str, int] = {}
    endings: dict[str, int] = {}
    for path in missed:
        parts = path.split("/")[:-1]
        for depth, name in enumerate(parts):
            folder = "/".join(parts[: depth + 1])
            if (split_of(name) or is_class(name)) and folder not in used_folders:
                folders[folder] = folders.get(folder, 0) + 1
                break
        if (ending := _ending(path)) not in used_endings:
            endings[ending] = endings.get(ending, 0) + 1
    found = [f"the folder {folder} ({n})" for folder, n in sorted(folders.items())]
    found += [
        f"every file {f'ending {ending}' if ending else 'without an ending'} ({n})"
        for ending, n in sorted(endings.items())
    ]
    if len(missed) > NOTICED_SHARE * (count + len(missed)):
        found.append(f"{len(missed) / (count + len(missed)):.1%} of all")
    return [printable(text) for text in found]


def _ending(path: str) -> str:
    return PurePosixPath(path.partition("#")[0]).suffix.lower()
