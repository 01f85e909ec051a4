"""Which model predicts where none is named: the champion of a data set, else its newest checkpoint."""

from __future__ import annotations

from pathlib import Path

from brainmri_core.errors import ConfigError, MissingUpstreamError
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointers import (
    ChampionPointer,
    CheckpointPointer,
    follow,
    latest_pointer,
)
from brainmri_core.system.storage import check_sha256


def model_of(layout: Layout, dataset: str | None, setting: str) -> tuple[Path, CheckpointPointer]:
    """Return the checkpoint of a data set that is in use, and its record.

    Parameters
    ----------
    dataset : str or None
        Whose; None is enough where only one data set has a champion, or none has and only one a checkpoint.
    setting : str
        What chooses the data set, for the messages.

    Raises
    ------
    ConfigError
        If several data sets have a model and none is named.
    MissingUpstreamError
        If there is no model, or its file is gone.
    IntegrityError
        If the file is not the one on record.
    """
    if dataset is None:
        dataset = _only(layout, setting)
    champion = latest_pointer(layout, ChampionPointer, dataset)
    holder = latest_pointer(layout, CheckpointPointer, dataset)
    if champion is not None:
        holder = follow(layout, CheckpointPointer, champion.champion_checkpoint)
    if holder is None:
        raise MissingUpstreamError(
            f"There is no checkpoint of {dataset} yet; make one with `brainmri pipeline --dataset {dataset}`, or choose "
            f"another data set with {setting}."
        )
    # the file of its own run first: that of the champion is replaced by the next one
    places = [holder.checkpoint, *([champion.weights] if champion is not None else [])]
    path = next((path for path in map(layout.absolute, places) if path.is_file()), None)
    if path is None:
        raise MissingUpstreamError(
            f"The checkpoint {holder.checkpoint} of {dataset} is gone; restore it, or train again."
        )
    check_sha256(path, holder.checkpoint_sha256, "checkpoint")
    return path, holder


def _only(layout: Layout, setting: str) -> str:
    for kind in (ChampionPointer.kind, CheckpointPointer.kind):
        folder = layout.root / "outputs" / "pointers" / kind
        names = sorted(file.parent.relative_to(folder).as_posix() for file in folder.glob("*/*/latest.json"))
        if len(names) > 1:
            raise ConfigError(
                f"There are models of several data sets ({', '.join(names)}); choose one with {setting}."
            )
        if names:
            return names[0]
    raise MissingUpstreamError(
        f"There is no model in {layout.root} yet; make one with `brainmri pipeline`, or name a file with "
        "batch_predict.checkpoint."
    )
