from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brainmri_core.cross_validation import fold_pack
from brainmri_core.errors import IntegrityError
from brainmri_core.evaluation.metrics_schema import TestLooks
from brainmri_core.evaluation.test_ledger import (
    TOLERANCE,
    Looks,
    looks_record,
    looks_sentence,
    looks_warning,
    read_looks,
    record_look,
    split_key,
)
from brainmri_core.gc import collect_garbage
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import latest_pointer
from brainmri_core.project.pointers import EvaluationPointer
from brainmri_core.system.json_files import read_json
from brainmri_core.verify import verify
from tests.core.evaluation_case import Case
from tests.faults.tiny import PHANTOM, configuration, run_stage

IMAGES = ["glioma/b.png", "glioma/a.png"]


def look(root: Path, run_id: str, checkpoint: str = "c1", paths: list[str] = IMAGES) -> Looks:
    return record_look(
        Layout(root=root),
        PHANTOM,
        run_id,
        "evaluation",
        paths=paths,
        checkpoint=checkpoint,
        experiment="default",
    )


def ledger(root: Path) -> Path:
    return Layout(root=root).test_ledger(PHANTOM)


def test_a_run_counts_once_and_a_split_by_its_images(tmp_path: Path) -> None:
    assert look(tmp_path, "r1") == Looks(split_key(IMAGES), 1, 1)
    assert look(tmp_path, "r1").looks == 1, "retried under its id"
    assert look(tmp_path, "r2", paths=IMAGES[::-1]) == Looks(split_key(IMAGES), 2, 1)
    assert look(tmp_path, "r3", "c2") == Looks(split_key(IMAGES), 3, 2)
    assert look(tmp_path, "r4", "c3", ["glioma/c.png"]).looks == 1, "another split has its own count"
    assert [item.run_id for item in read_looks(ledger(tmp_path))] == ["r1", "r2", "r3", "r4"]


def _writer(root: Path, name: str, count: int) -> None:
    for number in range(count):
        look(root, f"{name}-{number}", name)


def test_two_processes_at_once_lose_no_line_and_tear_none(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_writer, args=(tmp_path, name, 25)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert sorted(item.run_id for item in read_looks(ledger(tmp_path))) == sorted(
        f"{name}-{number}" for name in "ab" for number in range(25)
    )


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.03, 0.07, 0.15])
def test_a_writer_killed_at_any_time_leaves_whole_lines_and_no_lock(tmp_path: Path, after_s: float) -> None:
    look(tmp_path, "before")
    writer = multiprocessing.get_context("fork").Process(target=_writer, args=(tmp_path, "killed", 10_000))
    writer.start()
    time.sleep(after_s)
    os.kill(writer.pid or 0, signal.SIGKILL)
    writer.join()
    left = [item.run_id for item in read_looks(ledger(tmp_path))]
    assert left == ["before", *(f"killed-{number}" for number in range(len(left) - 1))]
    assert ledger(tmp_path).read_bytes().endswith(b"}\n")
    assert look(tmp_path, "after", "c9").looks == len(left) + 1


def test_a_torn_last_line_is_healed_and_another_damaged_one_named(tmp_path: Path) -> None:
    look(tmp_path, "r1")
    with ledger(tmp_path).open("ab") as handle:
        handle.write(b'{"split": "0')
    assert look(tmp_path, "r2").looks == 2
    assert len(ledger(tmp_path).read_text().splitlines()) == 2
    ledger(tmp_path).write_text("{}\n" + ledger(tmp_path).read_text())
    with pytest.raises(
        IntegrityError, match=r"Line 1 of .*phantom\.jsonl is not a line of a test ledger; restore"
    ):
        look(tmp_path, "r3")


def test_more_checkpoints_than_the_interval_bears_are_warned_of() -> None:
    rng = np.random.default_rng(0)
    for checkpoints in (2, 5, 30, 400):
        record = looks_record(Looks("0" * 64, checkpoints, checkpoints), [0.8, 0.88])
        drawn = rng.normal(0, 0.04 / 1.96, (4000, checkpoints)).max(axis=1).mean()
        assert record.optimism == pytest.approx(drawn, rel=0.06), "the expected best of that many"
    allowed = {}
    for half in (0.005, 0.01, 0.02, 0.04, 0.2):
        interval = [0.8 - half, 0.8 + half]
        bound = looks_record(Looks("", 1, 1), interval).checkpoints_allowed
        allowed[half] = bound
        if bound < 10_000:
            within, beyond = (looks_record(Looks("", 9, count), interval) for count in (bound, bound + 1))
            assert within.optimism <= TOLERANCE < beyond.optimism
            assert looks_warning(within) is None
            message = looks_warning(beyond)
            assert message is not None
            assert message.text.startswith(f"{looks_sentence(beyond)} The best of that many scores")
    assert list(allowed.values()) == sorted(allowed.values(), reverse=True), "a narrow interval bears more"
    assert allowed[0.2] == 1
    assert looks_record(Looks("", 1, 1), [0.9, 0.9]).optimism == 0, "an interval without width"
    unknown = looks_record(Looks("", 5, 5), None)
    assert unknown.reason == "there is no interval of the macro F1"
    assert looks_warning(unknown) is None
    assert looks_sentence(looks_record(Looks("", 1, 1), None)).endswith("looked at once, with 1 checkpoint.")


@pytest.mark.training
def test_an_evaluation_says_how_often_its_test_split_was_looked_at(
    case: Case, pointer: EvaluationPointer
) -> None:
    looks = read_json(case.file(pointer, "metrics.json"))["test_looks"]
    assert looks["split"] == pointer.test_split
    recorded = read_looks(case.job.layout.test_ledger(PHANTOM))
    (own,) = (item for item in recorded if item.run_id == pointer.run_id)
    assert (own.checkpoint, own.experiment) == (case.checkpoint.content_hash, "default")
    message = looks_sentence(TestLooks(**looks))
    assert message in case.file(pointer, "report.html").read_text()
    assert message in case.file(pointer, "model_card.md").read_text()
    again = read_json(case.file(case.evaluate("e-look"), "metrics.json"))["test_looks"]
    # Other tests evaluate other checkpoints in this project, before this test or after it.
    before = [item for item in recorded if item.split == own.split]
    assert again["looks"] == len(before) + 1
    assert again["checkpoints"] == len({item.checkpoint for item in before}), (
        "a known checkpoint is no new one"
    )


@pytest.mark.full
@pytest.mark.training
def test_a_fold_is_no_look_at_the_test_split(case: Case, pointer: EvaluationPointer) -> None:
    path = case.job.layout.test_ledger(PHANTOM)
    before = path.read_bytes()
    fold = case.evaluate("e-fold", fold_pack(case.pack, 0, replace(case.job, run_id="fold-look")))
    found = read_json(case.file(fold, "metrics.json"))
    assert (found["test_looks"], fold.test_split) == (None, None)
    assert found["reasons"]["test_looks"] == "a fold is measured, not the test split"
    assert "has been looked at" not in case.file(fold, "report.html").read_text()
    assert path.read_bytes() == before


@pytest.mark.full
@pytest.mark.training
def test_verify_misses_an_evaluation_in_the_ledger_and_gc_leaves_it(finished: Layout) -> None:
    layout = finished
    path = layout.test_ledger(PHANTOM)
    assert len(read_looks(path)) == 1
    collect_garbage(layout, configuration("old"), dry_run=False)
    assert path.is_file()
    whole = path.read_bytes()
    for damage, message in (
        (b"", "lacks the evaluation of run old-evaluate"),
        (whole * 2, "holds a look twice"),
        (whole[: len(whole) // 2] + b"\n", "Line 1 of"),
        (None, "lacks the evaluation of run old-evaluate"),
    ):
        path.unlink() if damage is None else path.write_bytes(damage)
        (problem,) = verify(layout).problems
        assert message in problem.message
        assert problem.path == layout.relative(path)
    run_stage(layout.root, "evaluate", "again", configuration("old"))
    assert [item.run_id for item in read_looks(path)] == ["old-evaluate", "again"], (
        "begun anew from the record"
    )
    assert verify(layout).problems == []


@pytest.mark.full
@pytest.mark.training
def test_a_project_of_before_the_ledger_is_whole_and_its_evaluations_are_counted(finished: Layout) -> None:
    layout = finished
    layout.test_ledger(PHANTOM).unlink()
    folder = layout.pointer_dir(EvaluationPointer.kind, PHANTOM)
    for file in [folder / "latest.json", *(folder / "history").glob("*.json")]:
        value = json.loads(file.read_text())
        file.write_text(
            json.dumps({key: item for key, item in value.items() if key not in ("test_split", "inference")})
        )
    problems = [problem.message for problem in verify(layout).problems]
    assert not [text for text in problems if "test_ledger" in text]
    found = run_stage(layout.root, "evaluate", "first", configuration("old"))
    assert isinstance(found, EvaluationPointer)
    assert read_json(layout.absolute(found.metrics))["test_looks"]["looks"] == 2
    assert latest_pointer(layout, EvaluationPointer, PHANTOM) == found
