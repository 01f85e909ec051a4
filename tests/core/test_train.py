from __future__ import annotations

import contextlib
import functools
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from brainmri_core import train as train_module
from brainmri_core.config import load_config
from brainmri_core.config.training import LoopConfig
from brainmri_core.errors import ConfigError, DataError, IntegrityError, ModelError, StorageError
from brainmri_core.evaluation.tested_model import validation_of
from brainmri_core.images.pack import open_pack
from brainmri_core.learning import loop as loop_module
from brainmri_core.learning.checkpoint import Preprocessing, load_checkpoint, load_model
from brainmri_core.learning.inference import predict
from brainmri_core.learning.models import build_model
from brainmri_core.learning.state import Data, Loop, freeze, new_state
from brainmri_core.project.job import Job
from brainmri_core.project.logs import Record
from brainmri_core.project.sample_table import read_samples, write_samples
from brainmri_core.train import train
from tests.core.learning.training_pack import CLASSES, config, make_pack
from tests.counts import rest

pytestmark = pytest.mark.training

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_learns_and_leaves_everything_needed_to_use_the_model(job: Job, records: list[Record]) -> None:
    pack = make_pack(job, per_class=40)
    pointer = train(
        config(model={"name": "resnet18"}, loop={"epochs": 5}, optim={"ema_decay": 0.9}), pack, job
    )
    assert pointer.val_macro_f1 > 0.8
    folder = job.layout.root / "models" / job.dataset / job.run_id
    assert sorted(path.name for path in folder.iterdir()) == ["best.pth", "best.safetensors", "last.pth"]
    assert (job.layout.root / "models" / "best.pth").read_bytes() == (folder / "best.pth").read_bytes()
    assert list((job.layout.root / "models" / job.dataset / "resume").iterdir()) == []

    model, meta = load_model(job.layout.absolute(pointer.checkpoint), CPU)
    assert meta.classes == CLASSES and meta.data_hash == pack.content_hash
    assert meta.preprocessing.image_size == 32 and meta.train_config["loop"]["epochs"] == 5
    test = np.flatnonzero(np.arange(160) // 2 % 4 == 3)
    logits = predict(
        model, open_pack(job.layout, pack), test, meta.preprocessing, device=CPU, batch_size=5
    ).logits
    assert (logits.argmax(1) == test // 40).mean() > 0.8

    history = pd.read_parquet(job.layout.absolute(pointer.history))
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert history["val_macro_f1"].max() == pytest.approx(pointer.val_macro_f1)
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]
    assert history["val_macro_f1"].idxmax() + 1 == pointer.best_epoch
    assert pointer.curves and job.layout.absolute(pointer.curves).read_bytes().startswith(b"\x89PNG")
    assert [record["epoch"] for record in records if record["event"] == "epoch"] == [1, 2, 3, 4, 5]


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(job: Job) -> None:
    pack = make_pack(job, per_class=8)
    hashes = [
        train(config(loop={"epochs": 1}, data={"seed": seed}), pack, job).content_hash for seed in (1, 1, 2)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.full
@pytest.mark.full
def test_a_pack_of_several_files_trains_to_the_same_weights(job: Job) -> None:
    pack = make_pack(job, per_class=20, size=128)
    whole = train(config(loop={"epochs": 1}), pack, job)
    path = job.layout.absolute(pack.pack)
    data = path.read_bytes()
    path.write_bytes(data[: 1 << 20])
    path.with_name("pack.npy.1").write_bytes(data[1 << 20 :])
    cut = pack.model_copy(update={"shard_bytes": 1 << 20})
    again = train(config(loop={"epochs": 1}), cut, job)
    assert again.content_hash == whole.content_hash


def test_threads_that_read_ahead_change_nothing_in_the_result(job: Job) -> None:
    pack = make_pack(job, per_class=8)
    made = [
        train(
            config(loop={"epochs": 1}, data={"num_workers": n}, io={"out_models": f"models/{n}"}), pack, job
        )
        for n in (0, 3)
    ]
    assert made[0].content_hash == made[1].content_hash
    assert made[0].recipe == made[1].recipe, "the folds of one stand for the other"
    other = train(config(loop={"epochs": 1}, optim={"lr": 1e-3}), pack, job)
    assert other.recipe not in (None, made[0].recipe)


@pytest.mark.full
def test_trainings_with_other_seeds_can_be_judged_by_the_same_images(job: Job) -> None:
    pack = make_pack(job, per_class=16)
    seeds: list[dict[str, int]] = [{"seed": 1}, {"seed": 2}, {"seed": 2, "val_seed": 1}]
    chosen = [train_module._sides(config(data=item), pack, job).val.tolist() for item in seeds]
    assert chosen[0] == chosen[2] != chosen[1]
    table = read_samples(job.layout.absolute(pack.samples))
    for item, rows in zip(seeds, chosen, strict=True):
        trained = train(config(loop={"epochs": 1}, data=item), pack, job)
        meta, _ = load_checkpoint(job.layout.absolute(trained.checkpoint))
        assert np.flatnonzero(validation_of(table, meta)).tolist() == rows, "evaluation finds them again"


@pytest.mark.parametrize(
    "blocks",
    [
        {"aug": {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "noise_std": 0.02, "scale": 0.1, "shift": 0.1}},
        {"data": {"start_size": 16}, "loop": {"epochs": 2}},
        *rest(
            {"optim": {"schedule": "step", "step_size": 1}},
            {"optim": {"schedule": "cosine", "grad_clip": 1.0, "label_smoothing": 0.1}},
            {"optim": {"balanced_sampling": True, "class_weights": False}},
            {"data": {"image_size": 24}},
            {"optim": {"amp": False}},
            {"optim": {"frozen_epochs": 1, "head_lr_factor": 10.0, "layer_decay": 0.8}},
        ),
    ],
)
def test_every_option_trains(job: Job, blocks: dict[str, Any]) -> None:
    pointer = train(config(**{"loop": {"epochs": 1}, **blocks}), make_pack(job, per_class=8), job)
    _, weights = load_checkpoint(job.layout.absolute(pointer.checkpoint))
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())


@pytest.mark.full
def test_a_colour_pack_trains_a_colour_model(job: Job) -> None:
    pointer = train(
        config(model={"name": "resnet18"}, loop={"epochs": 1}),
        make_pack(job, per_class=8, colour=True),
        job,
    )
    meta, weights = load_checkpoint(job.layout.absolute(pointer.checkpoint))
    assert meta.preprocessing.channels == 3 and meta.preprocessing.colour
    assert weights["conv1.weight"].shape[1] == 3


@pytest.mark.full
def test_frozen_epochs_move_the_head_alone(job: Job) -> None:
    pack = make_pack(job, per_class=8)
    both = config(loop={"epochs": 1}, optim={"frozen_epochs": 1})
    train(both, pack, job)
    last = job.layout.root / "models" / job.dataset / job.run_id / "last.pth"
    _, frozen = load_checkpoint(last)
    train(config(loop={"epochs": 1}, optim={"frozen_epochs": 1, "lr": 1e-6}), pack, job)
    _, slower = load_checkpoint(last)
    changed = {name for name in frozen if not torch.equal(frozen[name], slower[name])}
    assert changed == {"classifier.3.weight", "classifier.3.bias"}


@pytest.mark.full
def test_patience_stops_early(job: Job) -> None:
    pointer = train(
        config(loop={"epochs": 30, "patience": 2}, optim={"lr": 1e-9}), make_pack(job, per_class=8), job
    )
    assert pointer.epochs_run < 30
    assert pointer.epochs_run == pointer.best_epoch + 2


def test_a_group_on_two_sides_stops_training(job: Job) -> None:
    def leak(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[table["row"].isin([0, 6]), "group"] = "twins"
        return table

    with pytest.raises(DataError, match=r"group twins is on two sides.*test and train"):
        train(config(), make_pack(job, change=leak), job)


@pytest.mark.parametrize("kind", ["exact", "near copy"])
def test_a_copy_across_the_sides_is_refused_whatever_the_groups_say(job: Job, kind: str) -> None:
    def leak(table: pd.DataFrame) -> pd.DataFrame:
        if kind == "exact":
            table.loc[table["row"].isin([0, 6]), "pixel_sha256"] = "same"
        return table

    pack = make_pack(job, change=leak)
    if kind == "near copy":
        pair = {"path_a": ["glioma/0.png"], "path_b": ["glioma/6.png"], "ncc": [0.99]}
        facts = {"orientation": ["identity"], "exact": [False], "same_label": [True]}
        write_samples(job.layout.root / "data/packed/copies.parquet", pd.DataFrame({**pair, **facts}))
    with pytest.raises(
        DataError, match=r"1 test images have a copy in \w+, the first 'glioma/6.png' \(of 'glioma/0"
    ):
        train(config(), pack, job)


def test_a_patient_across_the_sides_is_refused_whatever_the_groups_say(job: Job) -> None:
    def leak(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(patient=np.where(table["row"].isin([0, 6]), "hashed:5ec2e7", ""))

    with pytest.raises(
        DataError, match=r"1 test images show a patient who is also in \w+, the first 'glioma/6.png' "
    ):
        train(config(), make_pack(job, change=leak), job)


def test_an_excluded_twin_of_a_training_image_is_no_leak(job: Job) -> None:
    def exclude(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[table["row"] == 0, "split"] = "excluded"
        return table

    assert train(config(loop={"epochs": 1}), make_pack(job, per_class=8, change=exclude), job).epochs_run == 1


def test_a_class_without_validation_images_is_named(job: Job) -> None:
    def empty(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[table["label"] == "pituitary", "split"] = "test"
        return table

    with pytest.raises(DataError, match="'pituitary' has no image in training"):
        train(config(), make_pack(job, change=empty), job)


def test_changed_pixels_are_refused(job: Job) -> None:
    pack = make_pack(job)
    path = job.layout.absolute(pack.pack)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="was changed"):
        train(config(), pack, job)


def test_a_loss_that_is_not_finite_names_step_rate_and_the_last_good_checkpoint(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    mix, calls = loop_module.mix, 0

    def poisoned(batch: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += 1
        mixed, targets = mix(batch, *arguments)
        return (mixed * float("nan") if calls == 4 else mixed), targets

    monkeypatch.setattr(loop_module, "mix", poisoned)
    message = r"loss is nan at epoch 2, batch 2 \(step 4\), learning rate 0\.\d+; lower train\.optim\.lr .*of epoch 1"
    with pytest.raises(ModelError, match=message) as raised:
        train(config(loop={"epochs": 3}), make_pack(job, per_class=8), job)
    (best,) = (job.layout.root / "models" / job.dataset / job.run_id).iterdir()
    assert f"is {best})." in str(raised.value)
    assert load_checkpoint(best)[0].epoch == 1


def test_the_history_of_a_training_that_failed_is_there(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    validate, calls = loop_module.validate_weights, 0

    def failing(*arguments: Any) -> tuple[float, float, float]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ModelError("the third epoch fails")
        return validate(*arguments)

    monkeypatch.setattr(loop_module, "validate_weights", failing)
    with pytest.raises(ModelError, match="third epoch"):
        train(config(loop={"epochs": 4}), make_pack(job, per_class=8), job)
    (path,) = job.layout.root.rglob("history.parquet")
    assert pd.read_parquet(path)["epoch"].tolist() == [1, 2]


def test_a_gradient_that_is_not_finite_is_found_before_it_is_in_the_weights(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss may be finite all the same, as behind a square root of nought."""
    pack = make_pack(job, per_class=8)
    wanted = train(config(loop={"epochs": 2}), pack, job).content_hash
    gradients, calls = loop_module._gradients, 0

    def poisoned(loop: Loop, state: Any, *arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss: torch.Tensor = gradients(loop, state, *arguments)
        if calls == 4:
            next(state.model.parameters()).grad[0] = float("nan")
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "_gradients", poisoned)
        with pytest.raises(
            ModelError, match=r"The gradient norm is nan at epoch 2, batch 2 \(step 4\), learning rate"
        ):
            train(config(loop={"epochs": 2}), pack, job)
    assert train(config(loop={"epochs": 2}), pack, job).content_hash == wanted, "the saved state is sound"


@pytest.mark.full
def test_a_learning_rate_that_is_too_high_is_named_as_the_cause(job: Job) -> None:
    blown = config(model={"name": "resnet18"}, optim={"lr": 10.0, "schedule": "step", "weight_decay": 1.0})
    with pytest.raises(ModelError, match=r"loss is (nan|inf).*learning rate 10; lower train\.optim\.lr"):
        train(blown.model_copy(update={"loop": LoopConfig(epochs=40)}), make_pack(job, per_class=8), job)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [("'fast'", "train.optim.lr.*valid number.*found 'fast'"), ("[1]", "train.optim.lr.*valid number")],
)
def test_a_learning_rate_that_is_no_number_is_one_sentence(tmp_path: Path, value: str, sentence: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"train:\n  optim:\n    lr: {value}\n")
    with pytest.raises(ConfigError, match=f"c.yaml:3: .{sentence}"):
        load_config(path)
    path.write_text("train: {optim: {lr: 1e-4}}\n")
    assert load_config(path).train.optim.lr == 1e-4


def test_models_folder_that_cannot_be_written_is_found_before_training(
    job: Job, records: list[Record]
) -> None:
    pack = make_pack(job)
    (job.layout.root / "models").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="models"):
        train(config(), pack, job)
    assert not [record for record in records if record["event"] == "epoch"]


@pytest.mark.parametrize("folder", ["models", "outputs/training"])
def test_a_folder_without_write_permission_is_found_before_training(
    job: Job, records: list[Record], folder: str
) -> None:
    pack = make_pack(job)
    target = job.layout.root / folder
    target.mkdir(parents=True)
    if folder == "outputs/training":
        target = target / job.dataset / job.run_id
        target.mkdir(parents=True)
        for path in (job.layout.root / "models", job.layout.root / "outputs"):
            path.mkdir(exist_ok=True)
            path.chmod(0o777)
    target.chmod(0o555)
    for parent in job.layout.root.parents:
        if parent.stat().st_uid == os.getuid() and parent != Path("/") and parent.is_relative_to("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    with no_privileges(), pytest.raises(StorageError, match=f"{folder}.*permission is denied"):
        train(config(), pack, job)
    assert not [record for record in records if record["event"] in ("epoch", "training")]


@contextlib.contextmanager
def no_privileges() -> Iterator[None]:
    """Become the user nobody for a while, because permissions do not bind root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """Let the kernel refuse to write any file beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.full
def test_a_full_disk_leaves_the_previous_best(job: Job) -> None:
    pack = make_pack(job, per_class=8)
    train(config(loop={"epochs": 1}), pack, job)
    newest = job.layout.root / "models" / "best.pth"
    before = newest.read_bytes()
    with disk_full_after(len(before) // 2), pytest.raises(StorageError, match=r"Cannot write .*\.pth"):
        train(config(loop={"epochs": 1}, data={"seed": 9}), pack, job)
    assert newest.read_bytes() == before
    assert load_checkpoint(newest)[0].epoch == 1
    assert not list((job.layout.root / "models").rglob(".tmp-*"))


@pytest.mark.full
def test_a_disk_that_fills_up_in_the_middle_leaves_the_last_state_to_continue_from(
    job: Job, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = make_pack(job, per_class=8)
    recipe = config(loop={"epochs": 3}, optim={"ema_decay": 0.9})
    wanted = train(recipe, pack, job).content_hash
    save, calls = train_module.save_state, 0

    def fill(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        with disk_full_after(1_000_000) if calls == 2 else contextlib.nullcontext():
            save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "save_state", fill)
        with pytest.raises(StorageError, match=r"Cannot write .*last\.pth"):
            train(recipe, pack, job)
    records.clear()
    assert train(recipe, pack, job).content_hash == wanted
    assert [item["epoch"] for item in records if item["event"] == "resumed"] == [2]


def test_threads_need_no_fork(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = make_pack(job, per_class=8)
    monkeypatch.delattr(os, "fork")
    assert train(config(loop={"epochs": 1}, data={"num_workers": 2}), pack, job).epochs_run == 1


@pytest.mark.full
def test_memory_that_runs_out_splits_the_batch_and_goes_on(
    job: Job, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import ResNet

    forward = ResNet.forward

    def small(self: ResNet, batch: torch.Tensor) -> torch.Tensor:
        if self.training and len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        result: torch.Tensor = forward(self, batch)
        return result

    monkeypatch.setattr(ResNet, "forward", small)
    resnet = config(model={"name": "resnet18"}, loop={"epochs": 1})
    pointer = train(resnet, make_pack(job, per_class=8), job)
    assert pointer.epochs_run == 1
    message = [record["batch_computed_in_parts"] for record in records if record["event"] == "out of memory"]
    assert message == [2, 4]


@pytest.mark.full
def test_a_try_that_ran_out_of_memory_leaves_no_trace_in_the_statistics(
    job: Job, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error may come late, when batch norm has seen the batch, and in the words of a library of the accelerator."""
    from torchvision.models import ResNet

    forward = ResNet.forward

    def small(self: ResNet, batch: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = forward(self, batch)
        if self.training and len(batch) > 4:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return result

    resnet = config(model={"name": "resnet18"}, loop={"epochs": 1}, data={"batch_size": 8})
    pack = make_pack(job, per_class=8)
    with monkeypatch.context() as patch:
        patch.setattr(ResNet, "forward", small)
        pointer = train(resnet, pack, job)
    _, weights = load_checkpoint(job.layout.absolute(pointer.checkpoint).with_name("last.pth"))
    steps = next(record["steps_per_epoch"] for record in records if record["event"] == "training")
    assert int(weights["bn1.num_batches_tracked"]) == 2 * steps


def test_no_part_of_a_batch_is_a_single_image() -> None:
    torch.manual_seed(0)
    model = build_model("resnet18", num_classes=4, in_channels=1)
    preprocessing = Preprocessing(
        pack_size=32, image_size=32, channels=1, colour=False, fit="letterbox", mean=[0.5], std=[0.3]
    )
    rows, pixels = np.arange(7), torch.randint(0, 256, (7, 1, 32, 32), dtype=torch.uint8)
    loop = Loop(
        config(), Data(pixels, torch.arange(7) % 4, rows, rows, 4), preprocessing, CPU, "fp32", 5, None
    )
    state = new_state(loop, model)
    freeze(model, False)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, batch: seen.append(len(batch[0])))
    state.micro = 4
    loop_module._gradients(loop, state, model, rows, pixels)
    assert seen == [3, 2, 2]


def test_memory_must_hold_at_least_two_images(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import ResNet

    forward = ResNet.forward

    def full(self: ResNet, batch: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise torch.OutOfMemoryError("CUDA out of memory")
        result: torch.Tensor = forward(self, batch)
        return result

    monkeypatch.setattr(ResNet, "forward", full)
    with pytest.raises(ModelError, match=r"too little memory for two images; lower train\.data\.image_size"):
        train(config(model={"name": "resnet18"}), make_pack(job, per_class=8), job)


@pytest.mark.full
def test_validation_takes_smaller_batches_where_memory_runs_out(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import ResNet

    resnet = config(model={"name": "resnet18"}, loop={"epochs": 1}, data={"batch_size": 8})
    pack = make_pack(job, per_class=8)
    wanted = train(resnet, pack, job)
    forward, seen = ResNet.forward, []

    def small(self: ResNet, batch: torch.Tensor) -> torch.Tensor:
        if not self.training and batch.device.type == "cpu":
            seen.append(len(batch))
            if len(batch) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
        result: torch.Tensor = forward(self, batch)
        return result

    monkeypatch.setattr(ResNet, "forward", small)
    assert train(resnet, pack, job).val_macro_f1 == wanted.val_macro_f1
    assert seen[:3] == [8, 4, 2]


@pytest.mark.full
def test_when_compiled_each_shape_has_kernels_of_its_own() -> None:
    """Kernels for any shape would come into use at other batches after an interruption than without one."""
    shapes: list[tuple[int, ...]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        shapes.extend(tuple(value.shape) for value in inputs if value.ndim == 4 and value.shape[1] == 1)
        assert all(isinstance(size, int) for value in inputs for size in value.shape)
        return graph.forward

    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
        compiled = loop_module._compiled(model)
    wanted = [(batch, 1, side, side) for side in range(8, 20) for batch in (2, 3)]
    for shape in [*wanted, *reversed(wanted)]:
        compiled(torch.zeros(shape))
    assert [shape for shape in shapes if shape[0] in (2, 3) and shape[2] > 3] == wanted


def test_a_batch_in_parts_has_the_gradient_of_the_whole() -> None:
    torch.manual_seed(0)
    model = build_model("resnet18", num_classes=4, in_channels=1)
    preprocessing = Preprocessing(
        pack_size=32, image_size=32, channels=1, colour=False, fit="letterbox", mean=[0.5], std=[0.3]
    )
    rows, pixels = np.arange(7), torch.randint(0, 256, (7, 1, 32, 32), dtype=torch.uint8)
    data = Data(pixels, torch.arange(7) % 4, rows, rows, 4)
    loop = Loop(config(), data, preprocessing, CPU, "fp32", 5, torch.tensor([1.0, 2.0, 0.5, 1.5]))
    state = new_state(loop, model)
    freeze(
        model, True
    )  # the statistics of a part are not those of the whole, so that they must not count here
    found = []
    for state.micro in (1, 2, 4):
        loss = loop_module._gradients(loop, state, model, rows, pixels)
        found.append((float(loss), model.fc.weight.grad.clone()))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-4, atol=1e-6)


@pytest.mark.full
def test_images_grow_from_the_start_size_to_the_full_one(job: Job) -> None:
    pack = make_pack(job, per_class=8)
    pointer = train(config(data={"start_size": 16}, loop={"epochs": 4}), pack, job)
    history = pd.read_parquet(job.layout.absolute(pointer.history))
    assert history["image_size"].tolist() == [16, 16, 32, 32]
    with pytest.raises(ConfigError, match=r"train.data.start_size is 33 but training ends at 32 pixels"):
        train(config(data={"start_size": 33}), pack, job)


def test_unknown_model_is_refused_before_the_pack_is_read(job: Job, tmp_path: Path) -> None:
    pack = make_pack(job).model_copy(update={"pack": "data/nowhere.npy"})
    with pytest.raises(ModelError, match="resnet18"):
        train(config(model={"name": "resnet81"}), pack, job)
