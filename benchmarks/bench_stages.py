"""Wall time and peak memory of each stage, every stage in a process of its own.

    python benchmarks/bench_stages.py --dataset sartajbhuvaji/brain-tumor-classification-mri --epochs 2

The time of a stage is what its manifest entry says; the process column adds the start of Python, Dagster and torch. The
peak is the largest resident set among the stage's process and its decoding workers. Local archives are taken from the
folder that BRAINMRI_ARCHIVES names.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from brainmri_core.config import STAGES

_LAUNCHER = """
import resource, subprocess, sys
code = subprocess.call([sys.executable, "-m", "brainmri_dagster.cli", *sys.argv[1:]])
print("PEAK", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="brainmri/phantom")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=224)
    options = parser.parse_args()
    settings = {"train.loop.epochs": options.epochs, "train.data.image_size": options.image_size}
    overrides = [f"--override={key}={value}" for key, value in settings.items()]
    overrides.append("--override=train.model.pretrained=false")
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "BRAINMRI_HOME": folder, "DAGSTER_HOME": f"{folder}/.dagster"}
        print(f"{options.dataset}, {options.epochs} epochs of resnet18 at {options.image_size} px")
        print(f"{'stage':12}{'stage s':>10}{'process s':>12}{'peak MiB':>10}")
        for stage in STAGES:
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", _LAUNCHER, stage, "--dataset", options.dataset, *overrides],
                env=env,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                sys.exit(done.stderr)
            peak = int(done.stdout.rpartition("PEAK ")[2]) / 1024
            seconds = time.perf_counter() - started
            print(f"{stage:12}{_duration(Path(folder), stage):10.1f}{seconds:12.1f}{peak:10.0f}", flush=True)


def _duration(root: Path, stage: str) -> float:
    newest = max((root / "outputs/orchestrator").glob("*/run_manifest.json"), key=os.path.getmtime)
    return float(json.loads(newest.read_text())["stages"][stage]["duration_s"])


if __name__ == "__main__":
    main()
