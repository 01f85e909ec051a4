from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

import brainmri_core
from brainmri_core.cluster import workers as workers_module
from brainmri_core.cluster.shard_files import take_arrays, write_arrays
from brainmri_core.cluster.shards import evenly
from brainmri_core.cluster.workers import workers_of
from brainmri_core.config.cluster import ClusterConfig
from brainmri_core.errors import ConfigError, IntegrityError, StorageError
from brainmri_core.project.job import Job
from tests import ROOT
from tests.counts import PATIENCE_S
from tests.dask_case import Dask, dask, die, fail, nap


def job_at(job: Job, address: str) -> Job:
    return Job(job.layout, job.run_id, job.entry, job.log, job.env, ClusterConfig(scheduler=address))


@pytest.fixture
def listening() -> Iterator[str]:
    """The address of something that listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("n, threads, most", [(0, 2, 8), (1, 4, 8), (3, 2, 8), (100, 3, 8), (4096, 2, 4096)])
def test_every_row_is_in_one_shard_and_shards_are_even(n: int, threads: int, most: int) -> None:
    shards = evenly(n, threads, most)
    assert [row for shard in shards for row in range(n)[shard]] == list(range(n))
    lengths = [len(range(n)[shard]) for shard in shards]
    assert max(lengths, default=0) <= most and max(lengths, default=0) - min(lengths, default=0) <= 1
    assert len(shards) == min(n, threads) or len(shards) % threads == 0


def test_a_result_that_was_changed_on_its_way_is_refused(tmp_path: Path) -> None:
    name = write_arrays(tmp_path, 3, {"a": np.arange(5)})
    assert take_arrays(tmp_path, name)["a"].tolist() == [0, 1, 2, 3, 4]
    name = write_arrays(tmp_path, 3, {"a": np.arange(5)})
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match="was changed after a Dask worker wrote it"):
        take_arrays(tmp_path, name)


@pytest.mark.parametrize("text", ["nonsense", "inproc://a:1", "tcp://host", "tcp://user:secret@host:1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="scheduler"):
        ClusterConfig(scheduler=text)


@pytest.mark.full
def test_a_wrong_address_is_named(job: Job, listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "CONNECT_S", 1.0)
    for address in (listening, "tcp://127.0.0.1:1", "tcp://nowhere.invalid:8786", "tls://127.0.0.1:1"):
        with (
            pytest.raises(ConfigError, match=rf"No Dask scheduler of .* answers at {address} "),
            workers_of(job_at(job, address)),
        ):
            pass


@pytest.mark.full
def test_a_scheduler_of_another_version_is_named(job: Job, tmp_path: Path) -> None:
    about = tmp_path / "distributed-2024.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: distributed\nVersion: 2024.1.0\n")
    with (
        dask(tmp_path / "dask", PYTHONPATH=str(tmp_path)) as running,
        pytest.raises(ConfigError, match=r"runs distributed 2024\.1\.0 and this machine "),
        workers_of(running.job(job, "r2")),
    ):
        pass


@pytest.mark.full
def test_a_worker_of_another_version_of_the_code_is_refused_by_name(job: Job, tmp_path: Path) -> None:
    package = tmp_path / "other" / "brainmri_core"
    shutil.copytree(Path(brainmri_core.__file__).parent, package)
    (package / "__init__.py").write_text('__version__ = "0.9.0"\n')
    said = r"The Dask worker other has brainmri 0\.9\.0 \(code \w+\) instead of "
    with dask(tmp_path / "dask") as running, workers_of(running.job(job, "r2")) as workers:
        assert workers is not None
        running.add_worker("other", PYTHONPATH=f"{package.parent}:{ROOT}")
        with pytest.raises(ConfigError, match=said):
            list(workers.map("naps", nap, [(0, 1)]))


@pytest.mark.full
def test_a_worker_without_the_code_is_refused(job: Job, tmp_path: Path) -> None:
    (tmp_path / "brainmri_core").mkdir()
    (tmp_path / "brainmri_core" / "__init__.py").write_text("")
    with dask(tmp_path / "dask") as running:
        running.add_worker("bare", PYTHONPATH=str(tmp_path))
        with workers_of(running.job(job, "r2")) as workers:
            assert workers is not None
            workers.client.wait_for_workers(1, timeout=PATIENCE_S)
        with (
            pytest.raises(
                ConfigError, match=r"The Dask worker at tcp://127.0.0.1:\d+ cannot import brainmri"
            ),
            workers_of(running.job(job, "r2")),
        ):
            pass


@pytest.mark.full
class TestTwoWorkers:
    @pytest.fixture
    def cluster(self, tmp_path: Path) -> Iterator[Dask]:
        with dask(tmp_path / "dask", "one", "other") as running:
            yield running

    def test_a_frozen_worker_holds_nothing_up(
        self, job: Job, cluster: Dask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(workers_module, "LEAST_SLOW_S", 1.0)
        with workers_of(cluster.job(job, "r2")) as workers:
            assert workers is not None
            results = workers.map("naps", nap, [(0.2, number) for number in range(12)])
            found = [next(results) for _ in range(2)]
            cluster.workers[0].send_signal(signal.SIGSTOP)
            found += list(results)
        assert [int(item["number"]) for item in found] == list(range(12))
        assert "a slow piece goes to a second worker" in [record["event"] for record in cluster.records]

    def test_a_lost_scheduler_ends_the_run_with_a_sentence(self, job: Job, cluster: Dask) -> None:
        with (
            pytest.raises(StorageError, match=f"The Dask scheduler at {cluster.address} was lost"),
            workers_of(cluster.job(job, "r2")) as workers,
        ):
            assert workers is not None
            results = workers.map("naps", nap, [(0.2, number) for number in range(40)])
            next(results)
            cluster.scheduler.kill()
            list(results)
        assert not list(job.layout.shards.iterdir())

    def test_workers_that_all_die_are_waited_for_and_then_named(
        self, job: Job, cluster: Dask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with workers_of(cluster.job(job, "r2")) as workers:
            assert workers is not None
            results = workers.map("naps", nap, [(0.2, number) for number in range(12)])
            next(results)
            for process in cluster.workers:
                process.kill()
            cluster.add_worker("late")
            assert [int(item["number"]) for item in results] == list(range(1, 12))
            cluster.workers[-1].kill()
            monkeypatch.setattr(workers_module, "WITHOUT_WORKERS_S", 3.0)
            with pytest.raises(StorageError, match=r"has had no worker for 3 s"):
                list(workers.map("naps", nap, [(0.2, 1)]))


@pytest.mark.full
def test_an_error_of_the_work_is_not_taken_for_a_lost_scheduler(job: Job, tmp_path: Path) -> None:
    with dask(tmp_path / "dask", "one") as running, workers_of(running.job(job, "r2")) as workers:
        assert workers is not None
        for kind in (RuntimeError, ZeroDivisionError):  # torch raises RuntimeError where memory is short
            with pytest.raises(kind, match="it went wrong"):
                list(workers.map("failures", fail, [(kind.__name__,)]))
        with pytest.raises(
            StorageError, match=r"failed 3 times at piece 1 of 1 \(failures\) \(it went wrong\)"
        ):
            list(workers.map("failures", fail, [("OSError",)]))
        elsewhere = replace(workers, folder=tmp_path / "of-another-machine")
        with pytest.raises(
            StorageError, match=r"worker one does not see the folder .*of-another-machine; mount"
        ):
            list(elsewhere.map("naps", nap, [(0, 7)]))
        assert [int(item["number"]) for item in workers.map("naps", nap, [(0, 7)])] == [7]


@pytest.mark.full
def test_work_that_kills_its_workers_is_given_up(job: Job, tmp_path: Path) -> None:
    environment = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
    with (
        dask(tmp_path / "dask", "one", "two", "three", **environment) as running,
        workers_of(running.job(job, "r2")) as workers,
        pytest.raises(StorageError, match=r"Dask workers died at piece 1 of 1 \(deaths\) again and again"),
    ):
        assert workers is not None
        list(workers.map("deaths", die, [()]))


@pytest.mark.full
def test_dask_is_imported_only_where_a_scheduler_is_named() -> None:
    code = "import sys; from brainmri_core import batch_predict, resize, split; print('distributed' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ended.stdout == "False\n"
