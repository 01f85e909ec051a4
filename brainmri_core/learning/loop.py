"""The training loop. All randomness is a function of (seed, epoch, batch), so that a resumed training is bit-identical."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch import nn
from tqdm import tqdm

from brainmri_core.arrays import I64
from brainmri_core.errors import ModelError
from brainmri_core.learning.augment import augment, mix
from brainmri_core.learning.batches import normalise, read_ahead, resample, to_float
from brainmri_core.learning.device import autocast, freed_memory_kept, out_of_memory, step_seed
from brainmri_core.learning.schedule import learning_rate, training_side
from brainmri_core.learning.state import Loop, State, freeze, frozen_statistics
from brainmri_core.learning.team import in_step
from brainmri_core.system.signals import signals_held, termination_raises

_ORDER, _AUGMENT, MODEL_SALT = 1, 2, 3


@dataclass(frozen=True)
class Reporting:
    """Callbacks of a training.

    Attributes
    ----------
    save : callable
        Writes the state; called only between steps, when the state is consistent.
    epoch : callable
        Called with the record of each epoch.
    smaller : callable
        Called when memory ran out, with the number of parts that a batch is now computed in.
    rescue : callable
        Called when training cannot continue: saves the best weights so far as a checkpoint and returns its path.
    """

    save: Callable[[], None]
    epoch: Callable[[dict[str, Any]], None]
    smaller: Callable[[int], None]
    rescue: Callable[[], str] | None = None


def epoch_order(loop: Loop, epoch: int) -> I64:
    """Return the rows of one epoch in training order, a function of (seed, epoch) alone: int64 ``(N,)``."""
    rng = np.random.default_rng((loop.seed, _ORDER, epoch))
    rows = loop.data.train
    if not loop.config.optim.balanced_sampling:
        return rng.permutation(rows)
    labels = loop.data.labels.numpy()[rows]
    counts = np.bincount(labels, minlength=loop.data.num_classes)
    weight = 1.0 / counts[labels]
    return rng.choice(rows, size=len(rows), p=weight / weight.sum())


def run_epochs(loop: Loop, state: State, reporting: Reporting) -> None:
    """Train until the last epoch or early stopping, saving after every epoch and when interrupted.

    Raises
    ------
    ModelError
        If the loss or a gradient is not finite, or the accelerator has too little memory for two images.
    """
    epochs, patience = loop.config.loop.epochs, loop.config.loop.patience
    model = _compiled(state.model) if loop.config.loop.compile else state.model
    team = loop.team
    with freed_memory_kept(), termination_raises() if team.size == 1 else team.signals_noted():
        try:
            while state.epoch < epochs:
                if patience is not None and state.epoch - state.best_epoch > patience:
                    break
                record = _epoch(loop, state, model, reporting)
                # Signals are held, since a tracker's database client might turn an interruption into another error.
                with signals_held():
                    reporting.epoch(record)
                    reporting.save()
                team.total(0.0, loop.device)
                team.leave_if_asked()
        except Exception:
            raise  # the weights of a failed step are not reliable: keep the last saved state
        except BaseException:
            with signals_held():
                reporting.save()
            raise


def _compiled(model: nn.Module) -> Any:
    """Compile the model for each input shape separately.

    With dynamic shapes, or with torch's limit of recompilations, a resumed training would switch to other kernels at other
    batches than an uninterrupted one, and the results would not be bit-identical.
    """
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000
    return torch.compile(model, dynamic=False)


def _epoch(loop: Loop, state: State, model: Any, reporting: Reporting) -> dict[str, Any]:
    """Train the rest of an epoch, then validate; return the epoch's record."""
    size, workers = loop.config.data.batch_size, loop.config.data.num_workers
    order = epoch_order(loop, state.epoch)
    batches = [order[i * size : (i + 1) * size] for i in range(state.batch, loop.steps_per_epoch)]
    freeze(
        state.model, state.epoch < loop.config.optim.frozen_epochs, statistics=frozen_statistics(loop.config)
    )
    together = in_step(model, loop.team)
    started, seen = time.monotonic(), state.images
    with tqdm(
        total=loop.steps_per_epoch,
        initial=state.batch,
        desc=f"epoch {state.epoch + 1}",
        unit="batch",
        disable=None if loop.team.leads else True,
        leave=False,
        postfix=_shown(state.history[-1]) if state.history else None,
    ) as bar:
        for rows, pixels in read_ahead(loop.data.pixels, batches, workers, loop.device):
            with signals_held():
                _step(loop, state, together, rows, pixels, reporting)
            bar.update()
            loop.team.leave_if_asked()
    seconds, trained = time.monotonic() - started, state.images - seen
    # Signals are not held here: an interruption saves the state of an epoch whose batches are all done.
    val_loss, macro_f1, balanced = validate_weights(loop, state.model, state.weights())
    with signals_held():
        if macro_f1 > state.best:
            state.best, state.best_epoch = macro_f1, state.epoch
            state.best_weights = {k: v.detach().cpu().clone() for k, v in state.weights().items()}
        record = {
            "epoch": state.epoch + 1,
            "train_loss": state.loss_sum / max(1, state.images),
            "val_loss": val_loss,
            "val_macro_f1": macro_f1,
            "val_balanced_accuracy": balanced,
            "image_size": _side(loop, state.epoch),
            "learning_rate": _rate(loop, (state.epoch + 1) * loop.steps_per_epoch - 1),
            "images_per_s": trained / max(seconds, 1e-9),
            "seconds": time.monotonic() - started,
        }
        state.history.append(record)
        state.take_snapshot(loop.config)
        state.epoch, state.batch, state.loss_sum, state.images = state.epoch + 1, 0, 0.0, 0
    return record


def _shown(record: dict[str, Any]) -> dict[str, str]:
    """Return the numbers of the previous epoch for the progress bar."""
    names = {
        "train_loss": "loss",
        "val_macro_f1": "F1",
        "val_balanced_accuracy": "acc",
        "learning_rate": "lr",
        "images_per_s": "img/s",
    }
    return {short: f"{record[name]:.3g}" for name, short in names.items()}


def _rate(loop: Loop, step: int) -> float:
    return learning_rate(loop.config.optim, step, loop.steps_per_epoch, loop.config.loop.epochs)


def _side(loop: Loop, epoch: int) -> int:
    return training_side(
        loop.config.data.start_size, loop.preprocessing.image_size, epoch, loop.config.loop.epochs
    )


def _step(
    loop: Loop, state: State, model: Any, rows: I64, pixels: torch.Tensor, reporting: Reporting
) -> None:
    """Take one optimiser step."""
    optim = loop.config.optim
    step = state.epoch * loop.steps_per_epoch + state.batch
    rate = _rate(loop, step)
    for group in state.optimiser.param_groups:
        group["lr"] = rate * group["factor"]
    own = _fitting_gradients(loop, state, model, rows, pixels, reporting)
    if optim.grad_clip > 0:
        state.scaler.unscale_(state.optimiser)
    trained = [parameter for parameter in state.model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
    # One transfer for both values: each transfer waits until the accelerator has finished.
    own_loss, length = torch.stack([own, norm.double()]).tolist()
    loss = loop.team.total(own_loss, loop.device)
    # The gradient scaler of fp16 checks the gradients itself and skips a step where they are not finite.
    for name, value in (("loss", loss), ("gradient norm", 0.0 if state.scaler.is_enabled() else length)):
        if not math.isfinite(value):
            raise ModelError(
                f"The {name} is {value} at epoch {state.epoch + 1}, batch {state.batch + 1} (step {step + 1}), learning "
                f"rate {rate:.3g}; lower train.optim.lr or set train.loop.precision to fp32 "
                f"({_last_good(state, reporting)})."
            )
    if optim.grad_clip > 0:
        nn.utils.clip_grads_with_norm_(trained, optim.grad_clip, norm)
    try:
        state.scaler.step(state.optimiser)
    except RuntimeError as error:
        if out_of_memory(error):
            raise ModelError(
                "The accelerator has too little memory for the optimiser's state; choose a smaller train.model.name."
            ) from error
        raise
    state.scaler.update()
    if state.average is not None:
        _update_average(state.average, state.model, min(optim.ema_decay, (1 + step) / (10 + step)))
    state.loss_sum += loss * len(rows)
    state.images += len(rows)
    state.batch += 1


def _fitting_gradients(
    loop: Loop, state: State, model: Any, rows: I64, pixels: torch.Tensor, reporting: Reporting
) -> torch.Tensor:
    """Compute the gradients of one batch, in parts that fit into memory, and return its loss.

    When memory runs out, the number of parts is doubled; the effective batch size does not change.
    """
    before = [buffer.clone() for buffer in state.model.buffers()]
    while True:
        try:
            return _gradients(loop, state, model, rows, pixels)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        # Outside the except clause, as the error keeps the tensors of the failed try alive.
        if loop.team.size > 1:  # the other processes are in the middle of this step and cannot repeat it
            raise ModelError(
                "The accelerator has too little memory for its part of a batch; lower train.data.batch_size."
            )
        if state.micro >= _most_parts(len(rows)):
            raise ModelError(
                "The accelerator has too little memory for two images; lower train.data.image_size."
            )
        state.micro *= 2
        reporting.smaller(state.micro)
        for buffer, value in zip(state.model.buffers(), before, strict=True):
            buffer.copy_(value)
        torch.cuda.empty_cache()


def _most_parts(images: int) -> int:
    """Return into how many parts a batch can be divided: batch norm needs two images for training."""
    return max(1, images // 2)


def _last_good(state: State, reporting: Reporting) -> str:
    if state.best < 0:
        return "there is no good checkpoint yet"
    good = f"the last good checkpoint, of epoch {state.best_epoch + 1} with a validation macro F1 of {state.best:.3f}"
    return f"{good}, is {reporting.rescue()}" if reporting.rescue is not None else f"{good}, is not kept"


def _gradients(loop: Loop, state: State, model: Any, rows: I64, pixels: torch.Tensor) -> torch.Tensor:
    """Compute the gradients of one batch and return its loss, or this process's share of it, as float64.

    In a team, every process augments the whole batch, so that the random draws are the same as in a single process. The
    model, which takes by far the most time, computes only this process's part.
    """
    team = loop.team
    state.optimiser.zero_grad(set_to_none=True)
    generator = torch.Generator().manual_seed(step_seed(loop.seed, _AUGMENT, state.epoch, state.batch))
    torch.manual_seed(step_seed(loop.seed, MODEL_SALT + 3 * team.rank, state.epoch, state.batch))
    labels = loop.data.labels[torch.from_numpy(rows)]
    targets = F.one_hot(labels, loop.data.num_classes).float().to(loop.device)
    # Gray images stay in one channel during augmentation: three equal channels would take three times as long.
    batch = resample(to_float(pixels, loop.device), _side(loop, state.epoch))
    batch = augment(batch, loop.config.aug, generator)
    batch, targets = mix(batch, targets, loop.config.aug, generator)
    whole = len(batch)
    batch, targets = normalise(team.part(batch), loop.preprocessing), team.part(targets)
    smoothing = loop.config.optim.label_smoothing
    total = torch.zeros((), dtype=torch.float64, device=loop.device)
    parts = min(state.micro, _most_parts(len(batch)))
    for part, wanted in zip(batch.tensor_split(parts), targets.tensor_split(parts), strict=True):
        with autocast(loop.device, loop.precision):
            logits = model(part)
        loss = (
            F.cross_entropy(
                logits.float(),
                wanted,
                weight=loop.class_weights,
                label_smoothing=smoothing,
                reduction="sum",  # the mean of an empty part would be NaN
            )
            / whole
        )
        # DistributedDataParallel averages gradients over the processes; their sum is needed.
        state.scaler.scale(loss * team.size).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total


def _update_average(average: dict[str, torch.Tensor], model: nn.Module, decay: float) -> None:
    """Update the exponential moving average of the weights; integer buffers are copied."""
    weights = model.state_dict()
    floating = [name for name, value in weights.items() if value.dtype.is_floating_point]
    with torch.no_grad():
        torch._foreach_lerp_(
            [average[name] for name in floating], [weights[name] for name in floating], 1 - decay
        )
        for name in weights.keys() - set(floating):
            average[name].copy_(weights[name])


def validate_weights(
    loop: Loop, model: nn.Module, weights: dict[str, torch.Tensor]
) -> tuple[float, float, float]:
    """Return loss, macro F1 and balanced accuracy of a model with the given weights on the validation rows."""
    model.eval()
    size, team, rows = loop.config.data.batch_size, loop.team, loop.data.val
    logits = torch.zeros(len(rows), loop.data.num_classes, device=loop.device)
    own = np.array_split(np.arange(len(rows)), team.size)[team.rank]
    start = 0
    while start < len(own):
        places = own[start : start + size]
        try:
            logits[places[0] : places[-1] + 1] = _logits(loop, model, weights, rows[places])
            start += size
            continue
        except RuntimeError as error:
            if size == 1 or not out_of_memory(error):
                raise
        size //= 2
        torch.cuda.empty_cache()
    stacked, labels = team.add_up(logits).cpu(), loop.data.labels[torch.from_numpy(rows)]
    predicted = stacked.argmax(1).numpy()
    macro_f1 = float(
        f1_score(labels, predicted, average="macro", labels=range(loop.data.num_classes), zero_division=0)
    )
    balanced = float(balanced_accuracy_score(labels, predicted))
    return float(F.cross_entropy(stacked, labels)), macro_f1, balanced


@torch.inference_mode()
def _logits(loop: Loop, model: nn.Module, weights: dict[str, torch.Tensor], rows: I64) -> torch.Tensor:
    pixels = loop.data.pixels
    batch = pixels[torch.from_numpy(rows).to(pixels.device)]
    batch = normalise(to_float(batch, loop.device), loop.preprocessing)
    with autocast(loop.device, loop.precision):
        logits: torch.Tensor = torch.func.functional_call(model, weights, (batch,))
    return logits.float()
