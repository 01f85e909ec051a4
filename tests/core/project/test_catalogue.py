from __future__ import annotations

from pathlib import Path

import pytest

from brainmri_core.errors import ConfigError
from brainmri_core.project.catalogue import find_entry, load_catalogue


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "datasets.yaml"
    path.write_text(text)
    return path


def entry(line: str) -> str:
    return f"datasets:\n  a/b:\n    source: archive\n    {line}\n"


def test_shipped_catalogue_names_the_data_sets_and_maps_their_folders() -> None:
    catalogue = load_catalogue()
    assert {
        "brainmri/phantom",
        "sartajbhuvaji/brain-tumor-classification-mri",
        "masoudnickparvar/brain-tumor-mri-dataset",
    } <= set(catalogue)
    found = catalogue["sartajbhuvaji/brain-tumor-classification-mri"]
    assert found.classes == ["glioma", "meningioma", "pituitary", "notumor"]
    folders = ["glioma_tumor", "meningioma_tumor", "pituitary_tumor", "no_tumor"]
    assert [found.canonical(name) for name in folders] == found.classes
    assert found.canonical(" GLIOMA_TUMOR") == "glioma"
    assert found.canonical("fracture") is None
    assert (found.owner, found.slug) == ("sartajbhuvaji", "brain-tumor-classification-mri")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "datasets:\n  a/b:\n    source: kaggle\n  ../x:\n    source: kaggle\n",
            [":4", "'../x'", "malformed"],
        ),
        ("datasets:\n  /etc/passwd:\n    source: kaggle\n", [":2", "malformed"]),
        ('datasets:\n  "a/b\\nc":\n    source: kaggle\n', [":2", "malformed"]),
        ("datasets:\n  a/b|c:\n    source: kaggle\n", [":2", "malformed"]),
        ("datasets:\n  a/b:\n    source: kaggle\n  a/b:\n    source: kaggle\n", [":4", "twice"]),
        ("datasets:\n  a/b:\n    source: kaggle\n  A/b:\n    source: kaggle\n", [":4", "repeats"]),
        ("datasets:\n  a/b:\n    source: ftp\n", [":3", "source", "'ftp'"]),
        ("datasets:\n  a/b:\n    source: kaggle\n    aliases:\n      x: nothing\n", ["'x'", "'nothing'"]),
        (
            "datasets:\n  a/b:\n    source: kaggle\n    labelled: false\n",
            [":2", "labelled: false goes with source: archive, not with kaggle"],
        ),
        (entry("labelled: false\n    aliases: {x: glioma}"), [":2", "has no use for aliases"]),
        (entry("labelled: false\n    patients: figshare-1512427"), [":2", "has no use for patients"]),
        (entry("classes: [glioma, Glioma]"), [":2", "'Glioma'", "one name"]),
        (entry("classes: [gl\u00e4ser, gla\u0308ser]"), [":2", "one name"]),
        (entry("classes: [no/tumor, glioma]"), [":2", "'no/tumor'", "cannot be a folder"]),
        (entry("classes: ['..', glioma]"), [":2", "'..'", "cannot be a folder"]),
        (entry("classes: ['glioma ', pituitary]"), [":2", "'glioma '", "cannot be a folder"]),
        (entry(f"classes: [{'n' * 300}, glioma]"), [":2", "cannot be a folder"]),
        (entry("aliases: {GLIOMA: notumor}"), [":2", "'GLIOMA'", "already means 'glioma'"]),
        (entry("aliases: {g: glioma, 'G ': notumor}"), [":2", "'G '", "already means 'glioma'"]),
        ("datasets: {}\n", ["datasets"]),
        ("data:\n  a/b:\n    source: kaggle\n", ["'data'", "did you mean 'datasets'"]),
    ],
)
def test_malformed_catalogue_is_refused_with_its_line(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_catalogue(write(tmp_path, text))
    for part in parts:
        assert part in str(caught.value)


def test_unknown_key_gets_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'brainmri/phantom'"):
        find_entry(load_catalogue(), "brainmri/fantom")
