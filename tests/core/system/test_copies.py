from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from brainmri_core.system.copies import Copies
from brainmri_core.system.folder_manifest import folder_manifest

HOLDER = """
import sys, time
from pathlib import Path
from brainmri_core.system.copies import Copies
copies = Copies(Path(sys.argv[1]), 1)
copies.use(sys.argv[2])
print("used", flush=True)
time.sleep(1000)
"""


def fill(root: Path, *names: str, size: int = 100) -> None:
    """Copies of folders, the first of them the longest unused."""
    for age, name in enumerate(reversed(names)):
        (root / name).mkdir(parents=True)
        (root / name / "file").write_bytes(b"x" * size)
        copies = Copies(root, None)
        copies.keep_manifest(name, folder_manifest(root / name).text())
        moment = time.time() - 1000 * (age + 1)
        os.utime(root / ".store/manifests" / f"{name}.json", (moment, moment))


def there(root: Path) -> set[str]:
    return {path.parent.relative_to(root).as_posix() for path in root.rglob("file")}


def test_the_longest_unused_copies_go_until_there_is_room(tmp_path: Path) -> None:
    fill(tmp_path, "a/old", "a/middle", "b/new")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/file").write_bytes(b"in no manifest" * 1000)
    assert Copies(tmp_path, 350).make_room(50) == []
    assert Copies(tmp_path, 350).make_room(51) == ["a/old"]
    assert there(tmp_path) == {"a/middle", "b/new", "own"}
    assert Copies(tmp_path, None).make_room(10**9) == []
    assert Copies(tmp_path, 10).make_room(0) == ["a/middle", "b/new"]
    assert there(tmp_path) == {"own"}


def test_what_a_living_process_uses_stays(tmp_path: Path) -> None:
    fill(tmp_path, "theirs", "ours", "nobodys")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), "theirs"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "used\n"
        ours = Copies(tmp_path, 1)
        ours.use("ours")
        assert ours.make_room(0) == ["nobodys"]
        assert there(tmp_path) == {"theirs", "ours"}
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()
    assert ours.make_room(0) == ["theirs"]
    assert len(list((tmp_path / ".store/in_use").glob("*.txt"))) == 1, (
        "the notes of the dead are cleared away"
    )


def test_using_a_copy_makes_it_the_newest(tmp_path: Path) -> None:
    fill(tmp_path, "first", "second")
    code = "import sys; from pathlib import Path; from brainmri_core.system.copies import Copies; Copies(Path(sys.argv[1]), 1).use('first')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert Copies(tmp_path, 150).make_room(0) == ["second"]
