from __future__ import annotations

from pathlib import Path

import pytest

from brainmri_core.errors import IntegrityError
from brainmri_core.system.json_files import json_text, read_json, write_json


def test_nan_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"v": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_document_is_written_readable_and_read_back(tmp_path: Path) -> None:
    value = {"b": [1, "Zürich"], "a": None}
    assert json_text(value) == '{\n  "b": [\n    1,\n    "Zürich"\n  ],\n  "a": null\n}\n'
    write_json(tmp_path / "a.json", value)
    assert (tmp_path / "a.json").read_text() == json_text(value)
    assert read_json(tmp_path / "a.json") == value


def test_damaged_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in (b'{"v": 1', b"\xff", b'{"v": NaN}', b'{"v": 1e999}', b'"\\ud800"', b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(IntegrityError, match=r"a\.json is not valid JSON"):
            read_json(path)
