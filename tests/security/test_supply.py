"""The packages that this project uses: licences are listed, versions audited, vulnerable versions excluded."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from scripts import audit, licences, pins
from tests import ROOT

LOCK = pins.LOCK.read_text()


def test_list_of_licences_is_that_of_the_pinned_packages() -> None:
    listed = (ROOT / "docs/licences.md").read_text()
    rows = [line.split(" | ") for line in listed.splitlines() if line.startswith("| ") and "==" not in line][
        1:
    ]
    assert {row[0].removeprefix("| "): row[1] for row in rows} == licences.pinned(LOCK)
    try:
        expected = licences.table(LOCK)
    except SystemExit as other_versions:
        pytest.skip(f"other packages than the pinned ones are installed: {other_versions}")
    assert listed == expected, "run python -m scripts.licences > docs/licences.md"


def test_no_package_forces_its_licence_on_this_project() -> None:
    # The LGPL asks nothing of a program that only imports the library, as Dagster's Postgres storage, an extra, does.
    allowed = "| psycopg2-binary | "
    for line in (ROOT / "docs/licences.md").read_text().splitlines():
        assert "GPL" not in line or (
            line.startswith(allowed) and "| LGPL with exceptions | extras" in line
        ), line


@pytest.mark.parametrize(
    ("name", "least", "hole"),
    [
        ("pillow", "12.3", "CVEs of its decoders"),
        ("torch", "2.10", "CVE-2025-32434, loading with weights_only"),
        ("pyarrow", "14.0.1", "CVE-2023-47248, unpickling from Parquet"),
        ("pyyaml", "5.4", "CVE-2020-14343"),
        ("jinja2", "3.1.6", "CVE-2025-27516"),
    ],
)  # fmt: skip
def test_versions_with_known_vulnerabilities_are_excluded(name: str, least: str, hole: str) -> None:
    assert Version(licences.pinned(LOCK)[name]) >= Version(least), hole
    required = {item.name: item.specifier for item in map(Requirement, metadata.requires("brainmri") or [])}
    if name in required and name in ("pillow", "torch", "pyarrow"):
        before = f"{Version(least).major - 1}.99"
        assert not required[name].contains(before), f"setup.cfg lets {name} {before} in: {hole}"


def test_every_pin_has_hashes() -> None:
    pinned = pins.pins(LOCK)
    assert len(pinned) > 100
    assert [name for name, (_, hashes) in pinned.items() if not hashes] == []
    assert len(re.findall(r"(?m)^\S+==", LOCK)) == len(pinned)


def test_pins_are_read_with_hashes_comments_and_markers() -> None:
    zeros, ones = "sha256:" + "0" * 64, "sha256:" + "1" * 64
    text = f"A_b==1.0 \\\n    --hash={zeros} \\\n    --hash={ones}\nc==2 # note\n# d==3\ne==4 ; python_version > '3'\n"
    assert pins.pins(text) == {"a-b": ("1.0", [zeros, ones]), "c": ("2", []), "e": ("4", [])}


def test_the_lock_holds_what_the_metadata_ask_for() -> None:
    pinned = pins.pins(LOCK)
    for item in map(Requirement, metadata.requires("brainmri") or []):
        if item.name != "brainmri":
            assert item.specifier.contains(pinned[pins.canonical(item.name)][0]), item


def test_an_archive_with_another_hash_is_refused(tmp_path: Path) -> None:
    """uv itself, as make calls it, on an archive that was changed after it was pinned."""
    archive = tmp_path / "demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr("demo.py", "")
        wheel.writestr("demo-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
        wheel.writestr(
            "demo-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("demo-1.0.dist-info/RECORD", "")
    assert "uv pip install --quiet --require-hashes" in (ROOT / "Makefile").read_text()
    uv = [sys.executable, "-m", "uv", "pip", "install", "--no-index", "--find-links", str(tmp_path)]
    uv += ["--no-cache", "--target", str(tmp_path / "there"), "--require-hashes"]
    good = "sha256:" + hashlib.sha256(archive.read_bytes()).hexdigest()
    for hashes, said in (
        ("", "no hashes"),
        (" --hash=sha256:" + "0" * 64, "Hash mismatch"),
        (f" --hash={good}", None),
    ):
        listed = tmp_path / "requirements.lock"
        listed.write_text(f"demo==1.0{hashes}\n")
        done = subprocess.run([*uv, "-r", str(listed)], capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == (said is None), done.stderr
        assert (tmp_path / "there/demo.py").exists() == (said is None)


def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *answers: object) -> None:
    """Put a pip-audit in place that gives these answers, one a call; None ends it with a traceback."""
    (tmp_path / "pip_audit.py").write_text(
        "import json, pathlib, sys\n"
        f"answers = json.loads({json.dumps(answers)!r})\n"
        f"count = pathlib.Path({str(tmp_path / 'count')!r})\n"
        "number = int(count.read_text()) if count.exists() else 0\n"
        "count.write_text(str(number + 1))\n"
        "assert answers[number] is not None, 'no network'\n"
        "print(json.dumps({'dependencies': answers[number]}))\n"
        "sys.exit(any(item.get('vulns') for item in answers[number]))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


BAD = {"name": "pip", "version": "9", "vulns": [{"id": "PYSEC-1", "fix_versions": ["19"]}]}
GOOD = {"name": "a", "version": "1", "vulns": []}
UNKNOWN = {"name": "pip", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("answers", "strict", "code", "said"),
    [
        ([None], False, 0, "Not audited"),
        ([None], True, 2, "Not audited"),
        ([[UNKNOWN]], False, 0, "Not audited"),
        ([[GOOD]], True, 2, "Not audited"),
        ([[BAD], None], True, 2, "stopped answering"),
        ([[BAD], [GOOD, UNKNOWN]], True, 0, "1 packages audited, 0 vulnerabilities, 1 unknown"),
        ([[BAD], [GOOD, {**BAD, "name": "b"}]], False, 1, "b 9: PYSEC-1, fixed in 19"),
    ],
)
def test_audit_tells_clean_from_not_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answers: list[object],
    strict: bool,
    code: int,
    said: str,
) -> None:
    service(tmp_path, monkeypatch, *answers)
    assert audit.audit("a==1\nb==9\n", strict) == code
    assert said in capsys.readouterr().out
