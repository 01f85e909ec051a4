from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from brainmri_core.errors import IntegrityError
from brainmri_core.system.checksums import check_sha256, sha256_file, sha256_json


def test_the_checksum_of_a_value_is_that_of_its_canonical_json() -> None:
    canonical = '{"a":null,"b":[1,"Zürich"]}'.encode()
    assert sha256_json({"b": [1, "Zürich"], "a": None}) == hashlib.sha256(canonical).hexdigest()
    with pytest.raises(ValueError, match="JSON"):
        sha256_json(float("inf"))


def test_changed_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one" * 1_000_000)
    digest = sha256_file(path)
    assert digest == hashlib.sha256(b"one" * 1_000_000).hexdigest()
    check_sha256(path, digest, "file")
    path.write_bytes(b"two")
    with pytest.raises(IntegrityError, match=r"The file .*a\.bin was changed"):
        check_sha256(path, digest, "file")
    with pytest.raises(IntegrityError, match=r"The pack .*gone is missing; run the stage that makes it"):
        check_sha256(tmp_path / "gone", "0", "pack")
