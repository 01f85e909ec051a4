from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import latest_pointer, write_pointer
from brainmri_core.verify import verify
from tests.faults.tiny import PHANTOM, POINTERS

pytestmark = pytest.mark.training


@pytest.fixture
def layout(finished: Layout) -> Layout:
    return finished


def one(layout: Layout, pattern: str) -> Path:
    return sorted(layout.root.glob(pattern))[0]


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_whole_project_has_no_problem(layout: Layout) -> None:
    found = verify(layout)
    assert found.problems == []
    assert found.pointers == 12
    assert found.runs == 6
    assert found.files > 60


HASHED = [
    "data/raw/*/*/*/files/Training/*/*.jpg",
    "data/training_resized/*/*/*/pack.npy",
    "data/training_resized/*/*/*/samples.parquet",
    "outputs/mappings/*/*/*/samples.parquet",
    "outputs/mappings/*/*/*/index_remap.json",
    "outputs/mappings/*/*/*/split.json",
    "outputs/mappings/*/*/*/copies.parquet",
    "outputs/validation/*/*/*/report.json",
    "outputs/training/*/*/*/history.parquet",
    "outputs/evaluation/*/*/*/metrics.json",
    "outputs/evaluation/*/*/*/predictions.parquet",
    "outputs/evaluation/*/*/*/report.html",
    "models/*/*/*/best.pth",
    "models/*/*/*/last.pth",
    "models/*/*/*/best.safetensors",
    "outputs/pointers/validation/*/*/history/*.json",
]
COPIES = [
    "models/best.pth",
    "outputs/orchestrator/old-split/split.yaml",
    "outputs/pointers/pack/*/*/latest.json",
]
RECORDS = ["outputs/orchestrator/old-fetch/plan.json", "outputs/orchestrator/old-fetch/run_manifest.json"]


@pytest.mark.parametrize(
    ("damage", "patterns"),
    [
        (flip, HASHED + COPIES),
        (lambda path: path.write_bytes(b""), HASHED + COPIES + RECORDS),
        (Path.unlink, HASHED),
    ],
    ids=["one bit", "empty", "gone"],
)
def test_any_damaged_file_is_named(
    layout: Layout, damage: Callable[[Path], object], patterns: list[str]
) -> None:
    damaged = [one(layout, pattern) for pattern in patterns]
    for path in damaged:
        damage(path)
    problems = verify(layout).problems
    named = [problem.path for problem in problems]
    assert len(named) == len(set(named))
    unnamed = {layout.relative(path) for path in damaged} - set(named)
    assert not unnamed, problems
    blamed = set(named) - {layout.relative(path) for path in damaged}
    assert blamed <= {layout.relative(one(layout, "outputs/pointers/validation/*/*/latest.json"))}, (
        "a copy of one"
    )


@pytest.mark.parametrize(
    "damage", [flip, lambda path: path.write_bytes(b""), Path.unlink], ids=["one bit", "empty", "gone"]
)
def test_a_damaged_index_of_the_images_is_named(layout: Layout, damage: Callable[[Path], object]) -> None:
    path = one(layout, "data/raw/*/*/*/samples.parquet")
    damage(path)
    assert [problem.path for problem in verify(layout).problems] == [layout.relative(path)]


def test_what_a_run_at_work_changed_in_between_is_no_damage(layout: Layout) -> None:
    history = one(layout, "outputs/pointers/pack/*/*/history/*.json")
    aside = history.rename(layout.root / "aside.json")

    def write() -> None:
        """Bring the file as soon as something was looked at."""
        if aside.exists():
            aside.rename(history)

    assert verify(layout, write).problems == []
    history.rename(aside)
    assert verify(layout).problems


def test_an_edited_pointer_is_found_by_its_history_copy_and_the_manifest(layout: Layout) -> None:
    latest = one(layout, "outputs/pointers/checkpoint/*/*/latest.json")
    value = json.loads(latest.read_text())
    latest.write_text(json.dumps(value | {"val_macro_f1": 1.0}))
    (problem,) = verify(layout).problems
    assert problem.path == layout.relative(latest)
    assert "differs from its history copy" in problem.message

    history = layout.root / value["pointer_path"]
    history.write_text(latest.read_text())
    (problem,) = verify(layout).problems
    assert problem.path == layout.relative(history)
    assert "differs from what the manifest of run old-train recorded" in problem.message


def test_a_changed_plan_no_longer_fits_its_hash(layout: Layout) -> None:
    plan = one(layout, "outputs/orchestrator/old-train/plan.json")
    value = json.loads(plan.read_text())
    value["stages"][0]["config"]["optim"]["lr"] = 0.5
    plan.write_text(json.dumps(value))
    problems = {problem.path: problem.message for problem in verify(layout).problems}
    assert "its config hash does not fit" in problems[layout.relative(plan)]


def test_a_history_copy_under_another_name_is_refused(layout: Layout) -> None:
    history = one(layout, "outputs/pointers/pack/*/*/history/*.json")
    shutil.copy(history, history.with_name("0.json"))
    (problem,) = verify(layout).problems
    assert problem.path.endswith("history/0.json")
    assert "it was moved or edited" in problem.message


def test_a_pointer_that_leaves_the_project_is_a_problem_not_a_crash(layout: Layout) -> None:
    latest = one(layout, "outputs/pointers/pack/*/*/latest.json")
    latest.write_text(json.dumps(json.loads(latest.read_text()) | {"pack": "../../etc/passwd"}))
    (problem,) = verify(layout).problems
    assert "outside the project root" in problem.message


def test_a_champion_of_other_weights_and_a_torn_resume_state_are_named(layout: Layout) -> None:
    from brainmri_core.project.pointers import ChampionPointer, CheckpointPointer

    checkpoint = latest_pointer(layout, CheckpointPointer, PHANTOM)
    assert checkpoint is not None
    champion = layout.root / "models" / PHANTOM / "champion.pth"
    decision = champion.with_name("decision.json")
    decision.write_text("{}")
    shutil.copy(layout.absolute(checkpoint.checkpoint), champion)
    write_pointer(
        layout,
        ChampionPointer(
            dataset=PHANTOM,
            run_id="c",
            content_hash="0" * 64,
            written_at_utc="2026-01-01T00:00:00Z",
            champion_checkpoint=str(checkpoint.pointer_path),
            challenger_checkpoint=str(checkpoint.pointer_path),
            weights=layout.relative(champion),
            crowned=True,
            reason="first",
            decision=layout.relative(decision),
        ),
    )
    assert verify(layout).problems == []
    flip(champion)
    state = layout.root / "models" / PHANTOM / "resume" / "abc" / "last.pth"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"torn")
    problems = {problem.path: problem.message for problem in verify(layout).problems}
    assert set(problems) == {layout.relative(champion), layout.relative(state)}
    assert "delete it to start again" in problems[layout.relative(state)]


def test_every_stage_left_a_pointer(layout: Layout) -> None:
    assert all(latest_pointer(layout, kind, PHANTOM) for kind in POINTERS.values())
