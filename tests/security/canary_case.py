"""Where a secret could have been written, and how."""

from __future__ import annotations

import base64
import contextlib
import re
import sqlite3
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from PIL import Image, UnidentifiedImageError


def spellings(text: str) -> set[bytes]:
    """How a text may lie in a file: as it is, in UTF-16, quoted, or anywhere in base64."""
    raw = text.encode()
    found = {raw, text.encode("utf-16-le"), quote(text).encode(), text.lower().encode()}
    for shift in range(3):  # base64 of the bytes that do not share a group with neighbours
        inner = raw[(3 - shift) % 3 :]
        found.add(base64.b64encode(inner[: len(inner) // 3 * 3]))
    return found


def contents(path: Path) -> Iterator[bytes]:
    """A file's bytes, and what lies packed in them."""
    data = path.read_bytes()
    yield data
    if path.suffix == ".parquet":
        yield pd.read_parquet(path).to_csv().encode()
    elif path.suffix in (".png", ".jpg", ".webp"):
        with contextlib.suppress(UnidentifiedImageError), Image.open(path) as image:
            yield repr(image.info).encode()
    elif data.startswith(b"SQLite format 3"):
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            for (table,) in database.execute(
                "select name from sqlite_master where type = 'table'"
            ).fetchall():
                for row in database.execute(f'select * from "{table}"'):
                    yield repr(row).encode()
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as opened:
            for name in opened.namelist():
                yield name.encode() + opened.read(name)
    for found in re.findall(rb"data:image/[a-z]+;base64,([A-Za-z0-9+/]+)", data):
        yield base64.b64decode(
            found[: len(found) // 4 * 4]
        )  # a database may have cut it at the end of a page


def holding(paths: list[Path], texts: set[bytes]) -> list[Path]:
    """The files that hold one of the texts in any of its spellings."""
    return [path for path in paths if any(text in part for part in contents(path) for text in texts)]
