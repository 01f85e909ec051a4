"""The ledger of the test splits: every evaluation that looked at one, so that a report can say how used up it is.

A score on images that many models were measured on is no longer that of unseen images once the best of them is taken:
Dwork et al., "The reusable holdout", Science 2015; Blum and Hardt, "The Ladder", ICML 2015.
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
"""Points of macro F1 that chance may add to the best of all scores: about what settings worth comparing differ by."""
_NORMAL = NormalDist()
_MOST = 1_000_000


class Look(BaseModel):
    """One line of the ledger: a run that measured a checkpoint on a test split."""

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
    """Return the SHA-256 that stands for the test images with these paths, in any order.

    A test split consists of whole groups, so its images say which groups it holds; the groups' names do not count,
    which change where the same images are grouped by another rule.
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
    """Write a look at a test split into the ledger, before anybody sees its result, and count those at the same split.

    A run that is retried under its id counts once. The file is replaced as a whole under a lock, so that no line is torn
    or lost; an evaluation of before there was a ledger is taken in when the ledger begins.

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
    """Return what is the same in two looks that count once."""
    return look.split, look.run_id, look.what


def read_looks(path: Path) -> list[Look]:
    """Read a ledger; a last line without its end, which a machine that lost power may leave, is left out.

    Raises
    ------
    IntegrityError
        If any other line is none of a ledger.
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
                f"Line {number} of {path} is no line of a test ledger; restore the file, or move it away so that the next "
                "evaluation begins it anew from the evaluations on record."
            ) from None
    return looks


def _earlier(layout: Layout, dataset: str) -> list[Look]:
    """Return the looks of the evaluations on record, oldest first: those of a version that kept no ledger."""
    from brainmri_core.evaluation.prediction_table import read_predictions

    looks: dict[tuple[str, str, str], Look] = {}
    for pointer in reversed([*history(layout, EvaluationPointer, dataset)]):
        predictions, stored = layout.absolute(pointer.predictions), pointer.checkpoint_pointer
        try:
            table, _ = read_predictions(predictions)
        except IntegrityError:
            continue  # it is gone or damaged, which `verify` says
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
    """Say what the looks at a test split mean for a score on it.

    The scores of M models scatter around their true values by the standard error s, a 95% interval's half width over 1.96.
    The best of M independent ones is expected s * z(M) too high, where z(M) is the expected largest of M standard normal
    numbers, by Blom (1958) the quantile at (M - 3/8) / (M + 1/4). Scores on the same images go together, so that it is less.

    Parameters
    ----------
    found : Looks
        The present look included.
    interval : sequence of float or None
        95% interval of the macro F1 on this split.

    Returns
    -------
    TestLooks
        ``optimism`` is s * z(M), and ``checkpoints_allowed`` the most checkpoints for which it stays within `TOLERANCE`;
        both are None, with a ``reason``, where there is no interval.
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
    """Say how often a test split was looked at."""
    return (
        f"This test split has been looked at {_times(record.looks)}, with "
        f"{counted(record.checkpoints, 'checkpoint', ',')}."
    )


def looks_warning(record: TestLooks) -> ReaderWarning | None:
    """Return the warning for a test split that was looked at with more checkpoints than its interval bears, or None."""
    optimism, allowed = record.optimism, record.checkpoints_allowed
    if optimism is None or allowed is None or record.checkpoints <= allowed:
        return None
    text = (
        f"{looks_sentence(record)} The best of that many scores lies up to {optimism:.3f} above its true value by chance "
        f"alone; at the width of this interval {counted(allowed, 'checkpoint', ',')} would stay within {TOLERANCE}. Choose models by validation or out-of-fold scores, and split with another split.seed for test "
        "images that nothing was chosen by."
    )
    return ReaderWarning(level="amber", text=text)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
