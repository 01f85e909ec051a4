"""Several machines that train together: here several processes that share nothing but an address of the loopback."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from brainmri_core.config import load_config
from brainmri_core.config.training import DistributedConfig
from brainmri_core.errors import BrainMRIError, ConfigError, ModelError
from brainmri_core.learning.checkpoint import load_checkpoint
from brainmri_core.project.pointers import CheckpointPointer
from brainmri_dagster.training.rendezvous import Rendezvous
from tests.counts import PATIENCE_S
from tests.dagster.conftest import PHANTOM, TINY, Workbench, failure_of

training = pytest.mark.training
TRAIN = ["model_checkpoint"]
RECIPE = ("train.loop.precision=fp32", "train.loop.epochs=2")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def address() -> str:
    return free_address()


def nodes(address: str, *others: str, count: int = 2) -> tuple[str, ...]:
    return (
        *RECIPE,
        f"train.distributed.nodes={count}",
        f"train.distributed.rendezvous={address}",
        "train.distributed.timeout_s=120",
        *others,
    )


def content(root: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(root)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file()
    }


@contextlib.contextmanager
def helper(root: Path, *overrides: str, number: int = 1) -> Iterator[subprocess.Popen[str]]:
    """Be another machine: the command of the documentation in a project folder of its own."""
    command = [
        sys.executable,
        "-m",
        "brainmri_dagster.cli",
        "train",
        "--dataset",
        PHANTOM,
        "--node",
        str(number),
    ]
    settings = [*TINY, f"paths.root={root}", *overrides]
    words = [*command, *(word for item in settings for word in ("-o", item))]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def said(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=PATIENCE_S)[0]


def weights(bench: Workbench) -> dict[str, torch.Tensor]:
    pointer = bench.pointer("model_checkpoint")
    assert isinstance(pointer, CheckpointPointer)
    return load_checkpoint(bench.layout.absolute(pointer.checkpoint).with_name("last.pth"))[1]


@pytest.fixture
def copy(packed: Workbench, tmp_path: Path) -> Path:
    """The second machine's copy of the project."""
    return Path(shutil.copytree(packed.layout.root, tmp_path / "copy"))


@training
@pytest.mark.full
def test_two_nodes_learn_the_bits_of_two_processes_and_the_second_writes_nothing(
    packed: Workbench, copy: Path, address: str
) -> None:
    before = content(copy)
    with helper(copy, *nodes(address)) as second:
        packed.done(TRAIN, *nodes(address))
        assert "the first node has the results" in said(second)
    assert second.returncode == 0 and content(copy) == before
    together = weights(packed)
    packed.done(TRAIN, *RECIPE, "train.distributed.nproc=2")
    alone = weights(packed)
    assert alone.keys() == together.keys()
    assert all(torch.equal(alone[name], together[name]) for name in alone)


@training
@pytest.mark.full
@pytest.mark.slow
def test_nodes_that_differ_both_say_in_what(packed: Workbench, copy: Path, address: str) -> None:
    with helper(copy, *nodes(address, "train.optim.lr=0.002")) as second:
        sentence = "Node 1 of 2 (numbered from 0) has train.optim.lr 0.002 and the first node 0.001"
        assert failure_of(packed.run(TRAIN, *nodes(address))).startswith(sentence)
        assert sentence in said(second)
    pack = next(copy.rglob("pack.npy"))
    changed = bytearray(pack.read_bytes())
    changed[-1] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(changed)
    with helper(copy, *nodes(address)) as second:
        sentence = "Node 1 of 2 (numbered from 0) has data.pack_sha256 "
        assert failure_of(packed.run(TRAIN, *nodes(address))).startswith(sentence)
        assert sentence in said(second)


@training
@pytest.mark.full
def test_a_lost_node_ends_the_training_which_goes_on_where_it_was(
    packed: Workbench, copy: Path, address: str
) -> None:
    log = packed.layout.root / "outputs/orchestrator"
    slow = nodes(address, "train.loop.epochs=300", "train.data.seed=7")

    def kill(second: subprocess.Popen[str]) -> None:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and not any(
            '"event": "epoch"' in file.read_text() for file in log.rglob("train.log")
        ):
            time.sleep(0.1)
        second.kill()  # its processes end with it

    for file in log.rglob("train.log"):
        file.unlink()
    with helper(copy, *slow) as second:
        killer = threading.Thread(target=kill, args=(second,))
        killer.start()
        failed = packed.run(TRAIN, *slow)
        killer.join()
    assert failure_of(failed).startswith("Node 1 of 2 (numbered from 0) is lost")
    (state,) = (packed.layout.root / "models").rglob("resume/*/last.pth")
    assert torch.load(state, weights_only=True)["position"][0] >= 1

    # the second machine has no state: it gets the first one's; Ctrl-C to it stops both
    for file in log.rglob("train.log"):
        file.unlink()
    with helper(copy, *slow) as second:
        stopper = threading.Thread(target=interrupt, args=(second, log))
        stopper.start()
        failed = packed.run(TRAIN, *slow)
        stopper.join()
        assert "interrupted" in said(second)
    assert any('"event": "resumed"' in file.read_text() for file in log.rglob("train.log"))
    assert "stopped by SIGTERM on node 1 of 2" in failure_of(failed)
    shutil.rmtree(state.parent)


def interrupt(second: subprocess.Popen[str], log: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and not any(
        '"event": "epoch"' in file.read_text() for file in log.rglob("train.log")
    ):
        time.sleep(0.1)
    second.send_signal(signal.SIGINT)


def test_the_rendezvous_is_checked_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="nodes is 2, but rendezvous is empty"):
        load_config(None, ["train.distributed.nodes=2"])
    for wrong in (
        "10.0.0.5",
        "10.0.0.5:",
        ":29500",
        "host:0",
        "host:65536",
        "[::1]:29500",
        "a b:29500",
        "-x:29500",
    ):
        with pytest.raises(ConfigError, match="is no HOST:PORT"):
            load_config(None, [f"train.distributed.rendezvous='{wrong}'"])
    assert load_config(None, ["train.distributed.rendezvous=gpu-1.lab:29500"]).train.distributed.endpoint == (
        "gpu-1.lab",
        29500,
    )


def place(address: str, *, count: int = 2, timeout_s: float = 1.0) -> DistributedConfig:
    return DistributedConfig(nodes=count, rendezvous=address, timeout_s=timeout_s)


def refusal(kind: type[BrainMRIError], *arguments: Any) -> str:
    with pytest.raises(kind) as caught:
        Rendezvous(*arguments).await_all(arguments[0])
    return str(caught.value)


def test_nodes_that_cannot_meet_say_why(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert "No training answered at" in refusal(ModelError, place(address), 1)
    assert "1, 2 did not join" in refusal(ModelError, place(free_address(), count=3), 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = f"127.0.0.1:{taken.getsockname()[1]}"
        assert "is in use; choose another port" in refusal(ConfigError, place(busy), 0)
    assert "is not an address of this machine" in refusal(ConfigError, place("192.0.2.1:29500"), 0)
    address = free_address()  # what was refused above may still be listening
    first = Rendezvous(place(address, count=3), 0)
    assert "nodes is 2 here and 3 on the first" in refusal(ConfigError, place(address), 1)
    second = Rendezvous(place(address, count=3), 1)
    assert "has already joined as node 1" in refusal(ConfigError, place(address, count=3), 1)
    third = Rendezvous(place(address, count=3), 2)
    for node in (first, second, third):
        node.await_all(place(address, count=3))
    port = int(address.rpartition(":")[2])
    listening = [
        line.split()[1]
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    ]
    assert [item for item in listening if item.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
