from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from tests.deploy.celery_case import host, running_cluster, runs
from tests.e2e.conftest import PHANTOM

pytestmark = pytest.mark.e2e


def test_a_backfill_goes_through_the_queue_to_a_worker_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small form of test_celery.py, for `make test`."""
    with running_cluster(tmp_path, monkeypatch, {}) as cluster:
        cluster.start_worker("two", "cpu")
        done = cluster.project.brainmri("backfill", "--select", "raw_dataset", "--dataset", PHANTOM)
        assert done.returncode == 0, done.stderr + cluster.log("two")
        (run,) = runs(cluster)
        assert (run.status, host(run)) == (dg.DagsterRunStatus.SUCCESS, "two")
