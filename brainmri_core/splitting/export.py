"""Export of a split as a tree of class folders, for people and for other tools."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from pathlib import Path, PurePosixPath

import pandas as pd
from PIL import Image

from brainmri_core.config.data import SplitConfig
from brainmri_core.errors import ConfigError, IntegrityError
from brainmri_core.images.decode import DecodeError, decode
from brainmri_core.images.isolation import read_below
from brainmri_core.project.job import Job
from brainmri_core.system.storage import write_bytes
from brainmri_core.system.threads import cores, threads

MARKER = ".brainmri-export"
_LONGEST_NAME = 250


def export_split(table: pd.DataFrame, root: Path, dest: Path, config: SplitConfig, job: Job) -> None:
    """Write ``dest/{train,test}/<class>/`` with a copy of each image.

    A file with EXIF, comments or a profile is written as PNG, with nothing but its pixels.

    Raises
    ------
    ConfigError
        If `dest` holds something that is not an earlier export, or an export and ``clear_dest`` is off.
    IntegrityError
        If an image was changed after it was fetched; the message names it.
    """
    job.layout.relative(dest)
    if dest.exists() and any(dest.iterdir()):
        if not (dest / MARKER).is_file():
            raise ConfigError(
                f"The export folder {dest} holds files that are not an export; empty it or choose another split.dest."
            )
        if not config.clear_dest:
            raise ConfigError(
                f"The export folder {dest} is not empty; empty it or set split.clear_dest to true."
            )
    used = table[table["split"] != "excluded"]
    names = _flat_names(used["path"].tolist())
    read = read_below(root, used["path"].tolist())

    def write(item: tuple[int, tuple[str, str, str, str]]) -> None:
        number, (path, side, label, expected) = item
        data = read(number)
        if hashlib.sha256(data).hexdigest() != expected:
            raise IntegrityError(f"The image {path} was changed after it was fetched; fetch and split again.")
        target = staging / side / label / names[number]
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            decoded = decode(data, name=path, gray=False, colour_check=False)
        except DecodeError as error:
            job.log.warning("image not exported", path=path, reason=str(error))
            return
        if decoded.has_metadata:
            buffer = io.BytesIO()
            Image.fromarray(decoded.pixels).save(buffer, format="PNG")
            data, target = buffer.getvalue(), target.with_name(target.name + ".png")
        target.write_bytes(data)

    with job.staged(dest, replace=True) as staging:
        write_bytes(staging / MARKER, job.run_id.encode())
        columns = ["path", "split", "label", "file_sha256"]
        with threads(cores()) as pool:
            list(pool.map(write, enumerate(used[columns].itertuples(index=False, name=None))))


def _flat_names(paths: list[str]) -> list[str]:
    """Return a file name for each path: its parts joined or, where that is too long or not unique, a hash."""
    joined = [path.replace("/", "__") for path in paths]
    taken = Counter(name.casefold().removesuffix(".png") for name in joined)
    return [
        name
        if taken[name.casefold().removesuffix(".png")] == 1 and len(name.encode()) <= _LONGEST_NAME
        else f"{hashlib.sha256(path.encode()).hexdigest()[:32]}{PurePosixPath(path).suffix}"
        for path, name in zip(paths, joined, strict=True)
    ]
