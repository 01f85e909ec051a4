from __future__ import annotations

import json
import multiprocessing
import os
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from brainmri_core.config import PipelineConfig
from brainmri_core.errors import BusyError
from brainmri_core.learning.checkpoint import load_checkpoint
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import latest_pointer
from brainmri_core.project.pointers import CheckpointPointer
from brainmri_core.system.object_store import PATIENCE_VARIABLE, Bucket
from brainmri_core.verify import verify
from tests.counts import PATIENCE_S
from tests.faults.tiny import PHANTOM, configuration, run_stage
from tests.object_store import Proxy

pytestmark = pytest.mark.training

EPOCHS = 6
CONFIG = configuration("old", train={"loop": {"epochs": EPOCHS, "precision": "fp32"}})


def _run_stage(environment: dict[str, str], *arguments: Any) -> None:
    os.environ.update(environment)
    run_stage(*arguments)


class Machines:
    """Machines that share a bucket, in which a data set is ready for training."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["torch", "torchvision", "brainmri_core.train"])
        for stage in ("fetch", "split", "resize"):
            run_stage(folder / "a", stage, f"data-{stage}", CONFIG, url)

    def layout(self, name: str) -> Layout:
        return Layout.at(self.url, str(self.folder / name))

    def start(self, name: str, run_id: str, config: PipelineConfig = CONFIG) -> ForkServerProcess:
        # the server may have started for an earlier test, without this one's credentials
        arguments = (dict(os.environ), self.folder / name, "train", run_id, config, self.url)
        process = self.context.Process(target=_run_stage, args=arguments)
        process.start()
        return process

    def train(self, name: str, run_id: str) -> CheckpointPointer:
        process = self.start(name, run_id)
        process.join(PATIENCE_S)
        assert process.exitcode == 0
        pointer = latest_pointer(self.layout(name), CheckpointPointer, PHANTOM)
        assert pointer is not None and pointer.run_id == run_id
        return pointer

    def log(self, name: str, run_id: str) -> list[dict[str, Any]]:
        file = self.layout(name).run_dir(run_id) / "logs/train.log"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def epochs(self, name: str, run_id: str) -> list[int]:
        return [line["epoch"] for line in self.log(name, run_id) if line["event"] == "epoch"]


@pytest.fixture
def machines(store_url: str, tmp_path: Path) -> Machines:
    return Machines(store_url, tmp_path)


def test_a_training_killed_on_one_machine_ends_on_another_with_the_same_weights(machines: Machines) -> None:
    process = machines.start("a", "killed")
    until = time.monotonic() + PATIENCE_S
    while len(machines.epochs("a", "killed")) < 3:
        assert process.is_alive() and time.monotonic() < until
        time.sleep(0.02)
    process.kill()
    process.join()
    bucket = Bucket(machines.url)
    assert len(bucket.list("shared/")) == 1
    before = bucket.list("blobs/")

    continued = machines.train("b", "continued")
    assert machines.epochs("b", "continued")[0] > 2, "it began anew"
    assert machines.epochs("b", "continued")[-1] == EPOCHS
    told = [line for line in machines.log("b", "continued") if "uploaded" in line["event"]]
    assert len(told) == 1 and told[0]["bytes"] > 1e6 and told[0]["seconds"] > 0
    assert bucket.list("shared/") == []
    assert len(set(before) - set(bucket.list("blobs/"))) == 1, "the state of the killed training"

    undisturbed = machines.train("c", "undisturbed")
    assert machines.epochs("c", "undisturbed") == list(range(1, EPOCHS + 1))
    assert undisturbed.content_hash == continued.content_hash
    files = [
        machines.layout(name).absolute(item.checkpoint)
        for name, item in (("b", continued), ("c", undisturbed))
    ]
    (_, one), (_, other) = map(load_checkpoint, files)
    assert all(value.equal(other[name]) for name, value in one.items())


@pytest.mark.full
def test_a_training_that_another_machine_is_at_work_on_is_not_begun(machines: Machines) -> None:
    long = configuration("old", train={"loop": {"epochs": 500, "precision": "fp32"}})
    process = machines.start("a", "first", long)
    until = time.monotonic() + PATIENCE_S
    while len(machines.epochs("a", "first")) < 1:
        assert process.is_alive() and time.monotonic() < until
        time.sleep(0.02)
    with pytest.raises(
        BusyError, match=rf"the same training is running \(process {process.pid} on .*\); wait for it"
    ):
        run_stage(machines.folder / "b", "train", "second", long, machines.url)
    assert process.is_alive()
    assert any("waiting to see" in line["event"] for line in machines.log("b", "second"))
    run_stage(machines.folder / "b", "train", "another", CONFIG, machines.url)
    process.kill()
    process.join()


@pytest.mark.full
def test_verify_looks_at_the_states_that_are_shared(machines: Machines) -> None:
    machines.train("a", "done")
    process = machines.start("a", "killed")
    while len(machines.epochs("a", "killed")) < 2:
        time.sleep(0.02)
    process.kill()
    process.join()
    assert verify(machines.layout("b")).problems == []
    bucket = Bucket(machines.url)
    (shared,) = bucket.list("shared/")
    sha256 = json.loads(bucket.get(shared) or b"")["sha256"]
    bucket.put(f"blobs/sha256/{sha256[:2]}/{sha256}", b"damaged")
    (problem,) = verify(machines.layout("b")).problems
    assert problem.path.endswith("/last.pth")


@pytest.mark.full
def test_a_store_that_takes_no_state_does_not_stop_the_training(
    proxy: Proxy, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.3")
    machines = Machines(store_url, tmp_path)
    proxy.fault = lambda method, path: "503" if method == "PUT" and "/shared/" in path else None
    run_stage(tmp_path / "a", "train", "alone", CONFIG, store_url)
    assert machines.epochs("a", "alone") == list(range(1, EPOCHS + 1))
    (warning,) = [line["event"] for line in machines.log("a", "alone") if line["level"] == "WARNING"]
    assert warning.startswith(
        f"Until the state can be uploaded, only this machine can continue: Cannot write {store_url}"
    )
    assert Bucket(store_url).list("shared/") == []
