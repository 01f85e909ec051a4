"""Faults injected from outside: an audit hook numbers the file operations of this process, and the N-th fails or is its last.

Production code carries no hook. Python tells every `open`, `rename`, `link`, `mkdir` and `remove` to audit hooks before it
happens, whichever module asks for it; `os.fsync`, which has no such event, is wrapped.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any, Literal

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
Action = Literal["count", "kill", "power"] | int


class Faults:
    """Counts this process's changes below a folder and acts at one of them.

    Parameters
    ----------
    root : pathlib.Path
        Only operations on paths below it count.
    action : {"count", "kill", "power"} or int
        Count only; SIGKILL; SIGKILL while noting what had been made durable (see `cut_power`); or an errno to raise.
    at : int
        Number of the operation, from 1, before which to act; an errno is raised at every later one too.
    notes : pathlib.Path
        Where the count, or the durable operations, are written.
    """

    def __init__(self, root: Path, action: Action, at: int, notes: Path) -> None:
        self._root, self._action, self._at, self._notes = f"{root}/", action, at, notes
        self.count = 0
        self._busy = False
        self._durable = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if action == "power" else -1

    def install(self) -> None:
        """Begin; there is no end, so do this in a child process only."""
        fsync = os.fsync

        def audited(descriptor: int) -> None:
            target = str(Path(f"/proc/self/fd/{descriptor}").readlink())
            if not target.startswith(self._root) and f"{target}/" != self._root:
                fsync(descriptor)
                return
            self._happens("fsync", target)
            fsync(descriptor)
            status = os.fstat(descriptor)
            self._note(
                "dir" if stat.S_ISDIR(status.st_mode) else "file", target, status.st_ino, status.st_size
            )

        os.fsync = audited  # type: ignore[assignment]
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._busy or event not in _EVENTS:
            return
        if event == "open" and not (arguments[2] or 0) & _WRITING:
            return
        if event == "ctypes.dlsym":
            if arguments[1] == "renameat2":
                self._happens("exchange", self._root)
            return
        if not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        paths = [os.fsdecode(item) for item in arguments[:2] if isinstance(item, str | bytes | os.PathLike)]
        relative = event in ("os.remove", "os.rmdir") and arguments[-1] != -1
        if relative or any(path.startswith(self._root) for path in paths):
            self._happens(event, *paths)

    def _happens(self, event: str, *paths: str) -> None:
        self.count += 1
        if self._action == "count":
            self._busy = True
            self._notes.write_text(str(self.count))
            self._busy = False
        elif self.count == self._at and self._action in ("kill", "power"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif isinstance(self._action, int) and self.count >= self._at:
            raise OSError(self._action, os.strerror(self._action), *paths[:1])
        if event in ("os.rename", "os.link", "os.mkdir"):
            self._before_change(event, paths)

    def _before_change(self, event: str, paths: tuple[str, ...]) -> None:
        """Note a change of a folder, and keep what it replaces, for `cut_power`."""
        if self._action != "power":
            return
        self._busy = True
        source, target = paths[0], paths[-1]
        kept = ""
        if event == "os.rename" and Path(target).is_file():
            kept = f"{self._notes}.{self.count}"
            os.link(target, kept)
        number = Path(source).stat().st_ino if event != "os.mkdir" else 0
        self._note(event, target, number, 0, source, kept)
        self._busy = False

    def _note(self, kind: str, target: str, inode: int, size: int, source: str = "", kept: str = "") -> None:
        if self._durable >= 0:
            os.write(self._durable, json.dumps([kind, target, inode, size, source, kept]).encode() + b"\n")


_EVENTS = frozenset("open os.rename os.link os.mkdir os.remove os.rmdir os.truncate ctypes.dlsym".split())


def cut_power(root: Path, notes: Path, since_ns: int) -> int:
    """Lose what a killed process had not made durable, as a power cut may; return how many things were lost.

    A file changed since `since_ns` and not fsynced at its present size becomes empty. A rename, link or new folder whose
    parent was not fsynced afterwards never happened: the old file is back, the temporary has its old name.
    """
    lines = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    synced = {(item[2], item[3]) for item in lines if item[0] == "file"}
    lost = 0
    for path in root.rglob("*"):
        status = path.lstat()
        changed = stat.S_ISREG(status.st_mode) and status.st_mtime_ns > since_ns and status.st_size
        if changed and (status.st_ino, status.st_size) not in synced:
            os.truncate(path, 0)
            lost += 1
    for number in range(len(lines) - 1, -1, -1):
        kind, name, inode, _, source, kept = lines[number]
        target = Path(name)
        later = {item[1] for item in lines[number + 1 :] if item[0] == "dir"}
        if kind not in ("os.rename", "os.link", "os.mkdir") or str(target.parent) in later:
            continue
        if kind == "os.mkdir":
            if target.is_dir() and not any(target.iterdir()):
                target.rmdir()
                lost += 1
        elif target.exists() and target.stat().st_ino == inode:
            lost += 1
            if kind == "os.link":
                target.unlink()
            elif Path(source).parent.is_dir():
                target.rename(source)
            if kept:
                Path(kept).rename(target)
    return lost
