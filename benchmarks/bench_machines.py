"""What a second machine gives: the folds of one data set, trained by one Celery worker and by two.

    python benchmarks/bench_machines.py [--epochs 8] [--folds 5] [--bucket]

The machines are worker processes of this one with host names of their own, set up by the files of deploy/celery: a real Postgres and
a real Valkey on loopback (initdb and unshare are needed), and with --bucket a real object store instead of a shared folder. Each
trains with one thread, so that two of them take two cores. What the second cannot give is the part of a run that waits for the
daemon, which looks for work every 2 s.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.deploy.celery_case import running_cluster
from tests.e2e.conftest import PHANTOM
from tests.object_store import BUCKET, StoreServer, running_store


def seconds(workers: int, epochs: int, folds: int, store: StoreServer | None) -> float:
    """Return the wall time of a backfill of all folds, from the command to its end."""
    changes = {
        "epochs: 1": f"epochs: {epochs}",
        "folds: 2": f"folds: {folds}",
        "per_class: 5": "per_class: 12",
    }
    bucket = None if store is None else (f"s3://{BUCKET}/{workers}", store.environment)
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
        running_cluster(Path(folder) / "cluster", patch, changes, bucket) as cluster,
    ):
        for number in range(workers):
            cluster.start_worker(f"machine{number}", "gpu")
        prepared = cluster.project.brainmri("pipeline", "--skip", "train", "--skip", "evaluate")
        assert prepared.returncode == 0, prepared.stderr
        started = time.perf_counter()
        done = cluster.project.brainmri("backfill", "--select", "fold_evaluation", "--dataset", PHANTOM)
        assert done.returncode == 0, done.stderr
        return time.perf_counter() - started


def main() -> None:
    """Print both wall times and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--bucket", action="store_true")
    options = parser.parse_args()
    with running_store() if options.bucket else nullcontext() as store:
        one, two = (seconds(workers, options.epochs, options.folds, store) for workers in (1, 2))
    print(
        f"{options.folds} folds: one worker {one:.0f} s, two workers {two:.0f} s, {one / two:.2f} times as fast"
    )


if __name__ == "__main__":
    main()
