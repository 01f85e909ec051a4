from __future__ import annotations

import io
import os
import resource
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainmri_core.config.data import ArchiveLimits
from brainmri_core.errors import BrainMRIError, SourceError, StorageError
from brainmri_core.sources.archive import extract_archive
from brainmri_core.sources.folder import copy_tree, list_folder
from brainmri_core.sources.local import find_archive
from tests import ROOT
from tests.counts import trials

LIMITS = ArchiveLimits()


def make_zip(
    path: Path, entries: list[tuple[str | zipfile.ZipInfo, bytes]], compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def special(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o777) << 16
    return info


def nameless() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("x")
    info.filename = ""
    return info


def extract(path: Path, limits: ArchiveLimits = LIMITS) -> list[str]:
    dest = path.parent / "dest"
    dest.mkdir()
    return extract_archive(path, dest, limits)


def test_files_come_out_whole_and_system_litter_is_left_out(tmp_path: Path) -> None:
    names = ["a/1.jpg", "a/2.jpg", "__MACOSX/a/._1.jpg", "a/.DS_Store", "inner.zip"]
    path = make_zip(
        tmp_path / "a.zip", [(name, name.encode() * 1000) for name in names], zipfile.ZIP_DEFLATED
    )
    assert extract(path) == ["a/1.jpg", "a/2.jpg", "inner.zip"]
    assert (tmp_path / "dest/a/1.jpg").read_bytes() == b"a/1.jpg" * 1000


@pytest.mark.parametrize(
    ("entries", "part"),
    [
        ([("../evil", b"x")], "leaves its folder"),
        ([("a/../../evil", b"x")], "leaves its folder"),
        ([("/etc/evil", b"x")], "leaves its folder"),
        ([("C:/evil", b"x")], "leaves its folder"),
        ([("a\\..\\evil", b"x")], "leaves its folder"),
        ([("..\\evil", b"x")], "leaves its folder"),
        ([(".. \\evil", b"x")], "leaves its folder"),
        ([("\\evil", b"x")], "leaves its folder"),
        ([("\\\\server\\share\\evil", b"x")], "leaves its folder"),
        ([("C:\\evil", b"x")], "leaves its folder"),
        ([("a\\1.jpg", b"x"), ("a/1.jpg", b"y")], "one file on some systems"),
        ([("a/1.jpg ", b"x"), ("a/1.jpg", b"y")], "one file on some systems"),
        ([(special("a/link", stat.S_IFLNK), b"/etc/passwd")], "link or a device"),
        ([("a/1.jpg", b"x"), ("A/1.JPG", b"y")], "one file on some systems"),
        ([("a/\u00e9.jpg", b"x"), ("a/e\u0301.jpg", b"y")], "one file on some systems"),
        ([("a/stra\u00dfe.jpg", b"x"), ("a/STRASSE.jpg", b"y")], "one file on some systems"),
        ([("a/1.jpg", b"x"), ("./a//1.jpg", b"y")], "one file on some systems"),
        ([("a/1.jpg", b"x"), ("A/2.jpg", b"y")], "one folder on some systems"),
        ([("\u00e9/1.jpg", b"x"), ("e\u0301/2.jpg", b"y")], "one folder on some systems"),
        ([("a", b"x"), ("a/b", b"y")], "as a file and as a folder"),
        ([("A", b"x"), ("a/b", b"y")], "as a file and as a folder"),
        ([(nameless(), b"x")], "leaves its folder"),
        ([(".", b"x")], "leaves its folder"),
        ([("//server/share/evil", b"x")], "leaves its folder"),
        ([(special("a/pipe", stat.S_IFIFO), b"")], "link or a device"),
        ([(special("a/disk", stat.S_IFBLK), b"")], "link or a device"),
        ([(special("a/link/", stat.S_IFLNK), b"/etc")], "link or a device"),
        ([("a/\r\n2026 INFO all is well.jpg", b"x")], "control characters"),
        ([("a/" + "\u00e9" * 128, b"x")], "too long"),
        ([("/".join(["n" * 200] * 12), b"x")], "too long"),
        ([("a/\x1b[31m.jpg", b"x")], "control characters"),
        ([("a/" + "n" * 300 + ".jpg", b"x")], "too long"),
        ([("__MACOSX/x", b"x")], "is empty"),
        ([], "is empty"),
    ],
)
def test_hostile_archives_are_refused_before_a_byte_is_written(
    tmp_path: Path, entries: list[tuple[str | zipfile.ZipInfo, bytes]], part: str
) -> None:
    path = make_zip(
        tmp_path / "a.zip", [("ok/0.jpg", b"x"), *entries] if entries and "empty" not in part else entries
    )
    with pytest.raises(SourceError, match=part) as caught:
        extract(path)
    assert str(path) in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert not list((tmp_path / "dest").iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "dest"]


def test_backslashes_of_a_zip_part_its_folders(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", [("set\\", b""), ("set\\a\\1.jpg", b"x"), ("set/b\\2.jpg", b"y")])
    assert extract(path) == ["set/a/1.jpg", "set/b/2.jpg"]
    assert (tmp_path / "dest/set/b/2.jpg").read_bytes() == b"y"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="one file"):
        extract(make_zip(tmp_path / "a.zip", [("a/1.jpg", b"x"), ("a/1.jpg", b"y")]))


@pytest.mark.parametrize(
    ("limits", "part"),
    [
        (ArchiveLimits(max_files=1), "max_files"),
        (ArchiveLimits(max_total_bytes=3_000_000, max_ratio=1e6), "max_total_bytes"),
        (ArchiveLimits(max_file_bytes=1_000_000), "max_file_bytes"),
        (ArchiveLimits(max_ratio=20), "zip bomb"),
    ],
)
def test_limits_hold(tmp_path: Path, limits: ArchiveLimits, part: str) -> None:
    path = make_zip(
        tmp_path / "a.zip", [("a", bytes(2_000_000)), ("b", bytes(2_000_000))], zipfile.ZIP_DEFLATED
    )
    with pytest.raises(SourceError, match=part):
        extract(path, limits)


@pytest.mark.parametrize("comment", [b"", b"made by somebody", b"PK\5\6" + bytes(18)])
@pytest.mark.parametrize("long", [False, True])
def test_too_many_entries_are_refused_before_the_listing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: bool, comment: bytes
) -> None:
    if long:  # the form for more than 65,535 entries
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        for number in range(6):
            opened.writestr(f"{number}.jpg", b"x" * number)
        opened.comment = comment
    (tmp_path / "dest").mkdir()
    if not comment.startswith(b"PK"):  # zipfile itself reads this comment as another, empty listing
        extract_archive(tmp_path / "a.zip", tmp_path / "dest", ArchiveLimits(max_files=6))

    def kept(*_: object) -> None:
        raise AssertionError("the whole listing was read")

    monkeypatch.setattr(zipfile, "ZipFile", kept)
    limits = ArchiveLimits(max_files=5)
    if comment.startswith(b"PK"):
        with pytest.raises(AssertionError):
            extract_archive(tmp_path / "a.zip", tmp_path / "dest", limits)
    else:
        with pytest.raises(SourceError, match=r"more than fetch\.limits\.max_files \(5\)"):
            extract_archive(tmp_path / "a.zip", tmp_path / "dest", limits)


def test_a_listing_that_says_it_is_huge_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.zip").open("wb") as file:
        file.truncate(3 << 30)  # sparse
        file.seek(3 << 30)
        file.write(b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, 1, 1, (3 << 30) - 1, 1, 0))
    (tmp_path / "dest").mkdir()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SourceError, match="is damaged"):
        extract_archive(tmp_path / "a.zip", tmp_path / "dest", ArchiveLimits())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100_000  # KiB


def test_too_little_memory_for_an_archive_is_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr("1.jpg", b"x")
    (tmp_path / "dest").mkdir()
    monkeypatch.setattr(zipfile, "ZipFile", exhausted)
    with pytest.raises(StorageError, match="there is no memory for it"):
        extract_archive(tmp_path / "a.zip", tmp_path / "dest", ArchiveLimits())


def test_folders_count_as_much_as_files(tmp_path: Path) -> None:
    names = ["a/b/1.jpg", "a/b/2.jpg", "a/c/3.jpg"]  # three files in three folders
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        for name in names:
            opened.writestr(name, b"x")
            (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "tree" / name).write_bytes(b"x")
    for most, fits in ((6, True), (5, False)):
        limits, dest = ArchiveLimits(max_files=most), tmp_path / f"dest{most}"
        dest.mkdir()
        if fits:
            extract_archive(tmp_path / "a.zip", dest, limits)
            assert list_folder(tmp_path / "tree", limits) == names
            continue
        with pytest.raises(SourceError, match="files and folders"):
            extract_archive(tmp_path / "a.zip", dest, limits)
        with pytest.raises(SourceError, match="files and folders"):
            list_folder(tmp_path / "tree", limits)
        assert not list(dest.iterdir())


def test_damage_and_foreign_files_are_caught(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", [("a.jpg", b"abcdefghij" * 50)])
    data = path.read_bytes()
    for number, (damaged, part) in enumerate(
        (
            (data.replace(b"abcdefghij", b"abcdefghiX", 1), "is damaged"),
            (data[: len(data) // 2], "cut short"),
            (data[:-1], "cut short"),
            (data[50:], "its beginning is missing"),
            (b"", "not a zip archive"),
            (b"<html>not found</html>", "not a zip archive"),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a.zip").write_bytes(damaged)
        with pytest.raises(SourceError, match=part) as caught:
            extract(folder / "a.zip")
        assert str(folder / "a.zip") in str(caught.value)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("declared", [1, 4_999, 5_001, 400_000])
def test_entry_that_lies_about_its_size_is_caught_and_never_outgrows_it(
    tmp_path: Path, compression: int, declared: int
) -> None:
    path = make_zip(tmp_path / "a.zip", [("a.jpg", b"abcde" * 1000)], compression)
    size, lie = (5000).to_bytes(4, "little"), declared.to_bytes(4, "little")
    assert path.read_bytes().count(size) == (2 if compression else 4)
    central = path.read_bytes().index(b"PK\x01\x02")
    data = bytearray(path.read_bytes())
    for offset in (22, central + 24):  # the uncompressed size, in the local header and in the listing
        assert data[offset : offset + 4] == size
        data[offset : offset + 4] = lie
    path.write_bytes(bytes(data))
    with pytest.raises(SourceError, match=r"is damaged|less of 'a\.jpg' than it declares"):
        extract(path)
    assert (tmp_path / "dest/a.jpg").stat().st_size <= declared


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", [("a.jpg", b"x" * 5000), ("b.jpg", b"x" * 5000)])
    data = path.read_bytes()
    second = data.rindex(b"PK\x01\x02")
    offset = int.from_bytes(data[second + 42 : second + 46], "little")
    path.write_bytes(data[: second + 42] + (offset - 100).to_bytes(4, "little") + data[second + 46 :])
    with pytest.raises(SourceError, match="share their bytes"):
        extract(path)
    assert not list((tmp_path / "dest").iterdir())


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_uncommon_methods_are_refused(tmp_path: Path, method: int) -> None:
    with pytest.raises(SourceError, match="uncommon method"):
        extract(make_zip(tmp_path / "a.zip", [("a.jpg", b"x" * 500)], method))


def test_name_hidden_behind_a_nul_is_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", [("a.jpgX.exe", b"x")])
    path.write_bytes(path.read_bytes().replace(b"a.jpgX.exe", b"a.jpg\0.exe"))
    with pytest.raises(SourceError, match="control characters"):
        extract(path)


def test_many_small_nested_archives_unpack_to_nothing_more(tmp_path: Path) -> None:
    inner = make_zip(tmp_path / "inner.zip", [("bomb", bytes(900_000))], zipfile.ZIP_DEFLATED).read_bytes()
    path = make_zip(tmp_path / "a.zip", [(f"{n}.zip", inner) for n in range(20)])
    assert len(extract(path)) == 20
    assert {file.read_bytes() for file in (tmp_path / "dest").iterdir()} == {inner}


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", [("a", b"x" * 3_000_000), ("b", b""), ("c", b"y")])
    seen: list[tuple[int, int]] = []
    (tmp_path / "dest").mkdir()
    extract_archive(path, tmp_path / "dest", LIMITS, progress=lambda *step: seen.append(step))
    assert seen[-1] == (3_000_001, 3_000_001)
    assert seen == sorted(seen) and len(seen) >= 4


def test_full_disk_is_one_sentence_with_the_remedy(tmp_path: Path) -> None:
    make_zip(tmp_path / "a.zip", [(f"{n}.jpg", b"x" * 100_000) for n in range(20)])
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/big.jpg").write_bytes(b"x" * 2_000_000)
    (tmp_path / "disk").mkdir()
    program = """
import sys
from pathlib import Path
from brainmri_core.config.data import ArchiveLimits
from brainmri_core.errors import StorageError
from brainmri_core.sources.archive import extract_archive
from brainmri_core.sources.folder import copy_tree
for step in (
    lambda: extract_archive(Path("a.zip"), Path("disk"), ArchiveLimits()),
    lambda: copy_tree(Path("tree"), Path("disk/tree"), ArchiveLimits()),
):
    try:
        step()
    except StorageError as error:
        print(error)
"""
    mount = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs disk && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], cwd=tmp_path).returncode:
        pytest.skip("no tmpfs can be mounted here: needs unshare and the right to mount")
    done = subprocess.run(
        [*mount, sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.count("there is no space left on the device; free some and run again") == 2


def test_target_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", [("a/1.jpg", b"x")])
    (tmp_path / "dest").mkdir()
    (tmp_path / "dest/a").write_bytes(b"in the way")
    with pytest.raises(StorageError, match="dest/a"):
        extract_archive(path, tmp_path / "dest", LIMITS)
    with pytest.raises(StorageError, match="Cannot unpack"):
        extract_archive(tmp_path, tmp_path / "dest", LIMITS)


def test_encrypted_entry_is_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", [("a.jpg", b"x" * 50)])
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(bytes(data))
    with pytest.raises(SourceError, match="encrypted"):
        extract(path)


def test_archives_are_found_by_name(tmp_path: Path) -> None:
    assert find_archive("o/s", None, tmp_path) is None
    (tmp_path / "s.zip").touch()
    assert find_archive("o/s", None, tmp_path) == tmp_path / "s.zip"
    (tmp_path / "o__s.zip").touch()
    assert find_archive("o/s", None, tmp_path) == tmp_path / "o__s.zip"
    assert find_archive("o/s", tmp_path, None) == tmp_path
    with pytest.raises(SourceError, match="does not exist"):
        find_archive("o/s", tmp_path / "gone", tmp_path)
    with pytest.raises(SourceError, match="not a folder"):
        find_archive("o/s", None, tmp_path / "gone")
    with pytest.raises(StorageError):
        find_archive("o/s", tmp_path / ("n" * 300), None)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="neither a file nor a folder"):
        find_archive("o/s", tmp_path / "pipe", None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    (source / "__MACOSX").mkdir()
    for name in ("a/1.jpg", "a/.DS_Store", "a/._1.jpg", "__MACOSX/x", "top.csv"):
        (source / name).write_bytes(name.encode())
    return source


def test_folder_is_copied_without_litter(tmp_path: Path, folder: Path) -> None:
    (folder / "a/2.jpg").symlink_to(folder / "a/1.jpg")
    assert copy_tree(folder, tmp_path / "copy", LIMITS) == ["a/1.jpg", "a/2.jpg", "top.csv"]
    assert list_folder(tmp_path / "copy", LIMITS) == ["a/1.jpg", "a/2.jpg", "top.csv"]
    assert (tmp_path / "copy/a/2.jpg").read_bytes() == b"a/1.jpg"
    assert not (tmp_path / "copy/a/2.jpg").is_symlink()
    (tmp_path / "alias").symlink_to(folder)
    assert copy_tree(tmp_path / "alias", tmp_path / "again", LIMITS) == ["a/1.jpg", "a/2.jpg", "top.csv"]


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (lambda source: (source / "b.jpg").symlink_to("/etc/hostname"), "symbolic link"),
        (lambda source: (source / "b").symlink_to("/etc"), "symbolic link"),
        (lambda source: (source / "b").symlink_to(source / "a"), "symbolic link"),
        (lambda source: (source / "b.jpg").symlink_to("a/gone.jpg"), "not a regular file"),
        (lambda source: (source / "b.jpg").symlink_to("b.jpg"), "symbolic link"),
        (lambda source: os.mkfifo(source / "b.jpg"), "not a regular file"),
        (lambda source: (source / "A").mkdir() or (source / "A/3.jpg").touch(), "one folder on some systems"),
        (lambda source: (source / "a/1.JPG").touch(), "one file on some systems"),
        (lambda source: (source / "a/\x1b[2J.jpg").touch(), "control characters"),
        (lambda source: Path(os.fsdecode(os.fsencode(source) + b"/\xff.jpg")).touch(), "broken text"),
        (lambda source: (source / "a\\b.jpg").touch(), "on other systems"),
        (lambda source: [path.unlink() for path in source.rglob("*") if path.is_file()], "is empty"),
    ],
)
def test_hostile_folders_are_refused_before_a_byte_is_written(
    tmp_path: Path, folder: Path, spoil: Callable[[Path], object], part: str
) -> None:
    spoil(folder)
    with pytest.raises(SourceError, match=part) as caught:
        copy_tree(folder, tmp_path / "copy", LIMITS)
    assert str(folder) in str(caught.value)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    "limits",
    [ArchiveLimits(max_files=1), ArchiveLimits(max_total_bytes=10), ArchiveLimits(max_file_bytes=5)],
)
def test_folders_are_held_to_the_limits(tmp_path: Path, folder: Path, limits: ArchiveLimits) -> None:
    with pytest.raises(SourceError, match=r"fetch\.limits"):
        copy_tree(folder, tmp_path / "copy", limits)


def test_folder_is_not_copied_into_itself(folder: Path) -> None:
    with pytest.raises(SourceError, match="the folder that it would be copied to"):
        copy_tree(folder, folder / "data/raw", LIMITS)
    assert not (folder / "data").exists()


def _valid() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.jpg", b"hello" * 40)
        archive.writestr("a/2.jpg", b"world" * 40)
        archive.writestr("b/", b"")
    return buffer.getvalue()


VALID = _valid()
NAMES = st.lists(
    st.sampled_from(["..", ".", "", "a", "A", "b.jpg", "\u00e9", "e\u0301", "C:", "\\"]), max_size=5
).map("/".join) | st.text(max_size=12)
LISTINGS = st.lists(
    st.tuples(
        NAMES,
        st.sampled_from([0, 0o100644, 0o40755, 0o120777, 0o10644]),
        st.integers(0, 3),
        st.binary(max_size=30),
    ),
    max_size=6,
)
CHANGES = st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=8)


def _listed(entries: list[tuple[str, int, int, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of the duplicate names this is after
        for name, mode, flags, data in entries:
            info = zipfile.ZipInfo("x")
            info.filename = name
            info.external_attr = mode << 16
            info.compress_type = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[flags % 2]
            try:
                archive.writestr(info, data)
            except UnicodeEncodeError:
                continue  # a lone surrogate, which no zip file can hold
    return buffer.getvalue()


def _changed(changes: list[tuple[int, int]]) -> bytes:
    data = bytearray(VALID)
    for position, value in changes:
        data[position] = value
    return bytes(data)


ARCHIVES = st.builds(_listed, LISTINGS) | st.builds(_changed, CHANGES) | st.binary(max_size=100)


def _unpacks_inside_or_raises_our_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.zip").write_bytes(data)
        (folder / "dest").mkdir()
        try:
            written = extract_archive(folder / "a.zip", folder / "dest", LIMITS)
        except BrainMRIError as error:
            assert str(error).isprintable() and str(error).endswith(".")
        else:
            found = [path for path in (folder / "dest").rglob("*") if not path.is_dir()]
            assert sorted(path.relative_to(folder / "dest").as_posix() for path in found) == sorted(written)
            assert all(path.is_file() and not path.is_symlink() for path in found)
        assert sorted(path.name for path in folder.iterdir()) == ["a.zip", "dest"]


@settings(max_examples=trials(100, 300), deadline=None)
@given(ARCHIVES)
def test_any_archive_unpacks_inside_or_raises_our_error(data: bytes) -> None:
    _unpacks_inside_or_raises_our_error(data)


@pytest.mark.slow
@settings(max_examples=30_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(ARCHIVES)
def test_thirty_thousand_archives_unpack_inside_or_raise_our_error(data: bytes) -> None:
    _unpacks_inside_or_raises_our_error(data)
