from __future__ import annotations

import functools
import multiprocessing
import os
import random
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from brainmri_core import train as train_module
from brainmri_core.errors import ModelError, StorageError
from brainmri_core.learning import loop as loop_module
from brainmri_core.learning.checkpoint import load_checkpoint
from brainmri_core.learning.device import cpu_has_bf16
from brainmri_core.learning.models import build_model
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import Record, StageLog, file_sink
from brainmri_core.project.pointers import PackPointer
from brainmri_core.system.json_files import read_json
from brainmri_core.system.locks import exclusive
from brainmri_core.train import train
from tests.core.learning.training_pack import by_signal, config, make_pack, train_until
from tests.counts import PATIENCE_S, rest, trials

pytestmark = pytest.mark.training

# Dropout, momentum, an average and random augmentation: all that could be forgotten when continuing.
RECIPE: dict[str, dict[str, Any]] = {
    "data": {"start_size": 24},
    "model": {"name": "mobilenet_v3_small"},
    "optim": {"ema_decay": 0.9, "lr": 1e-3},
    "loop": {"epochs": 4},
    "aug": {
        "mixup_alpha": 0.2,
        "noise_std": 0.02,
        "jitter_gamma": 0.2,
        "bias_field": 0.2,
        "randaugment_ops": 1,
        "erase_prob": 0.3,
    },
}
VERSION = re.escape(str(torch.__version__))
KILLS = trials(3, 12)


def train_in_process(root: str, pack_json: str) -> None:
    """Train in a process of its own, one thread, logging to ``log.jsonl``."""
    torch.set_num_threads(1)
    entry = load_catalogue()["brainmri/phantom"]
    with file_sink(Path(root) / "log.jsonl") as sink:
        log = StageLog("train", "r1", entry.key, [sink], "DEBUG")
        job = Job(layout=Layout(root=Path(root)), run_id="r1", entry=entry, log=log)
        train(config(**RECIPE), PackPointer.model_validate_json(pack_json), job)


@functools.cache
def undisturbed(threads: int) -> str:
    """Return the content hash of the recipe's training on a pack of 12 images a class, without an interruption."""
    torch.set_num_threads(threads)
    entry = load_catalogue()["brainmri/phantom"]
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Layout(root=Path(folder)), "r1", entry, StageLog("train", "r1", entry.key, []))
        return train(config(**RECIPE), make_pack(job, per_class=12), job).content_hash


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Have SIGINT interrupt, even where the tests run in the background of a shell, which ignores it there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def start() -> Callable[[Path, PackPointer], ForkServerProcess]:
    """Start a training in a fresh process that has torch imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "brainmri_core.train"])

    def run(root: Path, pack: PackPointer) -> ForkServerProcess:
        process = context.Process(target=train_in_process, args=(str(root), pack.model_dump_json()))
        process.start()
        return process

    return run


def wait_for(process: ForkServerProcess, log: Path, event: str, count: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while log.read_text().count(f'"event": "{event}"') < count if log.is_file() else True:
        assert process.is_alive() or process.exitcode == 0, f"the training died: {process.exitcode}"
        if not process.is_alive() or time.monotonic() > until:
            return
        time.sleep(0.01)


def same(first: Path, second: Path) -> bool:
    (_, a), (_, b) = load_checkpoint(first), load_checkpoint(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def states(root: Path) -> list[Path]:
    return sorted((root / "models").rglob("resume/*/last.pth"))


def finished(root: Path) -> Path:
    return root / "models" / "brainmri" / "phantom" / "r1" / "last.pth"


@pytest.mark.full
def test_a_training_killed_at_random_moments_ends_with_the_same_bits(
    job: Job, tmp_path: Path, start: Callable[[Path, PackPointer], ForkServerProcess]
) -> None:
    root = job.layout.root
    pack = make_pack(job, per_class=12)
    reference = start(root, pack)
    reference.join(600)
    assert reference.exitcode == 0
    wanted = finished(root).rename(tmp_path / "uninterrupted.pth")
    records = (root / "log.jsonl").read_text()
    (root / "log.jsonl").unlink()

    seed = random.SystemRandom().randrange(2**32)
    print("seed of the kill times:", seed)
    moments = random.Random(seed)
    for kill in range(KILLS):
        process = start(root, pack)
        if kill:
            wait_for(process, root / "log.jsonl", "training", kill + 1)
            time.sleep(moments.uniform(0, 0.8))
        else:  # once at least there is a state to continue from
            wait_for(process, root / "log.jsonl", "epoch", 2)
        process.kill()
        process.join()
    half_written = finished(root).with_name(
        ".tmp-1-0123456789ab-best.pth"
    )  # what a kill in mid-writing leaves
    half_written.parent.mkdir(parents=True, exist_ok=True)
    half_written.touch()
    last = start(root, pack)
    last.join(600)
    assert last.exitcode == 0
    assert same(wanted, finished(root))
    assert '"event": "resumed"' not in records
    assert '"event": "resumed"' in (root / "log.jsonl").read_text()
    assert f'"precision": "{"bf16" if cpu_has_bf16() else "fp32"}"' in records
    assert states(root) == []
    assert not list((root / "models").rglob(".tmp-*"))


@pytest.mark.full
def test_a_terminated_training_saves_the_batch_it_stopped_at_and_continues(
    job: Job, tmp_path: Path, start: Callable[[Path, PackPointer], ForkServerProcess]
) -> None:
    root = job.layout.root
    pack = make_pack(job, per_class=12)
    reference = start(root, pack)
    reference.join(600)
    wanted = finished(root).rename(tmp_path / "uninterrupted.pth")
    (root / "log.jsonl").unlink()

    process = start(root, pack)
    wait_for(process, root / "log.jsonl", "epoch", 1)
    process.terminate()
    process.join(600)
    assert process.exitcode == 128 + signal.SIGTERM
    assert len(states(root)) == 1
    again = start(root, pack)
    again.join(600)
    assert again.exitcode == 0
    assert '"event": "resumed"' in (root / "log.jsonl").read_text()
    assert same(wanted, finished(root))


@pytest.mark.parametrize(
    ("step", "threads"),
    [(3, 1), *rest((1, 1), (3, 2), (8, 1))],
)
def test_a_training_interrupted_at_any_batch_continues_to_the_bit(
    job: Job, records: list[Record], step: int, threads: int
) -> None:
    wanted = undisturbed(threads)
    torch.set_num_threads(threads)
    pack = make_pack(job, per_class=12)
    train_until(config(**RECIPE), pack, job, step, by_signal)
    assert train(config(**RECIPE), pack, job).content_hash == wanted
    (resumed,) = [record for record in records if record["event"] == "resumed"]
    steps_per_epoch = next(r["steps_per_epoch"] for r in records if r["event"] == "training")
    assert (resumed["epoch"] - 1) * steps_per_epoch + resumed["batch"] == step


@pytest.mark.full
def test_validation_is_interrupted_at_once_and_done_again(
    job: Job, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = undisturbed(1)
    torch.set_num_threads(1)
    pack = make_pack(job, per_class=12)
    validate, reached = loop_module.validate_weights, False

    def interrupting(*arguments: Any) -> tuple[float, float, float]:
        nonlocal reached
        os.kill(os.getpid(), signal.SIGINT)
        reached = True
        return validate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "validate_weights", interrupting)
        with pytest.raises(KeyboardInterrupt):
            train(config(**RECIPE), pack, job)
    assert not reached, "the signal waited for the end of the validation"
    assert train(config(**RECIPE), pack, job).content_hash == wanted
    (resumed,) = [record for record in records if record["event"] == "resumed"]
    steps = next(record["steps_per_epoch"] for record in records if record["event"] == "training")
    assert (resumed["epoch"], resumed["batch"]) == (1, steps)


def test_an_interruption_while_an_epoch_is_told_waits_and_the_epoch_is_saved(job: Job) -> None:
    """A database's client, here the log's sink, may turn an interruption inside it into its own error."""

    def sink(record: Record) -> None:
        if record["event"] == "epoch":
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
            except KeyboardInterrupt:
                raise RuntimeError("the database is locked") from None

    torch.set_num_threads(1)
    log = StageLog("train", "r1", job.dataset, [sink], "INFO")
    pack = make_pack(job, per_class=8)
    with pytest.raises(KeyboardInterrupt):
        train(config(**RECIPE), pack, replace(job, log=log))
    assert len(states(job.layout.root)) == 1


@pytest.fixture
def interrupted(job: Job, monkeypatch: pytest.MonkeyPatch) -> tuple[PackPointer, Path]:
    """A training stopped at the end of its first epoch by something that is no Exception, as Dagster stops a step."""

    class Stopped(BaseException):
        pass

    validate = loop_module.validate_weights

    def stop(*arguments: Any) -> tuple[float, float, float]:
        validate(*arguments)
        raise Stopped

    torch.set_num_threads(1)
    pack = make_pack(job, per_class=8)
    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "validate_weights", stop)
        with pytest.raises(Stopped):
            train(config(**RECIPE), pack, job)
    (state,) = states(job.layout.root)
    return pack, state


def test_a_setting_that_came_later_is_part_of_a_training_only_when_it_is_used(
    interrupted: tuple[PackPointer, Path],
) -> None:
    """So that an upgrade makes no unfinished training one of another configuration."""
    _, state = interrupted
    aug = read_json(state.with_name("training.json"))["train"]["aug"]
    assert {"hflip_prob", "cutmix_alpha", "erase_prob", "randaugment_ops"} <= aug.keys()
    assert not {"erase_area", "randaugment_magnitude"} & aug.keys()


@pytest.mark.full
def test_another_config_or_other_data_start_anew_by_themselves(
    job: Job, records: list[Record], interrupted: tuple[PackPointer, Path]
) -> None:
    pack, state = interrupted
    train(config(**{**RECIPE, "loop": {"epochs": 1}}), pack, job)
    train(
        config(**{**RECIPE, "loop": {"epochs": 4}}),
        pack.model_copy(update={"content_hash": "1" * 64}),
        job,
    )
    assert not [record for record in records if record["event"] == "resumed"]
    assert states(job.layout.root) == [state]

    logged = [record["event"] for record in records if record["event"].startswith("An unfinished")]
    assert [item.partition("; run it")[0] for item in logged] == [
        "An unfinished training is not continued: it was made with train.loop.epochs 4, which is now 1",
        f"An unfinished training is not continued: it was made with other data (hash {pack.content_hash[:12]}, "
        "this pack has 111111111111)",
    ]


@pytest.mark.full
def test_other_arithmetic_is_not_mixed_into_a_training(
    job: Job, records: list[Record], interrupted: tuple[PackPointer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, state = interrupted
    torch.set_num_threads(2)
    train(config(**RECIPE), pack, job)
    monkeypatch.setattr(torch, "__version__", "1.0")
    torch.set_num_threads(1)
    explicit = config(**{**RECIPE, "loop": {"epochs": 4, "resume_from": str(state)}})
    with pytest.raises(ModelError, match=rf"made with arithmetic\.torch '{VERSION}', which is now '1\.0'"):
        train(explicit, pack, job)
    (logged,) = [record["event"] for record in records if record["event"].startswith("An unfinished")]
    assert "it was made with arithmetic.threads 1, which is now 2; run it with what" in logged
    assert not [record for record in records if record["event"] == "resumed"]


@pytest.mark.full
def test_other_weights_under_the_same_name_begin_another_training(
    job: Job, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    file = tmp_path / "weights.pth"
    recipe = config(model={"name": "mobilenet_v3_small", "weights_file": str(file)}, loop={"epochs": 2})
    pack, save = make_pack(job, per_class=8), train_module.save_state

    def stop(*arguments: Any) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    for seed in (1, 2):
        torch.manual_seed(seed)
        torch.save(build_model("mobilenet_v3_small", num_classes=4, in_channels=1).state_dict(), file)
        with monkeypatch.context() as patch:
            patch.setattr(train_module, "save_state", stop)
            with pytest.raises(KeyboardInterrupt):
                train(recipe, pack, job)
    assert len(states(job.layout.root)) == 2
    assert not [record for record in records if record["event"] == "resumed"]
    assert "it was made with weights_sha256" in next(
        r["event"] for r in records if r["event"].startswith("An unf")
    )
    train(recipe, pack, job)
    assert [record for record in records if record["event"] == "resumed"]


@pytest.mark.full
@pytest.mark.parametrize("content", [None, *rest(b"{", b"[]")])
def test_a_damaged_folder_of_another_training_stops_none(
    job: Job, records: list[Record], interrupted: tuple[PackPointer, Path], content: bytes | None
) -> None:
    pack, state = interrupted
    logged = state.with_name("training.json")
    logged.unlink()
    if content is not None:
        logged.write_bytes(content)
    train(config(**{**RECIPE, "loop": {"epochs": 1}}), pack, job)
    (warning,) = [record["event"] for record in records if record["event"].startswith("An unfinished")]
    assert (
        f"something that its folder does not say; run it with what it was made with to continue it, or delete {state.parent}"
        in warning
    )
    assert state.is_file()


@pytest.mark.full
def test_a_look_at_a_training_does_not_keep_it_from_running(
    job: Job, interrupted: tuple[PackPointer, Path]
) -> None:
    """Another training looks whether this one runs, with its lock, in the moment in which this one starts."""
    pack, state = interrupted
    lock = job.layout.lock("train", state.parent.name)
    held = threading.Event()

    def look() -> None:
        with exclusive(lock):
            held.set()
            time.sleep(0.03)

    other = threading.Thread(target=look)
    other.start()
    held.wait()
    assert train(config(**RECIPE), pack, job).epochs_run == 4
    other.join()


@pytest.mark.full
def test_patience_counts_on_after_an_interruption(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    pack = make_pack(job, per_class=8)
    patient = config(loop={"epochs": 30, "patience": 3}, optim={"lr": 1e-9})
    wanted = train(patient, pack, job)
    save, calls = train_module.save_state, 0

    def stop(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        save(*arguments)
        if calls == wanted.best_epoch + 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "save_state", stop)
        with pytest.raises(KeyboardInterrupt):
            train(patient, pack, job)
    found = train(patient, pack, job)
    assert (found.epochs_run, found.best_epoch) == (wanted.epochs_run, wanted.best_epoch)
    assert found.epochs_run == found.best_epoch + 3


@pytest.mark.full
def test_a_state_of_another_config_that_is_asked_for_is_refused(
    job: Job, interrupted: tuple[PackPointer, Path]
) -> None:
    pack, state = interrupted
    stored = str(state.relative_to(job.layout.root))
    changed = config(**{**RECIPE, "optim": {"ema_decay": 0.9, "lr": 5e-4}, "loop": {"epochs": 4}})
    explicit = changed.model_copy(update={"loop": changed.loop.model_copy(update={"resume_from": stored})})
    with pytest.raises(ModelError, match=r"train\.optim\.lr 0\.001, which is now 0\.0005"):
        train(explicit, pack, job)
    same_config = config(**{**RECIPE, "loop": {"epochs": 4, "resume_from": stored}})
    with pytest.raises(ModelError, match=r"other data \(hash .* this pack has 111111111111\)"):
        train(same_config, pack.model_copy(update={"content_hash": "1" * 64}), job)
    assert train(same_config, pack, job).epochs_run == 4


def test_a_damaged_state_is_named(job: Job, interrupted: tuple[PackPointer, Path]) -> None:
    pack, state = interrupted
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"last\.pth cannot be read .* delete it to start again"):
        train(config(**RECIPE), pack, job)


def test_a_training_that_is_already_running_is_not_started_again(
    job: Job, interrupted: tuple[PackPointer, Path]
) -> None:
    pack, state = interrupted
    with (
        exclusive(job.layout.lock("train", state.parent.name)),
        pytest.raises(StorageError, match="the same training is running"),
    ):
        train(config(**RECIPE), pack, job)
