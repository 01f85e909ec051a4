"""The ledger of the test splits: a record of every evaluation on a test split ("look").

If many models are evaluated on the same test split and the best one is taken, its score is too high: Dwork et al., "The
reusable holdout", Science 2015; Blum and Hardt, "The Ladder", ICML 2015.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from brainmri_core.errors import IntegrityError
from brainmri_core.evaluation.metrics_schema import ReaderWarning, TestLooks
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import follow, history
from brainmri_core.project.pointers import CheckpointPointer, EvaluationPointer
from brainmri_core.system.checksums import sha256_json
from brainmri_core.system.clock import timestamp, utc_now
from brainmri_core.system.locks import exclusive
from brainmri_core.system.storage import storage_error
from brainmri_core.wording import counted

TOLERANCE = 0.01
"""Tolerated optimism of the best score, in macro F1; differences between settings are about that large."""
_NORMAL = NormalDist()
_MOST = 1_000_000


class Look(BaseModel):
    """One line of the ledger: a run that evaluated a checkpoint on a test split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: str = Field(pattern="^[0-9a-f]{64}$", description="`split_key` of the test images")
    run_id: str
    what: Literal["evaluation", "cross_validation"]
    checkpoint: str = Field(description="hash of the weights, or of those of all folds")
    experiment: str | None
    images: int = Field(ge=1)
    at_utc: str


@dataclass(frozen=True)
class Looks:
    """How often a test split was looked at, and with how many different checkpoints."""

    split: str
    looks: int
    checkpoints: int


def split_key(paths: Iterable[str]) -> str:
    """Return the SHA-256 that identifies the test images with these paths, in any order.

    The names of groups are not part of it, as they change if the same images are grouped by another rule.
    """
    return sha256_json(sorted(map(str, paths)))


def record_look(
    layout: Layout,
    dataset: str,
    run_id: str,
    what: Literal["evaluation", "cross_validation"],
    *,
    paths: Sequence[str],
    checkpoint: str,
    experiment: str | None,
) -> Looks:
    """Record a look at a test split before its result is shown, and count the looks at this split.

    A retried run with the same id counts once. The file is replaced as a whole under a lock, so that no line is lost or
    incomplete. A new ledger starts with the evaluations that older versions made.

    Parameters
    ----------
    layout, dataset, run_id
        The project, the data set and the run.
    what : str
        Kind of the look.
    paths : sequence of str
        Paths of the test images.
    checkpoint : str
        Hash of the weights.
    experiment : str or None
        Experiment of the training.

    Raises
    ------
    IntegrityError
        If the ledger is damaged.
    StorageError
        If it cannot be written.
    """
    path = layout.test_ledger(dataset)
    look = Look(
        split=split_key(paths),
        run_id=run_id,
        what=what,
        checkpoint=checkpoint,
        experiment=experiment,
        images=len(paths),
        at_utc=timestamp(utc_now()),
    )
    known: list[Look] = []

    def entered(present: bytes | None) -> bytes | None:
        known[:] = _earlier(layout, dataset) if present is None else parse_looks(present, path)
        if identity(look) in map(identity, known):
            return None
        known.append(look)
        return "".join(f"{item.model_dump_json()}\n" for item in known).encode()

    with exclusive(layout.lock("test_ledger", dataset)):
        layout.store.update(layout.relative(path), entered)
    return count_looks(known, look.split)


def count_looks(looks: Iterable[Look], split: str) -> Looks:
    """Count the looks at one test split."""
    same = [look for look in looks if look.split == split]
    return Looks(split, len(same), len({look.checkpoint for look in same}))


def identity(look: Look) -> tuple[str, str, str]:
    """Return the key of a look; looks with the same key count once."""
    return look.split, look.run_id, look.what


def read_looks(path: Path) -> list[Look]:
    """Read a ledger; an incomplete last line, as after a power failure, is ignored.

    Raises
    ------
    IntegrityError
        If any other line is not one of a ledger.
    StorageError
        If it cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise storage_error(error, path, "read") from error
    return parse_looks(data, path)


def parse_looks(data: bytes, path: Path) -> list[Look]:
    """Read the content of a ledger, as `read_looks` does; the path is for the message."""
    looks = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            looks.append(Look.model_validate_json(line))
        except ValidationError:
            raise IntegrityError(
                f"Line {number} of {path} is not a line of a test ledger; restore the file, or move it away, so that the "
                "next evaluation rebuilds it from the stored evaluations."
            ) from None
    return looks


def _earlier(layout: Layout, dataset: str) -> list[Look]:
    """Return the looks of the stored evaluations, oldest first, from versions without a ledger."""
    from brainmri_core.evaluation.prediction_table import read_predictions

    looks: dict[tuple[str, str, str], Look] = {}
    for pointer in reversed([*history(layout, EvaluationPointer, dataset)]):
        predictions, stored = layout.absolute(pointer.predictions), pointer.checkpoint_pointer
        try:
            table, _ = read_predictions(predictions)
        except IntegrityError:
            continue  # missing or damaged: `verify` reports it
        paths = table.loc[table["split"] == "test", "path"].tolist()
        known = stored is not None and layout.absolute(stored).is_file()
        checkpoint = follow(layout, CheckpointPointer, stored) if known and stored else None
        look = Look(
            split=split_key(paths),
            run_id=pointer.run_id,
            what="evaluation",
            checkpoint=checkpoint.content_hash if checkpoint else pointer.content_hash,
            experiment=checkpoint.experiment if checkpoint else None,
            images=len(paths),
            at_utc=pointer.written_at_utc,
        )
        looks.setdefault(identity(look), look)
    return list(looks.values())


def looks_record(found: Looks, interval: Sequence[float] | None) -> TestLooks:
    """Estimate the optimism of the best score after a number of looks at a test split.

    The scores of M models vary around their true values with the standard error s, half the width of a 95% interval divided
    by 1.96. The best of M independent scores is on average s * z(M) too high, where z(M) is the expected maximum of M
    standard normal numbers, by Blom (1958) the quantile at (M - 3/8) / (M + 1/4). Scores on the same images are correlated,
    so the true optimism is smaller.

    Parameters
    ----------
    found : Looks
        All looks, including the current one.
    interval : sequence of float or None
        95% interval of the macro F1 on this split.

    Returns
    -------
    TestLooks
        ``optimism`` is s * z(M), and ``checkpoints_allowed`` the number of checkpoints up to which it is within `TOLERANCE`;
        both are None, with a ``reason``, without an interval.
    """
    optimism, allowed, reason = None, None, None
    if interval is None:
        reason = "there is no interval of the macro F1"
    else:
        error = (interval[1] - interval[0]) / 2 / _NORMAL.inv_cdf(0.975)
        optimism = error * _NORMAL.inv_cdf((found.checkpoints - 0.375) / (found.checkpoints + 0.25))
        allowed = _allowed(error)
    return TestLooks(
        split=found.split,
        looks=found.looks,
        checkpoints=found.checkpoints,
        optimism=optimism,
        checkpoints_allowed=allowed,
        reason=reason,
    )


def _allowed(error: float) -> int:
    share = _NORMAL.cdf(TOLERANCE / error) if error else 1.0
    return _MOST if share == 1.0 else min(_MOST, math.floor((0.375 + 0.25 * share) / (1 - share) + 1e-9))


def looks_sentence(record: TestLooks) -> str:
    """Say in a sentence how often a test split was looked at."""
    return (
        f"This test split has been looked at {_times(record.looks)}, with "
        f"{counted(record.checkpoints, 'checkpoint', ',')}."
    )


def looks_warning(record: TestLooks) -> ReaderWarning | None:
    """Return the warning for a test split with more checkpoints than allowed, or None."""
    optimism, allowed = record.optimism, record.checkpoints_allowed
    if optimism is None or allowed is None or record.checkpoints <= allowed:
        return None
    text = (
        f"{looks_sentence(record)} The best of that many scores is up to {optimism:.3f} above its true value by chance "
        f"alone; at the width of this interval {counted(allowed, 'checkpoint', ',')} would stay within {TOLERANCE}. Choose "
        "models by validation or out-of-fold scores, and split with another split.seed for test images that nothing was "
        "chosen by."
    )
    return ReaderWarning(level="amber", text=text)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
