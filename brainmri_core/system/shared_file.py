"""A file that one machine replaces again and again, so that another can go on from its newest content.

The content is an object named by its SHA-256, and a small object says which content is the newest. The content before it is
removed. Two machines may do the same work: whichever is further along replaces the other's.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from brainmri_core.errors import IntegrityError
from brainmri_core.system.checksums import sha256_file
from brainmri_core.system.json_files import json_text
from brainmri_core.system.object_store import Bucket, LostRaceError, blob

SHARED = "shared"


class Version(BaseModel):
    """One content of a shared file.

    Attributes
    ----------
    progress : tuple of int
        How far the work is that the content belongs to; of two versions the greater one is the newer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    progress: tuple[int, ...] = Field(strict=False)


class SharedFile:
    """A file of the cache folder, and its newest content in the bucket.

    Parameters
    ----------
    bucket : Bucket
        The project's place in the object store.
    name : str
        The file's path relative to the project root.
    path : pathlib.Path
        The file on this machine.
    """

    def __init__(self, bucket: Bucket, name: str, path: Path) -> None:
        self._bucket, self._name, self.path = bucket, f"{SHARED}/{name}.json", path

    def newest(self) -> Version | None:
        """Return the newest version in the bucket, or None.

        Raises
        ------
        IntegrityError
            If the object that says which it is was damaged.
        """
        return self._read(self._bucket.get(self._name))

    def take(self, than: tuple[int, ...] | None) -> bool:
        """Download the newest content if it is further along `than` what is here; return whether it was.

        A content that the bucket says it has, and has not, counts as none: its training ended in between.
        """
        before: Version | None = None
        while True:
            found = self.newest()
            if found is None or found == before or (than is not None and found.progress <= than):
                return False
            if self._bucket.download(blob(found.sha256), self.path, found.sha256):
                return True
            before = found  # replaced since it was read

    def replace(self, progress: tuple[int, ...]) -> int:
        """Make the file's content the newest, unless the bucket has one that is as far along; return the bytes that it took."""
        found = self._bucket.get_tagged(self._name)
        if (present := self._read(found and found[0])) is not None and present.progress >= progress:
            return 0
        own = Version(sha256=sha256_file(self.path), size=self.path.stat().st_size, progress=progress)
        self._bucket.upload(blob(own.sha256), self.path)
        while True:
            present = self._read(found and found[0])
            if present is not None and present.progress >= progress:
                return own.size  # another machine has overtaken this one
            if self._put(own, found and found[1]):
                if present is not None and present.sha256 != own.sha256:
                    self._bucket.remove(blob(present.sha256))
                return own.size
            found = self._bucket.get_tagged(self._name)

    def remove(self) -> None:
        """Remove the file's newest content from the bucket."""
        present = self.newest()
        self._bucket.remove(self._name)
        if present is not None:
            self._bucket.remove(blob(present.sha256))

    def _put(self, version: Version, tag: object) -> bool:
        text = json_text(version.model_dump(mode="json")).encode()
        if tag is None:
            return self._bucket.put_new(self._name, text)
        try:
            self._bucket.compare_and_put(self._name, text, tag)
        except LostRaceError:
            return False
        return True

    def _read(self, data: bytes | None) -> Version | None:
        try:
            return None if data is None else Version.model_validate_json(data)
        except ValidationError:
            raise IntegrityError(
                f"The object {self._name} in {self._bucket.url} is damaged; delete it to begin the work on it again."
            ) from None
