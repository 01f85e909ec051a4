"""CSV tables about the images of a data set, shipped with the package or brought by the user."""

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
    """Rows that each speak of an image.

    Attributes
    ----------
    where : str
        The file, for messages.
    key : str
        What names the image: its ``path`` below the data set's root, or its ``slice``, the file's name without folder and
        ending.
    names : list of str
        The image of each row, as written.
    values : list of dict
        The other columns of each row, without blanks around them.
    """

    where: str
    key: Literal["path", "slice"]
    names: list[str]
    values: list[dict[str, str]]


def shipped_tables() -> list[str]:
    """Name the tables that come with the package."""
    names = (item.name for item in _SHIPPED.iterdir())
    return sorted(name.removesuffix(".csv") for name in names if name.endswith(".csv"))


def is_file(name: str) -> bool:
    """Say whether a catalogue's table is a file of the user's, which ends in .csv; the package's have no ending."""
    return name.lower().endswith(".csv")


def read_table(source: str | Path, value: Sequence[str], further: Sequence[str] = ()) -> ImageTable:
    """Read a table.

    Parameters
    ----------
    source : str or pathlib.Path
        Path of a CSV file, or the name of one of `shipped_tables`.
    value : sequence of str
        Columns of which it must have one besides ``path`` (or ``slice``).
    further : sequence of str
        Columns that are read where it has them; all others are left aside.

    Raises
    ------
    ConfigError
        If there is no such table, it is no CSV in UTF-8, or it lacks a column.
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
    """Return the rows of a CSV that commas, semicolons or tabs part, as its header does.

    Spreadsheets write semicolons where the comma parts decimals, and Excel may say so in a line of its own (``sep=;``).

    Raises
    ------
    csv.Error
        If it is none.
    """
    header, _, below = text.partition("\n")
    named = _SEPARATOR.fullmatch(header)
    delimiter = named[1] if named else max(",;\t", key=header.count)
    return list(csv.reader(io.StringIO(below if named else text, newline=""), delimiter=delimiter))


def _cleaned(cell: str) -> str:
    """Return a cell in one form: two names that look alike, as one system or another writes them, are the same."""
    seen = "".join(char for char in unicodedata.normalize("NFC", cell) if unicodedata.category(char) != "Cf")
    return seen.strip()


def check_shipped(name: str) -> None:
    """Refuse a name that is none of `shipped_tables`."""
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
    """Finds the images that a table means, whatever system its names were written on."""

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
        """Return the positions of the images a name means: one, every slice of a file that holds several, or none."""
        if table.key == "slice":
            return self._stem.get(_slice_name(name), [])
        return self._exact.get(name) or self._alike.get(compared(name), [])


def _slice_name(name: str) -> str:
    """Return a slice's name; numbers are compared as numbers, so that 0017 is 17."""
    return (name.lstrip("0") or "0") if name.isascii() and name.isdigit() else compared(name)
