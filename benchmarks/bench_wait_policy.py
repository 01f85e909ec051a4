"""Training steps on a machine with other work: OpenMP threads that sleep while they wait, as this package sets, beside spinning ones.

    python benchmarks/bench_wait_policy.py [--busy 4] [--steps 20] [--rounds 3]

Each round trains resnet18 on random images of 64 px in a new process for each policy, in turn, without and then with `--busy` processes at full
load beside it. The figures are medians of the rounds: seconds and processor seconds of the steps, without start-up, and the ratio of
the default of OpenMP to ours.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator

BUSY = "while True: pass"
STEPS = """
import sys, time
import torch, torchvision
torch.manual_seed(0)
model = torchvision.models.resnet18()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
images, labels = torch.rand(32, 3, 64, 64), torch.randint(4, (32,))
for step in range(int(sys.argv[1]) + 2):
    if step == 2:
        wall, used = time.perf_counter(), time.process_time()
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
print(time.perf_counter() - wall, time.process_time() - used)
"""


@contextlib.contextmanager
def others(count: int) -> Iterator[None]:
    """Keep some processes busy."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def steps(policy: str | None, count: int) -> tuple[float, float]:
    """Return the seconds and processor seconds of training steps under a wait policy; None is OpenMP's default."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    if policy is not None:
        environment["OMP_WAIT_POLICY"] = policy
    command = [sys.executable, "-c", STEPS, str(count)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    wall, used = map(float, done.stdout.split())
    return wall, used


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--busy", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print("| busy processes | passive | default | ratio |\n| ---: | ---: | ---: | ---: |")
    for count in (0, options.busy):
        with others(count):
            rounds = [
                (steps("passive", options.steps), steps(None, options.steps)) for _ in range(options.rounds)
            ]
        ours, theirs = (
            [statistics.median(item[side][kind] for item in rounds) for kind in (0, 1)] for side in (0, 1)
        )
        ratios = [theirs[kind] / ours[kind] for kind in (0, 1)]
        cells = [f"{wall:.1f} s ({used:.1f})" for wall, used in (ours, theirs)]
        print(f"| {count} | {cells[0]} | {cells[1]} | {ratios[0]:.2f} ({ratios[1]:.2f}) |", flush=True)


if __name__ == "__main__":
    main()
