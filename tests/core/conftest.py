from __future__ import annotations

import pytest

from brainmri_core.project.pointers import EvaluationPointer
from tests.core.evaluation_case import Case, phantom_case


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A small synthetic project up to a trained checkpoint."""
    return phantom_case(tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="session")
def pointer(case: Case) -> EvaluationPointer:
    """The evaluation of that checkpoint."""
    return case.evaluate("e1")
