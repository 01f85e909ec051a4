"""Seconds that training in several processes costs before its first step: imports, torchrun, rendezvous.

    python benchmarks/bench_distributed.py [--rounds 5] [--nproc 2]

Each line is the median of interleaved rounds of fresh processes on warm files. The first import is what a step that trains
in its own process pays as well; the rest is the price of ``train.distributed.nproc``.
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

WORKER_IMPORTS = "import brainmri_dagster.training.worker"
JOIN = """\
import sys
from brainmri_core.config import EnvConfig
from brainmri_core.learning.team import torchrun_team
{imports}
with torchrun_team(EnvConfig(prefer_cuda=False)):
    pass
"""


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nproc", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        joining = Path(folder) / "join.py"
        joining.write_text(JOIN.format(imports=WORKER_IMPORTS))
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        sides = {
            "a bare interpreter": [sys.executable, "-c", "pass"],
            "import torch": [sys.executable, "-c", "import torch"],
            "import of the training (a step's own)": [sys.executable, "-c", "import brainmri_core.train"],
            "import of the Pipes worker": [sys.executable, "-c", WORKER_IMPORTS],
            f"torchrun, {options.nproc} workers joined and left": [
                *torchrun,
                f"--nproc-per-node={options.nproc}",
                str(joining),
            ],
        }
        found: dict[str, list[float]] = {name: [] for name in sides}
        for command in sides.values():
            seconds(command)  # warms the files
        for _ in range(options.rounds):
            for name, command in sides.items():
                found[name].append(seconds(command))
    medians = {name: statistics.median(times) for name, times in found.items()}
    own = medians["import of the training (a step's own)"]
    print(
        f"{os.cpu_count()} cores, {options.rounds} interleaved rounds, median seconds, ratio to a step's own import"
    )
    for name, value in medians.items():
        print(f"{name:42} {value:6.2f}  {value / own:5.2f}x")


if __name__ == "__main__":
    main()
