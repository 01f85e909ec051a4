from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from brainmri_core.learning import encoder as encoder_module
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.pointers import EvaluationPointer
from tests.core.evaluation_case import Case, phantom_case, reopened
from tests.once import once

EVALUATION = "evaluation.json"


def _make(folder: Path) -> None:
    pointer = phantom_case(folder).evaluate("e1")
    (folder / EVALUATION).write_text(pointer.model_dump_json())


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A small synthetic project up to a trained checkpoint and its evaluation, a copy for each module."""
    folder = tmp_path_factory.mktemp("phantom") / "project"
    shutil.copytree(once(tmp_path_factory, "phantom-case", _make), folder)
    return reopened(folder, load_catalogue()["brainmri/phantom"])


@pytest.fixture(scope="module")
def pointer(case: Case) -> EvaluationPointer:
    """The evaluation of that checkpoint."""
    return EvaluationPointer.model_validate_json((case.job.layout.root / EVALUATION).read_text())


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the batches that an encoder has computed."""
    counted: list[int] = []
    iterate = encoder_module.iterate

    def count(*options: Any) -> Any:
        for batch in iterate(*options):
            counted.append(len(batch))
            yield batch

    monkeypatch.setattr(encoder_module, "iterate", count)
    return counted
