"""CSV tables about the images of a data set, from the package or from the user."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Literal

from brainmri_core.errors import ConfigError
from brainmri_core.project.foreign_names import compared, shown_name

_SLICE = re.compile(r"#[^#/]*$")
_SHIPPED = files("brainmri_core.defaults") / "patients"
_LARGEST = 200_000_000
_SEPARATOR = re.compile(r'"?sep=([,;\t|:])"?[,;\t ]*\r?', re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class ImageTable:
    """A table with one row per image.

    Attributes
    ----------
    where : str
        The file, for messages.
    key : str
        How a row names its image: by ``path`` below the data set's root, or by ``slice``, the file name without folder
        and ending.
    names : list of str
        The image of each row, as written in the table.
    values : list of dict
        The other columns of each row, without blanks around them.
    """

    where: str
    key: Literal["path", "slice"]
    names: list[str]
    values: list[dict[str, str]]


def shipped_tables() -> list[str]:
    """List the names of the package's tables."""
    names = (item.name for item in _SHIPPED.iterdir())
    return sorted(name.removesuffix(".csv") for name in names if name.endswith(".csv"))


def is_file(name: str) -> bool:
    """Say whether a table in the catalogue is a user's file, which ends in .csv; names of package tables do not."""
    return name.lower().endswith(".csv")


def read_table(source: str | Path, value: Sequence[str], further: Sequence[str] = ()) -> ImageTable:
    """Read a table.

    Parameters
    ----------
    source : str or pathlib.Path
        Path of a CSV file, or the name of one of `shipped_tables`.
    value : sequence of str
        Columns of which the table must have one besides ``path`` (or ``slice``).
    further : sequence of str
        Optional columns to read; all others are ignored.

    Raises
    ------
    ConfigError
        If there is no such table, it is not CSV in UTF-8, a cell holds a control character, or a column is missing.
    """
    text, where = _text(source)
    wanted = " or ".join(map(repr, value))
    try:
        rows = csv_rows(text)
    except csv.Error as error:
        raise ConfigError(f"{where} cannot be read ({error}); give a CSV with path and {value[0]}.") from None
    names = [name.strip().casefold() for name in rows[0]] if rows else []
    key: Literal["path", "slice"] = "slice" if "slice" in names and "path" not in names else "path"
    missing = "'path'" if key not in names else None if set(value) & set(names) else wanted
    if missing:
        raise ConfigError(f"{where} lacks the column {missing}; its header must be path,{value[0]}.")
    places = {name: names.index(name) for name in (key, *value, *further) if name in names}
    body = [row for row in rows[1:] if any(cell.strip() for cell in row)]
    cells = [{name: row[n].strip() if n < len(row) else "" for name, n in places.items()} for row in body]
    paths = [row.pop(key) for row in cells]
    cells = [{name: _cleaned(cell) for name, cell in row.items()} for row in cells]
    for number, row in enumerate(cells, 1):
        if (column := next((name for name, cell in row.items() if _CONTROL.search(cell)), None)) is not None:
            raise ConfigError(
                f"{where} has a control character in the column {column!r} of row {number} below the header; remove it, so "
                "that no two names look alike that are not."
            )
    return ImageTable(where, key, paths, cells)


def csv_rows(text: str) -> list[list[str]]:
    """Return the rows of a CSV separated by commas, semicolons or tabs; the header decides which.

    Spreadsheets write semicolons in countries with decimal commas. Excel may declare the separator in a first line of its
    own (``sep=;``).

    Raises
    ------
    csv.Error
        If the text is not CSV.
    """
    header, _, below = text.partition("\n")
    named = _SEPARATOR.fullmatch(header)
    delimiter = named[1] if named else max(",;\t", key=header.count)
    return list(csv.reader(io.StringIO(below if named else text, newline=""), delimiter=delimiter))


def _cleaned(cell: str) -> str:
    """Normalise a cell (NFC, no invisible characters), so that names that look alike are equal."""
    seen = "".join(char for char in unicodedata.normalize("NFC", cell) if unicodedata.category(char) != "Cf")
    return seen.strip()


def check_shipped(name: str) -> None:
    """Raise ConfigError for a name that is not in `shipped_tables`."""
    if name not in shipped_tables():
        raise ConfigError(
            f"There is no table {shown_name(name)!r} in the package; write the name of a .csv file, or one of "
            f"{', '.join(shipped_tables())}."
        )


def _text(source: str | Path) -> tuple[str, str]:
    if isinstance(source, str) and not is_file(source):
        check_shipped(source)
        return (_SHIPPED / f"{source}.csv").read_text("utf-8"), f"The table {source} of the package"
    where = f"The file {source}"
    try:
        path = Path(source)
        if path.stat().st_size > _LARGEST:
            raise ConfigError(f"{where} is larger than {_LARGEST} bytes; give a CSV with one row per image.")
        return path.read_text("utf-8-sig"), where
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise ConfigError(f"{where} cannot be read ({reason}); give a CSV with a row per image.") from None


class ImageFinder:
    """Find the images that a table names, whatever system the names were written on.

    Parameters
    ----------
    paths : sequence of str
        Path of each image below the data set's root.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._exact: dict[str, list[int]] = {}
        self._alike: dict[str, list[int]] = {}
        self._stem: dict[str, list[int]] = {}
        for row, path in enumerate(paths):
            file = _SLICE.sub("", path)
            for name in {path, file}:
                self._exact.setdefault(name, []).append(row)
                self._alike.setdefault(compared(name), []).append(row)
            self._stem.setdefault(_slice_name(PurePosixPath(file).stem), []).append(row)

    def rows(self, table: ImageTable, name: str) -> list[int]:
        """Return the positions of the images that a name means: one, all slices of a file with several, or none."""
        if table.key == "slice":
            return self._stem.get(_slice_name(name), [])
        return self._exact.get(name) or self._alike.get(compared(name), [])


def _slice_name(name: str) -> str:
    """Return the form in which names of slices are compared; numbers lose leading zeros, so that 0017 is 17."""
    return (name.lstrip("0") or "0") if name.isascii() and name.isdigit() else compared(name)
