"""Trials in children of the warm process: disturb one stage, check what a reader then sees, and run the stage again."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from brainmri_core.config import STAGES
from brainmri_core.copies import fingerprint
from brainmri_core.gc import collect_garbage
from brainmri_core.project import layout as layout_module
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import latest_pointer
from brainmri_core.system.storage import TEMPORARY_PREFIX
from brainmri_core.verify import verify
from tests.faults.injection import Action, Faults, cut_power
from tests.faults.tiny import PHANTOM, POINTERS, configuration, run_stage


def prepare(finished: str, folder: str) -> dict[str, tuple[int, list[str]]]:
    """Prepare, for each stage, a project in which all stages ran once and those before it ran again with other data.

    Returns, by stage, how many file operations it takes, and the content hashes before and after it runs undisturbed.
    """
    root, notes = Path(folder) / "project", Path(folder) / "notes"
    shutil.copytree(finished, root)
    found = {}
    for stage in STAGES:
        shutil.copytree(root, Path(folder) / stage)
        before = latest_pointer(Layout(root=root), POINTERS[stage], PHANTOM)
        assert _disturbed(root, stage, f"new-{stage}", "count", 0, notes) == 0
        after = latest_pointer(Layout(root=root), POINTERS[stage], PHANTOM)
        assert before is not None and after is not None
        assert before.content_hash != after.content_hash, f"{stage}: both variants give the same"
        found[stage] = int(notes.read_text()), [before.content_hash, after.content_hash]
    return found


def crash(
    folder: str, stage: str, hashes: list[str], action: Action, at: int, after_s: float
) -> dict[str, object]:
    """Disturb a stage, look at what is left, run the stage again, look again."""
    root, notes = _copy(folder, stage, f"{action}-{at}-{after_s:.4f}")
    since = time.time_ns()
    status = _disturbed(root, stage, "disturbed", action, at, notes, after_s)
    lost = cut_power(root, notes, since) if action == "power" else 0
    problems = [f"after the crash: {text}" for text in _seen(root, stage, hashes)]
    if at % 2:  # half of the time somebody clears up before the rerun does
        collect_garbage(Layout(root=root), configuration("new"), dry_run=False)
        problems += [f"after gc at once: {text}" for text in _seen(root, stage, hashes)]
        problems += [f"left by gc: {path}" for path in _temporaries(root)]
    again = run_stage(root, stage, "again", configuration("new"))
    if again.content_hash != hashes[1]:
        problems.append(f"run again it gave {again.content_hash}, not {hashes[1]}")
    problems += [f"after the rerun: {text}" for text in _seen(root, stage, hashes[1:])]
    collect_garbage(Layout(root=root), configuration("new"), dry_run=False)
    problems += [f"after gc: {text}" for text in _seen(root, stage, hashes[1:])]
    problems += [f"left over: {path}" for path in _temporaries(root)]
    shutil.rmtree(root)
    for path in notes.parent.glob(f"{notes.name}*"):
        path.unlink()
    return {"status": status, "lost": lost, "problems": problems}


def _copy(folder: str, stage: str, name: str) -> tuple[Path, Path]:
    root = Path(folder) / f"trial-{stage}-{name}-{os.getpid()}"
    shutil.copytree(Path(folder) / stage, root)
    os.sync() if name.startswith("power") else None
    return root, root.with_name(f"{root.name}.notes")


def _disturbed(
    root: Path, stage: str, run_id: str, action: Action, at: int, notes: Path, after_s: float = 0.0
) -> int:
    """Run a stage in a child with a fault; `after_s` kills it from outside after that many seconds instead."""
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            os.setsid()
            if not after_s:
                Faults(root, action, at, notes).install()
            run_stage(root, stage, run_id, configuration("new"))
            code = 0
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent looks at what is left
            print(f"{type(error).__name__}: {error}", flush=True)
            code = getattr(error, "exit_code", 99)
        finally:
            os._exit(code)
    if after_s:
        time.sleep(after_s)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _seen(root: Path, stage: str, allowed: list[str]) -> list[str]:
    """Return what is wrong with what a reader sees: damage, or a pointer that is neither the old nor the new one."""
    layout = Layout(root=root)
    problems = [problem.message for problem in verify(layout).problems]
    pointer = latest_pointer(layout, POINTERS[stage], PHANTOM)
    if pointer is None or pointer.content_hash not in allowed:
        problems.append(f"latest.json of {stage} is {pointer}")
    return problems


def _temporaries(root: Path) -> list[str]:
    return [str(path) for path in root.rglob(f"{TEMPORARY_PREFIX}*")]


def full_disk(folder: str, stage: str, hashes: list[str], mount: str, kib: int) -> dict[str, object]:
    """Run a stage with `kib` of space left, then with enough."""
    root = Path(mount) / f"project-{kib}"
    shutil.copytree(Path(folder) / stage, root)
    used = shutil.disk_usage(mount).used // 1024
    subprocess.run(["mount", "-o", f"remount,size={used + kib}k", mount], check=True)
    status, said = _outcome(root, stage)
    subprocess.run(["mount", "-o", "remount,size=256m", mount], check=True)
    return {"status": status, "said": said, "problems": _afterwards(root, stage, hashes)}


def read_only_disk(folder: str, stage: str, hashes: list[str], mount: str) -> dict[str, object]:
    """Run a stage on a read-only disk, then on a writable one."""
    root = Path(mount) / "project"
    shutil.copytree(Path(folder) / stage, root)
    subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
    status, said = _outcome(root, stage)
    subprocess.run(["mount", "-o", "remount,rw", mount], check=True)
    return {"status": status, "said": said, "problems": _afterwards(root, stage, hashes)}


def full_temporary_folder(folder: str, stage: str, hashes: list[str], mount: str) -> dict[str, object]:
    """Run a stage with TMPDIR on a full disk, then on a usable one."""
    root, _ = _copy(folder, stage, "temporary")
    subprocess.run(["mount", "-o", "remount,size=4k", mount], check=True)

    def begin() -> None:
        fingerprint._IN_MEMORY = 0  # as for a large set, whose thumbnails lie in a temporary file
        os.environ["TMPDIR"] = mount
        tempfile.tempdir = mount
        with contextlib.suppress(OSError):
            (Path(mount) / "full").write_bytes(bytes(100_000))

    status, said = _outcome(root, stage, begin)
    return {"status": status, "said": said, "problems": _afterwards(root, stage, hashes)}


def little_memory(folder: str, stage: str, hashes: list[str], mib: int) -> dict[str, object]:
    """Run a stage that may take `mib` more than the process has, then without a limit."""
    root, _ = _copy(folder, stage, f"memory-{mib}")

    def begin() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + (mib << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    status, said = _outcome(root, stage, begin)
    return {"status": status, "said": said, "problems": _afterwards(root, stage, hashes)}


def clock(folder: str, stage: str, hashes: list[str], kind: str) -> dict[str, object]:
    """Run a stage with a clock that stands still, or goes back a day at each look, and run it again with the right time."""
    root, _ = _copy(folder, stage, kind)
    layout = Layout(root=root)
    history = layout.pointer_dir(POINTERS[stage].kind, PHANTOM) / "history"
    before = len(list(history.iterdir()))

    def begin() -> None:
        days = itertools.count(1)
        stopped = datetime(2026, 1, 1, tzinfo=UTC)

        class Clock(datetime):
            @classmethod
            def now(cls, tz: object = None) -> datetime:
                return stopped if kind == "stopped" else stopped - timedelta(days=next(days))

        layout_module.datetime = Clock  # type: ignore[misc]

    status, said = _outcome(root, stage, begin)
    problems = [] if status == 0 else [said]
    problems += _seen(root, stage, hashes[1:])
    if kind == "stopped":
        status, said = _outcome(root, stage, begin, "twin")
        problems += [] if status == 0 else [said]
    more = len(list(history.iterdir())) - before
    problems += _afterwards(root, stage, hashes)
    return {"status": status, "history": more, "problems": problems}


def _outcome(
    root: Path, stage: str, begin: Callable[[], None] = lambda: None, run_id: str = "disturbed"
) -> tuple[int, str]:
    """Run a stage in a child after `begin`; return its exit code and what it said."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            os.dup2(writer, 1)
            begin()
            run_stage(root, stage, run_id, configuration("new"))
            code = 0
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent looks at what is left
            os.write(1, f"{type(error).__name__}: {error}".encode()[:4000])
            code = getattr(error, "exit_code", 99)
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def _afterwards(root: Path, stage: str, hashes: list[str]) -> list[str]:
    """Look at what is left, run the stage again, look again, and remove the project."""
    problems = [f"after the fault: {text}" for text in _seen(root, stage, hashes)]
    again = run_stage(root, stage, "again", configuration("new"))
    if again.content_hash != hashes[1]:
        problems.append(f"run again it gave {again.content_hash}, not {hashes[1]}")
    problems += [f"after the rerun: {text}" for text in _seen(root, stage, hashes[1:])]
    problems += [f"left over: {path}" for path in _temporaries(root)]
    shutil.rmtree(root)
    return problems
