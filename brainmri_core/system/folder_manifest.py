"""The manifest of a folder in an object store, which maps paths to contents."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from brainmri_core.errors import IntegrityError
from brainmri_core.system.checksums import sha256_file
from brainmri_core.system.json_files import json_text
from brainmri_core.system.storage import TEMPORARY_PREFIX
from brainmri_core.system.threads import cores, threads


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if (
        not parts
        or path.startswith("/")
        or ".." in parts
        or "\0" in path
        or PurePosixPath(path).as_posix() != path
    ):
        raise ValueError("a path leaves its folder")
    return path


class ManifestFile(BaseModel):
    """The content of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class FolderManifest(BaseModel):
    """All files of a folder, by path relative to it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    files: dict[Annotated[str, AfterValidator(_inside)], ManifestFile]

    def text(self) -> bytes:
        """Return the manifest as JSON, in a form that is the same for the same content."""
        return json_text(self.model_dump(mode="json")).encode()


def folder_manifest(folder: Path) -> FolderManifest:
    """Return the manifest of a folder, without the temporary files that are still being written.

    Raises
    ------
    StorageError
        If a file cannot be read.
    """
    paths: list[Path] = []
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(TEMPORARY_PREFIX)]
        paths += [Path(here) / name for name in files if not name.startswith(TEMPORARY_PREFIX)]
    paths.sort()
    with threads(cores()) as pool:
        hashes = list(pool.map(sha256_file, paths))
    return FolderManifest(
        files={
            path.relative_to(folder).as_posix(): ManifestFile(sha256=digest, size=path.stat().st_size)
            for path, digest in zip(paths, hashes, strict=True)
        }
    )


def read_folder_manifest(data: bytes, url: str, folder: str) -> FolderManifest:
    """Read a manifest.

    Parameters
    ----------
    data : bytes
        Its JSON.
    url, folder : str
        The bucket and the folder, for the error.

    Raises
    ------
    IntegrityError
        If it is not a manifest, or names a path outside its folder.
    """
    try:
        return FolderManifest.model_validate_json(data)
    except ValidationError:
        raise IntegrityError(
            f"The manifest of {folder} in {url} is damaged; run the stage that makes the folder again."
        ) from None
