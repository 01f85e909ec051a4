"""Structured logging: every record has the same keys, and goes to any number of sinks."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from brainmri_core.config import LogConfig
from brainmri_core.errors import StorageError
from brainmri_core.escaping import printable
from brainmri_core.system.clock import timestamp, utc_now
from brainmri_core.system.storage import make_dirs, storage_error

Record = dict[str, Any]
Sink = Callable[[Record], None]
_LEVELS = logging.getLevelNamesMapping()


class StageLog:
    """Logger of one stage of one run.

    Every record has ``time``, ``level``, ``run_id``, ``dataset``, ``stage``, ``event`` and the given fields. When a sink can
    no longer be written it is dropped, and a warning goes to the others.
    """

    def __init__(self, stage: str, run_id: str, dataset: str, sinks: list[Sink], level: str = "INFO") -> None:
        self._base = {"run_id": run_id, "dataset": dataset, "stage": stage}
        self._sinks = sinks
        self._threshold = _LEVELS[level]

    def _emit(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if _LEVELS[level] < self._threshold:
            return
        record = {"time": timestamp(utc_now()), "level": level, **self._base, "event": event, **fields}
        for sink in list(self._sinks):
            try:
                if sink in self._sinks:  # the warning below may have dropped it
                    sink(record)
            except StorageError as error:  # a full disk must not end the run for the sake of its log
                self._sinks = [other for other in self._sinks if other is not sink]
                self.warning(f"{error} The log goes on without it.")

    def debug(self, event: str, **fields: Any) -> None:
        """Log a detail."""
        self._emit("DEBUG", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Log what happened."""
        self._emit("INFO", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Log what the user should look at."""
        self._emit("WARNING", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Log what failed."""
        self._emit("ERROR", event, fields)


def as_json(record: Record) -> str:
    """Format a record as one JSON line; line breaks and control characters in values are escaped."""
    return json.dumps(record, ensure_ascii=True, default=str)


def as_text(record: Record) -> str:
    """Format a record for people: time, stage, event, then key=value fields."""
    skip = {"time", "level", "run_id", "dataset", "stage", "event"}
    fields = " ".join(f"{key}={_plain(value)}" for key, value in record.items() if key not in skip)
    mark = "" if record["level"] == "INFO" else f" {record['level']}"
    return f"{record['time'][11:19]}{mark} {record['stage']:<8} {_plain(record['event'], quote=False)} {fields}".rstrip()


def _plain(value: Any, *, quote: bool = True) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = printable(str(value))
    return json.dumps(text, ensure_ascii=False) if quote and " " in text else text


def event_text(record: Record, *, json_lines: bool) -> str:
    """Format a record for an event log that shows the time itself."""
    return as_json(record) if json_lines else as_text(record).split(" ", 1)[1]


def throttled(
    sink: Sink, event: str, seconds: float = 5.0, clock: Callable[[], float] = time.monotonic
) -> Sink:
    """Return a sink that passes one kind of event on at most once in `seconds`, and all other events at once.

    Before another event the newest record that was held back is passed on: the last of a series is never lost.
    """
    last = -math.inf
    held: Record | None = None

    def emit(record: Record) -> None:
        nonlocal last, held
        if record["event"] == event and clock() - last < seconds:
            held = record
            return
        if record["event"] == event:
            last = clock()
        elif held is not None:
            sink(held)
        held = None
        sink(record)

    return emit


def stream_sink(stream: TextIO | None = None, *, json_lines: bool = False) -> Sink:
    """Return a sink that prints to a stream (standard error by default)."""

    def emit(record: Record) -> None:
        try:
            print(as_json(record) if json_lines else as_text(record), file=stream or sys.stderr, flush=True)
        except OSError as error:
            raise storage_error(error, Path("the console")) from error

    return emit


@contextmanager
def file_sink(path: Path) -> Iterator[Sink]:
    """Yield a sink that appends JSON lines to a file.

    Raises
    ------
    StorageError
        If the file cannot be opened; from the sink, if a line cannot be written.
    """
    make_dirs(path.parent)
    try:
        handle = path.open("ab", buffering=0)
    except OSError as error:
        raise storage_error(error, path) from error

    def emit(record: Record) -> None:
        line = f"{as_json(record)}\n".encode()
        try:
            while line:
                line = line[handle.write(line) :]
        except OSError as error:
            raise storage_error(error, path) from error

    with handle:
        yield emit


@contextmanager
def stage_log(
    stage: str,
    run_id: str,
    dataset: str,
    config: LogConfig,
    run_dir: Path,
    extra: list[Sink] | None = None,
    *,
    console: bool = True,
) -> Iterator[StageLog]:
    """Yield a stage's logger: its own file in the run's folder, the console, `log.file`, and any `extra` sink."""
    with file_sink(run_dir / "logs" / f"{stage}.log") as own:
        sinks = [own, *(extra or [])]
        if console:
            sinks.append(stream_sink(json_lines=config.json_lines))
        if config.file is None:
            yield StageLog(stage, run_id, dataset, sinks, config.level)
        else:
            with file_sink(Path(config.file).expanduser()) as shared:
                yield StageLog(stage, run_id, dataset, [*sinks, shared], config.level)
