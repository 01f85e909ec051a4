"""The built-in synthetic data set: the same bytes for the same seed, laid out and varied as the real one is."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from brainmri_core.config.data import PhantomConfig
from brainmri_core.errors import SourceError
from brainmri_core.sources.phantom import write_phantom

TINY = PhantomConfig(subjects_per_class=2, slices_per_subject=2, copies_per_kind=1, label_conflicts=1)
SMALL = PhantomConfig(subjects_per_class=6, slices_per_subject=3, copies_per_kind=2, label_conflicts=1)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_seed_gives_the_same_bytes_and_another_seed_gives_others(tmp_path: Path) -> None:
    first, again, other = tmp_path / "first", tmp_path / "again", tmp_path / "other"
    assert write_phantom(first, TINY) == write_phantom(again, TINY)
    write_phantom(other, TINY.model_copy(update={"seed": TINY.seed + 1}))
    assert content(first) == content(again) != content(other)


def test_it_is_laid_out_and_varied_as_the_real_set_is(tmp_path: Path) -> None:
    truth = write_phantom(tmp_path / "set", SMALL)
    files = sorted((tmp_path / "set").glob("T*ing/*/*.jpg"))
    assert {path.parent.parent.name for path in files} == {"Training", "Testing"}
    assert {path.parent.name for path in files} == {
        "glioma_tumor",
        "meningioma_tumor",
        "pituitary_tumor",
        "no_tumor",
    }
    assert sorted(item.path for item in truth.images) == [
        str(path.relative_to(tmp_path / "set")) for path in files
    ]
    assert len({item.plane for item in truth.images}) == 3
    sizes = set()
    for path in files:
        with Image.open(path) as image:
            assert image.format == "JPEG"
            sizes.add(image.size)
    assert len(sizes) > 5


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").touch()
    with pytest.raises(SourceError, match="is not empty"):
        write_phantom(tmp_path, SMALL)
