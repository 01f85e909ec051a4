"""Stochastic weight averaging: the average of the last epochs' weights as one network.

Izmailov et al., Averaging weights leads to wider optima and better generalization, UAI 2018. The last epochs are averaged,
and not the best ones: those would be selected on the validation images once more, and would all have to be stored.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch.optim.swa_utils import update_bn

from brainmri_core.learning.batches import normalise, read_ahead, to_float
from brainmri_core.learning.device import autocast, step_seed
from brainmri_core.learning.loop import MODEL_SALT, validate_weights
from brainmri_core.learning.state import Loop, State, frozen_statistics
from brainmri_core.project.logs import StageLog


def judge_snapshots(loop: Loop, state: State, log: StageLog) -> None:
    """Validate the average of the last epochs; if it is better than the best epoch, its weights replace those.

    Averaged weights need new batch-norm statistics, which one pass over the training images without augmentation gives.
    The state for resuming is not changed, so that an interruption here costs only this pass.
    """
    count = state.snapshots_taken(loop.config)
    if state.snapshots is None or count < 2:
        if loop.config.optim.snapshots:
            log.warning("stopped before there were two epochs to average", epochs_run=state.epoch)
        return
    averaged = copy.deepcopy(state.model)
    averaged.load_state_dict(state.snapshots)
    torch.manual_seed(step_seed(loop.seed, MODEL_SALT, state.epoch, 0))  # dropout comes before batch norm
    if not frozen_statistics(loop.config):
        with autocast(loop.device, loop.precision):
            update_bn(_batches(loop, state), averaged)
    weights = averaged.state_dict()
    val_loss, macro_f1, balanced = validate_weights(loop, averaged, weights)
    better = macro_f1 > state.best
    log.info(
        "epochs averaged",
        epochs=count,
        val_loss=val_loss,
        val_macro_f1=macro_f1,
        val_balanced_accuracy=balanced,
        best_epoch_val_macro_f1=state.best,
        kept=better,
    )
    if better:
        state.best, state.best_epoch, state.averaged_epochs = macro_f1, state.epoch - 1, count
        state.best_weights = {name: value.detach().cpu().clone() for name, value in weights.items()}


def _batches(loop: Loop, state: State) -> Iterator[torch.Tensor]:
    """Yield the training images without augmentation, in batches of at least two images that fit into memory."""
    size = max(2, loop.config.data.batch_size // state.micro)
    rows = np.sort(loop.data.train)
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    batches = [part for part in parts if len(part) > 1]
    for _, pixels in read_ahead(loop.data.pixels, batches, loop.config.data.num_workers, loop.device):
        yield normalise(to_float(pixels, loop.device), loop.preprocessing)
