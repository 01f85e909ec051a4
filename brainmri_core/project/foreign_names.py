"""Foreign file names: how they are compared and shown, and which are refused."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from brainmri_core.config.data import ArchiveLimits
from brainmri_core.errors import SourceError
from brainmri_core.escaping import printable

LEFT_OUT_FOLDERS = {"__MACOSX"}
RAISE = "raise the limit if that is right"
_LEFT_OUT_FILES = {".DS_Store", "Thumbs.db", "desktop.ini"}
_DEEPEST = 32


def shown_name(name: str | Path) -> str:
    """Return a foreign name fit for a message: escaped, and shortened in the middle where it is too long."""
    text = printable(str(name))
    return text if len(text) <= 200 else f"{text[:120]}...{text[-60:]}"


def compared(name: str) -> str:
    """Return the form in which two names of files, folders or classes are compared; it is never stored.

    Backslashes count as slashes. Empty parts and ``.``, blanks around a part, the case of letters, and whether an accented
    letter is one character (NFC) or two (NFD) make no difference.
    """
    parts = (part.strip() for part in name.replace("\\", "/").split("/"))
    text = "/".join(part for part in parts if part not in ("", "."))
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def stored_names(given: Iterable[str], stored: Iterable[str]) -> list[str | None]:
    """Return the stored name that each given name means: the same text, else one that compares equal, else None."""
    exact = dict.fromkeys(stored)
    alike = {compared(name): name for name in exact}
    return [name if name in exact else alike.get(compared(name)) for name in given]


def too_many(where: str, limits: ArchiveLimits) -> str:
    """Return the error message for an archive or folder with more files than the limit."""
    return f"{where} holds more than fetch.limits.max_files ({limits.max_files}) files and folders; {RAISE}."


def safe_name(name: str, original: str, where: str) -> str:
    """Return the path of an archive entry in one spelling.

    Backslashes, which some Windows programs write in zip files, become slashes before the path is checked.

    Parameters
    ----------
    name : str
        Path of the entry.
    original : str
        Its name as it stands in the archive, for messages.
    where : str
        The archive, for messages.

    Raises
    ------
    SourceError
        If the path leaves the folder, holds control characters, or is too long or too deep.
    """
    name = name.replace("\\", "/")
    path = PurePosixPath(name)
    if (
        path.is_absolute()
        or any(part.strip() == ".." for part in path.parts)  # Windows ignores blanks at the end
        or not path.parts
        or (len(name) > 1 and name[1] == ":")
    ):
        raise SourceError(
            f"{where} holds the entry {shown_name(original)!r}, which leaves its folder, here or on other systems; do not trust it."
        )
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in original):
        raise SourceError(
            f"{where} holds the entry {shown_name(original)!r} with control characters or broken text in its name; rename it."
        )
    if any(len(part.encode()) > 255 for part in path.parts) or len(name.encode()) > 2000:
        raise SourceError(
            f"{where} holds an entry whose name is too long ({shown_name(name)!r}); shorten it."
        )
    if len(path.parts) > _DEEPEST:
        raise SourceError(
            f"{where} holds an entry more than {_DEEPEST} folders deep ({shown_name(name)!r}); do not trust it."
        )
    return path.as_posix()


def is_litter(name: str) -> bool:
    """Say whether a file is one that operating systems leave behind, such as ``.DS_Store``."""
    path = PurePosixPath(name)
    return (
        bool(LEFT_OUT_FOLDERS & set(path.parts)) or path.name in _LEFT_OUT_FILES or path.name.startswith("._")
    )


def check_collisions(names: Iterable[str], where: str, limits: ArchiveLimits) -> None:
    """Refuse too many names, and names that are the same on a system that ignores case or normalises Unicode.

    Folders count as files do, including those that appear only in the paths of files.

    Raises
    ------
    SourceError
        For the first collision, or when the limit is exceeded.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name in names:
        folded = compared(name)
        if folded in files:
            raise SourceError(
                f"{where} holds {shown_name(files[folded])!r} and {shown_name(name)!r}, which are one file on some systems; rename one."
            )
        files[folded] = name
        for parent in PurePosixPath(name).parents:
            spelling = folders.setdefault(compared(parent.as_posix()), parent.as_posix())
            if spelling != parent.as_posix():
                raise SourceError(
                    f"{where} holds the folders {shown_name(spelling)!r} and {shown_name(parent.as_posix())!r}, which are one folder on "
                    "some systems; rename one."
                )
        if len(files) + len(folders) > limits.max_files + 1:  # the root, ".", does not count
            raise SourceError(too_many(where, limits))
    for folded in files.keys() & folders.keys():
        raise SourceError(
            f"{where} holds {shown_name(files[folded])!r} as a file and as a folder; rename one."
        )
