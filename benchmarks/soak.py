"""Soak: many runs of the phantom graph in one daemon; memory, file handles and temporary files before and after.

    python -m benchmarks.soak --runs 200

Prints a line per run and, at the end, the growth of each process between the run after the warm-up and the last one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from tests.e2e.conftest import PHANTOM, Server, make_project, serve

WARM_UP = 3
LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on PythonError { message } }
}
"""


def launch(server: Server) -> None:
    selector = {
        "repositoryLocationName": "brainmri",
        "repositoryName": "__repository__",
        "jobName": "pipeline",
    }
    params = {
        "selector": selector,
        "runConfigData": {},
        "mode": "default",
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": PHANTOM}]},
    }
    answer = server.query(LAUNCH, {"params": params})["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer


def processes(session: int) -> dict[str, tuple[int, int]]:
    """Return resident KiB and open handles of every lasting process of a session, by role and process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if (
                not entry.name.isdigit()
                or int((entry / "stat").read_text().rpartition(")")[2].split()[3]) != session
            ):
                continue
            command = (entry / "cmdline").read_text().replace("\0", " ")
            role = next(
                (name for name in ("webserver", "_daemon", "code-server", "api grpc") if name in command), ""
            )
            if role:
                resident = next(
                    int(line.split()[1])
                    for line in (entry / "status").read_text().splitlines()
                    if line.startswith("VmRSS")
                )
                found[f"{role} {entry.name}"] = (resident, len(list((entry / "fd").iterdir())))
        except (OSError, StopIteration):
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--json", type=Path, help="also write the measurements here, run by run")
    options = parser.parse_args()
    measured: list[dict[str, tuple[int, int]]] = []
    with tempfile.TemporaryDirectory(prefix="brainmri-soak-") as name:
        folder = Path(name)
        temporary = folder / "tmp"
        temporary.mkdir()
        project = make_project(folder / "work")
        project.env["TMPDIR"] = str(temporary)
        serving = serve(project)
        server = next(serving)
        files, seconds = [], []
        for number in range(1, options.runs + 1):
            began = time.monotonic()
            launch(server)
            runs = server.wait_for_runs(number, timeout=1800)
            assert all(run["status"] == "SUCCESS" for run in runs), runs
            seconds.append(time.monotonic() - began)
            time.sleep(2)
            measured.append(processes(os.getsid(server.process.pid)))
            halves = list(project.root.rglob(".tmp-*"))
            files.append((len(list(temporary.iterdir())), len(halves)))
            total = sum(memory for memory, _ in measured[-1].values())
            print(
                f"run {number}: {seconds[-1]:.0f} s, {total / 1024:.0f} MiB and "
                f"{sum(handles for _, handles in measured[-1].values())} handles in {len(measured[-1])} processes, "
                f"{files[-1][0]} entries in TMPDIR, {files[-1][1]} temporaries in the project",
                flush=True,
            )
            if options.json:
                options.json.write_text(
                    json.dumps({"processes": measured, "files": files, "seconds": seconds})
                )
        next(serving, None)
    start = min(WARM_UP, len(measured) - 1)
    for name in sorted(set(measured[start]) & set(measured[-1])):
        (memory, handles), (later, more) = measured[start][name], measured[-1][name]
        print(f"{name:<20} {memory / 1024:.0f} -> {later / 1024:.0f} MiB, {handles} -> {more} handles")
    print(
        f"TMPDIR entries {files[start][0]} -> {files[-1][0]}; temporaries {files[start][1]} -> {files[-1][1]}"
    )
    print(f"{len(measured)} runs, median {statistics.median(seconds):.0f} s")


if __name__ == "__main__":
    main()
