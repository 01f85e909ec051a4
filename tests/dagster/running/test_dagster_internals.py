from __future__ import annotations

import re
from pathlib import Path

import brainmri_dagster

PACKAGE = Path(brainmri_dagster.__file__).parent


def test_one_file_imports_what_is_private_to_dagster() -> None:
    private = re.compile(r"^\s*(from|import) dagster\w*(\.\w+)*\._", re.MULTILINE)
    found = [path.name for path in PACKAGE.rglob("*.py") if private.search(path.read_text())]
    assert found == ["dagster_internals.py"]
