"""Every kind of ``metrics.json`` is read as it was written, or refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from brainmri_core.errors import IntegrityError
from brainmri_core.evaluation.cross_validation_schema import read_cross_validation
from brainmri_core.evaluation.embeddings_schema import EmbeddingsMetrics, read_embeddings_metrics
from brainmri_core.evaluation.external_schema import read_external_metrics
from brainmri_core.evaluation.metrics_schema import Part, read_metrics
from brainmri_core.system.json_files import json_text, write_json
from tests.core.evaluation.documents_case import (
    cross_validation_document,
    embeddings_document,
    evaluation_document,
    external_document,
)

Read = Callable[[Path], Part]
Make = Callable[[], Part]


def of_an_older_version() -> EmbeddingsMetrics:
    """The first version wrote neither `outliers` nor `drift`."""
    return embeddings_document().model_copy(update={"outliers": None, "drift": None})


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (evaluation_document, read_metrics),
        (cross_validation_document, read_cross_validation),
        (external_document, read_external_metrics),
        (partial(external_document, own=None, obstacle="its pack is gone"), read_external_metrics),
        (partial(external_document, reason="Nothing is left.", taken_out=40), read_external_metrics),
        (embeddings_document, read_embeddings_metrics),
        (partial(embeddings_document, reason="there are no folds"), read_embeddings_metrics),
        (of_an_older_version, read_embeddings_metrics),
    ],
)
def test_a_document_read_and_written_again_is_the_same_bytes(tmp_path: Path, make: Make, read: Read) -> None:
    path, document = tmp_path / "metrics.json", make()
    write_json(path, document.model_dump(mode="json"))
    found = read(path)
    assert found == document
    assert json_text(found.model_dump(mode="json")).encode() == path.read_bytes()


def test_the_document_of_an_older_version_lacks_what_it_did_not_know() -> None:
    assert list(of_an_older_version().model_dump(mode="json")) == ["pooled", "folds", "reason"]


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda found: found | {"reason": 3}, "'reason': Input should be a valid string"),
        (lambda found: {**found, "unknown": None}, "'unknown': Extra inputs are not permitted"),
        (lambda _: [], "'the whole': Input should be a valid dictionary"),
        (lambda _: cross_validation_document().model_dump(mode="json"), "Field required"),
    ],
    ids=["another type", "an unknown field", "no mapping", "another document"],
)
@pytest.mark.parametrize(
    ("make", "read", "words"),
    [
        (
            external_document,
            read_external_metrics,
            ("the metrics of an external evaluation", "make the external evaluation again."),
        ),
        (embeddings_document, read_embeddings_metrics, ("the metrics of embeddings", "run embeddings again.")),
    ],
    ids=["external", "embeddings"],
)  # fmt: skip
def test_a_damaged_or_foreign_document_is_refused_in_one_sentence(
    tmp_path: Path, make: Make, read: Read, words: tuple[str, str], change: Change, field: str
) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, change(make().model_dump(mode="json")))
    with pytest.raises(IntegrityError) as raised:
        read(path)
    message = str(raised.value)
    assert message.startswith(f"{path} does not hold {words[0]}: ") and message.endswith(f"; {words[1]}")
    assert field in message and "\n" not in message and ". " not in message
