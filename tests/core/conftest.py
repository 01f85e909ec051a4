from __future__ import annotations

from typing import Any

import pytest

from brainmri_core.learning import encoder as encoder_module
from brainmri_core.project.pointers import EvaluationPointer
from tests.core.evaluation_case import Case, evaluated_case


@pytest.fixture(scope="module")
def _evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, EvaluationPointer]:
    return evaluated_case(tmp_path_factory, tmp_path_factory.mktemp("phantom") / "project")


@pytest.fixture(scope="module")
def case(_evaluated: tuple[Case, EvaluationPointer]) -> Case:
    """A small synthetic project up to a trained checkpoint and its evaluation, a copy for each module."""
    return _evaluated[0]


@pytest.fixture(scope="module")
def pointer(_evaluated: tuple[Case, EvaluationPointer]) -> EvaluationPointer:
    """The evaluation of that checkpoint."""
    return _evaluated[1]


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
