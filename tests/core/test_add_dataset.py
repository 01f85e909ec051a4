from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from brainmri_core.add_dataset import add_entry, class_named, guess_entry
from brainmri_core.config.files import CONFIG_VARIABLE
from brainmri_core.errors import BrainMRIError, ConfigError, SourceError
from brainmri_core.project.catalogue import catalogue_path, load_catalogue


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)


def folders(root: Path, *names: str, images: int = 2) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(images):
            (root / name / f"{number}.png").write_bytes(b"")
    return root


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("no_tumor", "notumor"),
        ("NoTumour", "notumor"),
        ("no tumor", "notumor"),
        ("4_healthy_brains", "notumor"),
        ("GBM", "glioma"),
        ("Glioblastoma", "glioma"),
        ("1 - meningiomas", "meningioma"),
        ("Pituitary Tumor", "pituitary"),
        ("nodule", None),
        ("schwannoma", None),
    ],
)
def test_a_folders_name_says_its_class(folder: str, name: str | None) -> None:
    assert class_named(folder) == name


def test_an_entry_is_guessed_from_a_zip_written_and_used(tmp_path: Path) -> None:
    source = folders(tmp_path / "set", "Training/glioma_tumor", "Training/healthy", "Testing/glioma_tumor")
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as handle:
        for path in sorted(source.rglob("*.png")):
            handle.write(path, path.relative_to(source))
        handle.writestr("__MACOSX/Training/._glioma", b"")
    guess = guess_entry("clinic/brains", archive)
    assert guess.folders == {"glioma_tumor": "glioma", "healthy": "notumor"}
    assert guess.images == {"glioma_tumor": 4, "healthy": 2}
    assert guess.origins == {"training": 4, "testing": 2}
    catalogue_path().parent.mkdir()
    catalogue_path().write_text("# kept\n")
    assert add_entry(guess) == catalogue_path()
    assert catalogue_path().read_text().startswith("# kept\n")
    entry = load_catalogue()["clinic/brains"]
    assert entry.classes == ["glioma", "notumor"]
    assert entry.canonical("GLIOMA_tumor") == "glioma"
    add_entry(guess_entry("clinic/more", source))
    assert {"clinic/brains", "clinic/more", "brainmri/phantom"} <= set(load_catalogue())


def test_folders_of_other_words_are_classes_of_their_own(tmp_path: Path) -> None:
    guess = guess_entry("a/b", folders(tmp_path / "set", "wrap/glioma", "wrap/schwannoma"))
    assert guess.folders == {"glioma": "glioma", "schwannoma": "schwannoma"}
    add_entry(guess)
    assert load_catalogue()["a/b"].classes == ["glioma", "schwannoma"]


def test_what_cannot_be_guessed_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    two = folders(
        tmp_path / "two", *(f"{kind}/{name}" for kind in ("raw", "augmented") for name in ("gbm", "healthy"))
    )
    with pytest.raises(ConfigError, match=r"2 trees of class folders: 'augmented' .*fetch\.subset"):
        guess_entry("a/b", two)
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/1.png").write_bytes(b"")
    with pytest.raises(SourceError, match=r"lies in a class folder \(1 images among 1 files\)"):
        guess_entry("a/b", tmp_path / "flat")
    with pytest.raises(SourceError, match="does not exist"):
        guess_entry("a/b", tmp_path / "absent.zip")
    (tmp_path / "no.zip").write_bytes(b"x")
    with pytest.raises(SourceError, match="is not a zip archive"):
        guess_entry("a/b", tmp_path / "no.zip")
    with zipfile.ZipFile(tmp_path / "nameless.zip", "w") as handle:
        handle.writestr("gbm/1.png", b"")
        handle.filelist[0].filename = ""
    with pytest.raises(SourceError):
        guess_entry("a/b", tmp_path / "nameless.zip")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/gbm").symlink_to(tmp_path / "flat")
    with pytest.raises(SourceError, match="a symbolic link"):
        guess_entry("a/b", tmp_path / "linked")
    with zipfile.ZipFile(tmp_path / "escape.zip", "w") as handle:
        handle.writestr("../../gbm/1.png", b"")
    with pytest.raises(BrainMRIError):
        guess_entry("a/b", tmp_path / "escape.zip")
    good = folders(tmp_path / "good", "gbm", "healthy")
    for key, message in (("../x", "malformed"), ("Brainmri/Phantom", "in the catalogue already")):
        with pytest.raises(ConfigError, match=message):
            add_entry(guess_entry(key, good))
    assert not catalogue_path().exists()
    assert list(tmp_path.glob("configs/*")) == []
