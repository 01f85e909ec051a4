"""How long a training continues after "Terminate" in the UI: seconds from the request until the run's process is gone.

    python -m benchmarks.bench_termination --rounds 3

A real webserver and daemon on a fresh project; the request is the one the UI's button sends. Also says whether what was
learnt is kept and whether any process of the run is left.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from tests.e2e.conftest import PHANTOM, Server, make_project, serve
from tests.e2e.test_ui import launch, manifest_of, wait_for_status

TERMINATE = """
mutation($run: String!) {
  terminateRun(runId: $run, terminatePolicy: SAFE_TERMINATE) {__typename}
}
"""


def runs(process: Path) -> bool:
    """Say whether a process is still running; a zombie is not."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def one_round(server: Server) -> tuple[float, float]:
    """Return the seconds from the request to the state that the stopped training kept, and to its process's end."""
    run_id = launch(server, "retrain", model_checkpoint={"loop": {"epochs": 1000}})
    folder = None
    while folder is None or '"epoch": 2' not in folder.read_text():
        time.sleep(0.2)
        started = [item for item in server.project.manifests() if item["dagster_run_id"] == run_id]
        if started:
            path = server.project.root / "outputs/orchestrator" / started[0]["run_id"] / "logs/train.log"
            folder = path if path.is_file() else None
    process = Path(f"/proc/{manifest_of(server, run_id)['stages']['train']['pid']}")
    asked = time.time()
    answer = server.query(TERMINATE, {"run": run_id})["terminateRun"]
    assert answer["__typename"] == "TerminateRunSuccess", answer
    while runs(process):
        time.sleep(0.01)
    gone = time.time() - asked
    status = wait_for_status(server, run_id, "CANCELED", "FAILURE", "SUCCESS")
    assert status == "CANCELED", status
    states = list((server.project.root / "models" / PHANTOM / "resume").rglob("*.pth"))
    assert states, "nothing of what was learnt is kept"
    kept = max(state.stat().st_mtime for state in states) - asked
    assert kept > 0, "the state is older than the request"
    for state in states:
        state.unlink()
    return kept, gone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        project = make_project(Path(name) / "project")
        prepared = project.brainmri("pipeline", "--skip", "evaluate")
        assert prepared.returncode == 0, prepared.stderr
        for server in serve(project):
            found = [one_round(server) for _ in range(options.rounds)]
    print(
        f"seconds from the request, median and worst of {options.rounds}; every time cancelled, no process left"
    )
    for what, seconds in zip(
        ("training stopped, its state written", "process ended"), zip(*found, strict=True), strict=True
    ):
        print(f"{what:36}{statistics.median(seconds):6.2f}{max(seconds):6.2f}")


if __name__ == "__main__":
    main()
