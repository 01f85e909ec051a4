"""The folder that the processes of a training share: the request to train, and the messages they leave when they fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "BRAINMRI_TRAIN_FOLDER"
PARENT_VARIABLE = "BRAINMRI_TORCHRUN_PID"
KINDS = ("sentence", "stopped", "killed", "lost", "crash", "terminated")
Request = dict[str, Any]
Word = dict[str, Any]


def leave_request(folder: Path, request: Request) -> None:
    """Write the request for the processes."""
    (folder / "request.json").write_text(json.dumps(request))


def read_request(folder: Path) -> Request:
    """Return the request."""
    return dict(json.loads((folder / "request.json").read_text()))


def leave_word(folder: Path, kind: str, name: str | int, word: Word) -> None:
    """Leave a message about a failure, in a file of its own, for the process that waits for the training.

    Some messages come from other machines, so a kind that is not in `KINDS` never becomes part of a file name.
    """
    if kind not in KINDS:
        return
    (folder / f"{kind}-{name}.json").write_text(json.dumps(word))


def read_words(folder: Path, kind: str) -> list[Word]:
    """Return the messages of a kind, earliest first."""
    words = [json.loads(path.read_text()) for path in folder.glob(f"{kind}-*.json")]
    return sorted(words, key=lambda word: (word.get("time", 0), word["rank"]))


def all_words(folder: Path) -> list[tuple[str, Word]]:
    """Return all messages, each with its kind."""
    return [(path.name.partition("-")[0], json.loads(path.read_text())) for path in folder.glob("*-*.json")]
