"""Start-up of our code location against an empty one, in interleaved rounds, and the heavy modules that its import loads.

    python benchmarks/bench_startup.py --rounds 5

Each side is the command that the UI, the daemon and CI start with: ``dagster definitions validate``. The bare import is
timed beside the import of dagster alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "torchvision", "sklearn", "matplotlib", "kaggle", "pandas", "pyarrow")
EMPTY = "import dagster as dg\n\ndefs = dg.Definitions()\n"


def seconds(command: list[str], folder: Path, env: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
    return time.perf_counter() - started


def compare(name: str, theirs: list[float], ours: list[float]) -> None:
    base, mine = statistics.median(theirs), statistics.median(ours)
    ratios = [b / a for a, b in zip(theirs, ours, strict=True)]
    print(
        f"{name:<28} {base:6.2f} s  ours {mine:6.2f} s  ratio {mine / base:.2f} "
        f"(round by round {min(ratios):.2f} to {max(ratios):.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "empty_project.py").write_text(EMPTY)
        (folder / "home").mkdir()
        (folder / "home" / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        env = {**os.environ, "DAGSTER_HOME": str(folder / "home"), "PYTHONPATH": f"{folder}:{ROOT}"}
        validate = [sys.executable, "-m", "dagster", "definitions", "validate", "-m"]
        sides = {
            "definitions validate, empty": (
                [*validate, "empty_project"],
                [*validate, "brainmri_dagster.code_location"],
            ),
            "import dagster": (
                [sys.executable, "-c", "import dagster"],
                [sys.executable, "-c", "import brainmri_dagster.code_location"],
            ),
        }
        for title, (theirs, ours) in sides.items():
            found: tuple[list[float], list[float]] = ([], [])
            for place in range(options.rounds + 1):
                pair = [seconds(command, folder, env) for command in (theirs, ours)]
                if place:  # the first round fills the page cache
                    found[0].append(pair[0])
                    found[1].append(pair[1])
            compare(title, *found)
        program = (
            f"import sys, brainmri_dagster.code_location; print(*[n for n in {HEAVY!r} if n in sys.modules])"
        )
        loaded = subprocess.run(
            [sys.executable, "-c", program], cwd=folder, env=env, check=True, capture_output=True, text=True
        ).stdout.strip()
        print(f"heavy modules loaded by the import: {loaded or 'none'}")


if __name__ == "__main__":
    main()
