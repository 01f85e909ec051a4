"""Trials on a project in an object store, in children of the warm process.

Whatever talks to the store does so in a process of its own: its client does not live through a fork.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from brainmri_core.config import STAGES, PipelineConfig
from brainmri_core.project.bucket_gc import collect_in_bucket
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import history, latest_pointer, pointer_files, read_pointer
from brainmri_core.project.pointers import FetchPointer
from brainmri_core.project.run_schema import manifest_files, read_manifest
from brainmri_core.project.run_sharing import take_in_runs
from brainmri_core.project.sample_table import read_samples
from brainmri_core.system.checksums import sha256_file
from brainmri_core.system.object_store import Bucket
from tests.faults.launches import PHANTOM
from tests.faults.tiny import POINTERS, configuration, run_stage
from tests.store_operations import Operations, counted

PERIOD_S = 10.0
_ATTEMPTS = 3
LINKS = {
    "split": "fetch_pointer",
    "resize": "mapping_pointer",
    "validate": "pack_pointer",
    "train": "pack_pointer",
    "evaluate": "checkpoint_pointer",
}


def prepare(url: str, environment: dict[str, str]) -> dict[str, tuple[int, list[str]]]:
    """Lay down, for each stage, a project in which all ran once and everything before the stage ran anew.

    Returns, by stage, how many operations of the store it takes, and the content hashes before and after it.
    """
    os.environ.update(environment)
    for stage in STAGES:
        _alone(_run, f"{url}/base", stage, f"old-{stage}", "old", "", 0)
    found = {}
    for stage in STAGES:
        _alone(_copy, f"{url}/base", f"{url}/{stage}")
        before = _alone(_latest, f"{url}/base", stage)
        count = _alone(_run, f"{url}/base", stage, f"new-{stage}", "new", "count", 0)
        found[stage] = count[0], [before, _alone(_latest, f"{url}/base", stage)]
        assert before != found[stage][1][1], f"{stage}: both variants give the same"
    return found


def crash(
    url: str, environment: dict[str, str], stage: str, hashes: list[str], action: str, at: int
) -> dict[str, Any]:
    """Kill a stage at an operation, look from a machine that knows nothing, run the stage on another, look again.

    How many operations a stage takes differs by a few from run to run. Where one ends before it is killed, another is killed at
    its last operation but one.
    """
    os.environ.update(environment)
    place = f"{url}/trial-{stage}-{action}-{at}"
    for attempt in range(_ATTEMPTS):
        trial = f"{place}/{attempt}"
        _alone(_copy, f"{url}/{stage}", trial)
        status, ended = _status(_run, trial, stage, "disturbed", "new", action, at)
        if status != 0:
            break
        at = ended[0] - 1
    problems = [f"after the crash: {text}" for text in _alone(_seen, trial, stage, hashes)]
    again = _alone(_run, trial, stage, "again", "new", "", 0)
    if again[1] != hashes[1]:
        problems.append(f"run again it gave {again[1]}, not {hashes[1]}")
    problems += [f"after the rerun: {text}" for text in _alone(_seen, trial, stage, hashes[1:])]
    _alone(_remove, place)
    return {"status": status, "problems": problems}


def all_stages(url: str, disturbed: dict[str, str], environment: dict[str, str]) -> dict[str, Any]:
    """Run all stages, each on a machine of its own, through a disturbed connection; look through an undisturbed one."""
    os.environ.update(disturbed)
    made = {stage: _alone(_run, url, stage, f"only-{stage}", "old", "", 0)[1] for stage in STAGES}
    os.environ.update(environment)
    return {"made": made, "problems": _alone(_seen, url, "evaluate", [made["evaluate"]])}


def pipeline(
    url: str, environment: dict[str, str], home: str, config: str, run_id: str, stages: list[str]
) -> None:
    """Run stages as ``brainmri pipeline`` does on a machine of its own, and end with its exit code."""
    os.environ.update(environment)
    os.environ |= {"BRAINMRI_HOME": url, "DAGSTER_HOME": home}
    from brainmri_dagster.cli import app

    skipped = [word for stage in STAGES if stage not in stages for word in ("--skip", stage)]
    app(["pipeline", "--config", config, "--run-id", run_id, "--dataset", PHANTOM, *skipped])


def prepare_clearing(url: str, environment: dict[str, str], number: int) -> int:
    """Lay down projects in which a stage ended and another died before its pointer; return how many operations gc takes."""
    os.environ.update(environment)
    for stage in ("fetch", "split"):
        _alone(_run, f"{url}/base", stage, f"old-{stage}", "old", "", 0)
    _alone(_run, f"{url}/base", "fetch", "crashed", "new", "", 0)
    _alone(_forget, f"{url}/base", "crashed")
    for trial in range(number):
        _alone(_copy, f"{url}/base", f"{url}/{trial}")
    time.sleep(PERIOD_S + 1)
    return int(_alone(_clear, f"{url}/base", 0, ""))


def clearing(
    url: str, environment: dict[str, str], trials: list[tuple[str, int]], hashes: list[str]
) -> list[dict[str, Any]]:
    """Kill gc at an operation, both when it moves and when it frees; look after each, and after a gc that ends."""
    os.environ.update(environment)
    results = []
    for number, (action, at) in enumerate(trials):
        status, _ = _status(_clear, f"{url}/{number}", at, action)
        results.append({"status": status, "problems": _alone(_seen, f"{url}/{number}", "split", hashes)})
    for round_ in range(2):
        time.sleep(PERIOD_S + 1)
        for number, (action, at) in enumerate(trials):
            kill = (at, action) if round_ == 0 else (0, "")
            _status(_clear, f"{url}/{number}", *kill)
            _alone(_clear, f"{url}/{number}", 0, "")
            results[number]["problems"] += _alone(_seen, f"{url}/{number}", "split", hashes)
    time.sleep(PERIOD_S + 1)
    for number in range(len(trials)):
        _alone(_clear, f"{url}/{number}", 0, "")
        left = [name for name in _alone(_names, f"{url}/{number}") if "crashed" in name or "trash/" in name]
        results[number]["problems"] += [f"{name} is left" for name in left]
        results[number]["problems"] += _alone(_seen, f"{url}/{number}", "split", hashes)
    return results


def latest_of(url: str, environment: dict[str, str], stage: str) -> str:
    """Return the content hash of a stage's newest result."""
    os.environ.update(environment)
    return str(_alone(_latest, url, stage))


def _clear(url: str, at: int, action: str) -> int:
    operations = Operations(at, _die, after=action == "kill after")
    with tempfile.TemporaryDirectory() as folder, counted(operations):
        collect_in_bucket(Layout.at(url, folder), PipelineConfig(), PERIOD_S, dry_run=False)
    return operations.count


def _forget(url: str, run_id: str) -> None:
    """Remove the records of a run, as if it had died before it wrote its pointer."""
    bucket = Bucket(url)
    for name in bucket.list("outputs/"):
        if run_id in name:
            bucket.remove(name)
    old = next(name for name in bucket.list("outputs/pointers/fetch/") if "old-fetch" in name)
    bucket.put(f"{old.split('/history/')[0]}/latest.json", bucket.get(old) or b"")


def _names(url: str) -> list[str]:
    return [item.name for item in Bucket(url).listed("") if item.size]


def looked_at(
    url: str, environment: dict[str, str], runs: dict[str, str], stages: list[str], whole: bool
) -> list[str]:
    """Return what is mixed or missing after runs, each of a variant, and what is torn in the `whole` project.

    The machine that looks knows nothing of it before.
    """
    os.environ.update(environment)
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout.at(url, folder)
        problems = _damage(layout) if whole else []
        for stage in stages:
            problems += _mixed(layout, stage, runs)
        take_in_runs(layout)
        ended = {path.parent.name: read_manifest(path) for path in manifest_files(layout)}
        for run_id in runs:
            manifest = ended.get(run_id)
            if manifest is None or manifest.status != "success" or sorted(manifest.stages) != sorted(stages):
                problems.append(f"the manifest of {run_id} says {manifest and manifest.status}")
        return problems


def _mixed(layout: Layout, stage: str, runs: dict[str, str]) -> list[str]:
    pointers = list(history(layout, POINTERS[stage], PHANTOM))
    found = {pointer.run_id: pointer for pointer in pointers}
    problems = [f"{stage}: {run_id} left no history copy" for run_id in set(runs) - set(found)]
    problems += [f"{stage}: two copies of one run"] * (len(found) != len(pointers))
    newest = latest_pointer(layout, POINTERS[stage], PHANTOM)
    if newest is None or newest != pointers[0]:
        problems.append(f"{stage}: latest.json is {newest}, and the newest copy {pointers[:1]}")
    by_variant: dict[str, set[str]] = {}
    for run_id in set(runs) & set(found):
        by_variant.setdefault(runs[run_id], set()).add(found[run_id].content_hash)
        link = LINKS.get(stage)
        source = json.loads(layout.absolute(getattr(found[run_id], link)).read_text()) if link else {}
        if source.get("run_id", run_id) != run_id:
            problems.append(f"{stage} of {run_id} read what {source['run_id']} made")
    return problems + [f"{stage}: {name} gave {made}" for name, made in by_variant.items() if len(made) > 1]


def _run(url: str, stage: str, run_id: str, variant: str, action: str, at: int) -> tuple[int, str]:
    """Run a stage on a machine with no copies; count the operations of the store, or end before or after one."""
    operations = Operations(at, _die, after=action == "kill after")
    with tempfile.TemporaryDirectory() as folder, counted(operations):
        pointer = run_stage(Path(folder), stage, run_id, configuration(variant), url)
    return operations.count, pointer.content_hash


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _latest(url: str, stage: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        found = latest_pointer(Layout.at(url, folder), POINTERS[stage], PHANTOM)
    assert found is not None
    return found.content_hash


def _seen(url: str, stage: str, allowed: list[str]) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout.at(url, folder)
        pointer = latest_pointer(layout, POINTERS[stage], PHANTOM)
        problems = _damage(layout)
    if pointer is None or pointer.content_hash not in allowed:
        problems.append(f"latest.json of {stage} is {pointer}")
    return problems


def _damage(layout: Layout) -> list[str]:
    """Follow every pointer to its files, all of which come out of the store with the right hash, and to its images."""
    problems = []
    for pointer_type, path in pointer_files(layout):
        pointer = read_pointer(layout, pointer_type, path)
        values = pointer.model_dump()
        for name in NAMED & set(values):
            stored, digest = values[name], values.get(f"{name}_sha256")
            if stored and not layout.absolute(stored).exists():
                problems.append(f"{path.name} names {stored}, which is not there")
            elif stored and digest and sha256_file(layout.absolute(stored)) != digest:
                problems.append(f"{stored} is not what {path.name} says")
        if isinstance(pointer, FetchPointer):
            root = layout.absolute(pointer.dataset_root)
            table = read_samples(layout.absolute(pointer.samples))
            for image, digest in zip(table["path"], table["file_sha256"], strict=True):
                if sha256_file(root / image) != digest:
                    problems.append(f"the image {image} is not the one of {path.name}")
    return problems


NAMED = frozenset(
    "dataset_root samples path split_json pack report checkpoint history curves folder metrics predictions "
    "fetch_pointer mapping_pointer pack_pointer checkpoint_pointer pointer_path".split()
)


def _copy(source: str, target: str) -> None:
    here, there = Bucket(source), Bucket(target)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: there.put(name, here.get(name) or b""), here.list("")))


def _remove(url: str) -> None:
    bucket = Bucket(url)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(bucket.remove, bucket.list("")))


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own and return its result."""
    status, value = _status(function, *arguments)
    assert status == 0, f"{function.__name__}{arguments} ended with {status}"
    return value


def _status(function: Callable[..., Any], *arguments: Any) -> tuple[int, Any]:
    folder = tempfile.mkdtemp(prefix="brainmri-alone-")
    answer = Path(folder) / "answer.json"
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            tempfile.tempdir = folder  # what a kill leaves goes with it
            answer.write_text(json.dumps(function(*arguments)))
            code = 0
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent looks at what is left
            print(f"{type(error).__name__}: {error}", flush=True)
            code = getattr(error, "exit_code", 99)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    value = json.loads(answer.read_text()) if code == 0 else None
    shutil.rmtree(folder)
    return code, value
