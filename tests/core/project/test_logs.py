from __future__ import annotations

import io
import json
from pathlib import Path

from brainmri_core.config import LogConfig
from brainmri_core.project.logs import StageLog, as_json, as_text, stage_log, stream_sink


def test_every_record_has_the_same_keys_and_reaches_every_sink(tmp_path: Path) -> None:
    seen: list[dict[str, object]] = []
    config = LogConfig(file=str(tmp_path / "all.log"))
    with stage_log("split", "r1", "o/s", config, tmp_path / "run", [seen.append], console=False) as log:
        log.info("packed", images=3)
        log.debug("hidden")
        log.warning("odd")
    lines = [json.loads(line) for line in (tmp_path / "run/logs/split.log").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["packed", "odd"]
    assert list(lines[0]) == ["time", "level", "run_id", "dataset", "stage", "event", "images"]
    assert seen == lines
    assert (tmp_path / "all.log").read_text().splitlines() == [as_json(line) for line in lines]


def test_a_full_disk_takes_the_log_and_not_the_run(tmp_path: Path) -> None:
    seen: list[dict[str, object]] = []
    config = LogConfig(file="/dev/full")
    with stage_log("split", "r1", "o/s", config, tmp_path / "run", [seen.append], console=False) as log:
        log.info("first")
        log.info("second")
    lines = [json.loads(line) for line in (tmp_path / "run/logs/split.log").read_text().splitlines()]
    assert lines == seen
    assert [line["event"] for line in lines if line["level"] == "INFO"] == ["first", "second"]
    (warning,) = [str(line["event"]) for line in lines if line["level"] == "WARNING"]
    assert warning.startswith("Cannot write /dev/full: there is no space left on the device")


def test_all_logs_on_one_full_disk(tmp_path: Path) -> None:
    (tmp_path / "run/logs").mkdir(parents=True)
    (tmp_path / "run/logs/split.log").symlink_to("/dev/full")
    seen: list[dict[str, object]] = []
    sinks = [stream_sink(Path("/dev/full").open("w")), seen.append]  # noqa: SIM115 - closing it would fail, too
    config = LogConfig(file="/dev/full")
    with stage_log("split", "r1", "o/s", config, tmp_path / "run", sinks, console=False) as log:
        log.info("first")
        log.info("second")
    assert [line["event"] for line in seen if line["level"] == "INFO"] == ["first", "second"]
    assert len([line for line in seen if line["level"] == "WARNING"]) == 3


def test_console_is_readable_or_json(tmp_path: Path) -> None:
    for json_lines in (False, True):
        stream = io.StringIO()
        StageLog("train", "r1", "o/s", [stream_sink(stream, json_lines=json_lines)]).info(
            "epoch", loss=0.123456
        )
        text = stream.getvalue()
        assert text.count("\n") == 1
        assert json.loads(text)["loss"] == 0.123456 if json_lines else "train    epoch loss=0.1235" in text


def test_a_file_name_cannot_forge_a_log_line() -> None:
    hostile = "a\n12:00:00 train success\x1b[31m"
    record = {
        "time": "2026-01-01T00:00:00Z",
        "level": "INFO",
        "stage": "s",
        "event": hostile,
        "path": hostile,
    }
    for text in (as_text(record), as_json(record)):
        assert "\n" not in text
        assert "\x1b" not in text
